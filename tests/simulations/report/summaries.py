"""Summaries of make-believe runs whose hits are given: accuracy 0.1, and 0.9 from that round on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdfed.records import DataFacts, Outcome, RoundRecord, summarise
from simulations.experiments import build_experiment

HORIZON = 40
STARTS = {"warm": "consolidated", "averaged": "averaged"}
"""Arms whose start takes one exchange of the teachers."""

KEYS = {
    **{arm: {"start": start} for arm, start in {**STARTS, "server": "server"}.items()},
    "longer": {"local.extra": {"epochs": 1, "rounds": 5}},
}
"""Of arms that are no cold ones."""


def curve(arm: str, seed: int, reached: int | None, rounds: int = HORIZON) -> list[RoundRecord]:
    """Return a run that is at 0.9 from a round on; 20 uploads, 2 kB and 100 steps an exchange."""
    records = []
    for r in range(rounds + 1):
        trips = r + (arm in STARTS)
        accuracy = 0.9 if reached is not None and r >= reached else 0.1
        records.append(
            RoundRecord(
                *(arm, seed, r, trips, "rounds" if r else "start", accuracy, accuracy - 0.05, 1.0),
                *(20 * trips, 1000 * trips, 1000 * trips, 100 * trips, 20, (), float(r)),
            )
        )
    return records


def summary_of(
    arms: Mapping[str, Sequence[int | None]],
    *,
    targets: Sequence[float | str] = (0.8,),
    controls: Sequence[str] = (),
    failed: Sequence[tuple[str, int]] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Return what ``summary.json`` holds.

    Parameters
    ----------
    arms
        The baseline first: for each seed the round from which the arm is at 0.9, None for never.
    targets, controls
        Of the experiment.
    failed
        Runs (arm, seed) that ended in round 5.
    changes
        Of what the data say: see :class:`kdfed.records.DataFacts`.
    """
    seeds = range(max(len(reached) for reached in arms.values()))
    experiment = build_experiment(
        {
            "name": "make-believe",
            "seeds": list(seeds),
            "targets": list(targets),
            "controls": list(controls),
            "rounds": {"horizon": HORIZON, "why": "so the tests want it"},
            "arms": {arm: KEYS.get(arm, {"start": "random"}) for arm in arms},
        }
    )
    records, outcomes = [], []
    for arm, rounds in arms.items():
        for seed, reached in enumerate(rounds):
            if (arm, seed) in failed:
                records += curve(arm, seed, reached, 5)
            else:
                records += curve(arm, seed, reached)
                outcomes.append(Outcome(arm, seed, "horizon", "ab" * 32))
    facts = {"evaluation_examples": 2000, "majority": 0.1, "server_labels": 0, "control_labels": 500}
    return summarise(experiment, "inprocess", records, outcomes, facts=DataFacts(**facts | changes))
