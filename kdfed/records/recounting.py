"""Whether a summary is what its records say: they are counted again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdfed.config import Experiment
from kdfed.records.parsing import short
from kdfed.records.rounds import Outcome, RoundRecord
from kdfed.records.summary import DataFacts, summarise

COUNTED = ("horizon", "runs", "comparisons", "controls")
"""Keys of a summary that records decide."""

_NOT_COUNTED = ("stopped", "weights_sha256", "why", "labels")
"""Keys of these that stand elsewhere: in the outcomes, or in the data."""


def check_recount(
    summary: Mapping[str, Any],
    experiment: Experiment,
    records: Sequence[RoundRecord],
    outcomes: Sequence[Outcome] = (),
) -> None:
    """Check that every figure of a summary is what its records give.

    Parameters
    ----------
    summary
        Of :func:`kdfed.records.checking.parse_summary`.
    experiment, records, outcomes
        What lies beside it. Of a run without an outcome, the summary's word is taken for how it ended.

    Raises
    ------
    ValueError
        If a figure is another; the first one is named.
    """
    ends = {(run["arm"], run["seed"]): run for run in summary["runs"]}
    told = [Outcome(*key, run["stopped"], run["weights_sha256"]) for key, run in ends.items()]
    facts, labels = None, summary["controls"].get("server_alone", {}).get("labels")
    if summary["majority"] is not None:
        given = (summary["evaluation_examples"] or 0, summary["majority"], summary["server_labels"] or 0)
        facts = DataFacts(*given, labels or 0)
    counted = summarise(experiment, summary["engine"], records, [*told, *outcomes], facts=facts)
    for key in COUNTED:
        for path, wanted, got in _differing(counted[key], summary[key], key):
            raise ValueError(
                f"{path}: expected {short(wanted)}, as counted from rounds.jsonl, got {short(got)}"
            )


def _differing(wanted: Any, got: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two values differ: the path, and both; keys that only one of them has are left alone."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        for key in wanted:
            if key in got and key not in _NOT_COUNTED:
                yield from _differing(wanted[key], got[key], f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        for place, (one, other) in enumerate(zip(wanted, got, strict=True)):
            yield from _differing(one, other, f"{path}.{place}")
    elif isinstance(wanted, list):
        yield path, f"{len(wanted)} entries", f"{len(got)}"
    elif isinstance(wanted, float) and isinstance(got, (int, float)):
        if not math.isclose(wanted, got, rel_tol=1e-6, abs_tol=1e-9):
            yield path, wanted, got
    elif wanted != got:
        yield path, wanted, got
