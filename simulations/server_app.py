"""The ServerApp: read the experiment, run seeds x arms, write records, then the report.

The only composition root: everything that an arm needs is put together here.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from kdfed import convergence, wire
from kdfed.config import Experiment, load_experiment, split_set
from kdfed.data import PreparedData, prepare
from kdfed.errors import ConfigError, KdfedError, Mistake, RunError
from kdfed.events import PROGRESS, Event, OnEvent, ignore
from kdfed.partition import Partition, class_counts, partition_of
from kdfed.preflight import check_data
from kdfed.records import Outcome, RoundRecord, RunFolder, summarise, weights_sha256
from strategies.arm import ArmConfig, ServerData, initial_state
from strategies.catalogue import make_strategy
from strategies.pre_consolidation import PreConsolidation

log = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run-config names."""
    progress = _progress_file(os.environ.get(PROGRESS))

    def on_event(event: Event) -> None:
        progress(event)
        _log(event)

    try:
        experiment, out = _from_run_config(context.run_config)
        mistakes = check_data(experiment)
        if mistakes:
            raise ConfigError(str(context.run_config["experiment"]), mistakes)
        run_experiment(grid, experiment, RunFolder.open_for(out, experiment), "flower", on_event)
        log.info("records and report: %s", out)
    except Exception as error:
        message = str(error) if isinstance(error, KdfedError) else f"{type(error).__name__}: {error}"
        on_event(Event(arm="", seed=0, phase="failed", message=message))
        raise


@dataclass
class _Results:
    records: list[RoundRecord] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def run_experiment(
    grid: Grid, experiment: Experiment, folder: RunFolder, engine: str, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """Run every arm of every seed, and leave the records of DESIGN behind.

    Parameters
    ----------
    grid
        The network.
    experiment
        Checked already.
    folder
        Opened for this experiment.
    engine
        The engine's name, for the record.
    on_event
        Told every step.

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    RunError
        If an arm could not go on. Whatever is raised, the summary of what was recorded is written first.
    """
    torch.set_num_threads(experiment.threads)
    data = prepare(experiment.data)
    results = _Results()
    failure: Exception | None = None
    try:
        for seed in experiment.seeds:
            _run_seed(grid, experiment, data, seed, folder, results, on_event)
    except Exception as error:
        failure = error
    summary = summarise(experiment, engine, results.records, results.outcomes, _partitions(experiment, data))
    folder.write_summary(summary)
    if results.records:
        from simulations.report import build_report

        build_report(folder.path)
    if failure is not None:
        raise failure
    on_event(Event(arm="", seed=experiment.seeds[-1], phase="done"))
    return summary


def _run_seed(
    grid: Grid,
    experiment: Experiment,
    data: PreparedData,
    seed: int,
    folder: RunFolder,
    results: _Results,
    on_event: OnEvent,
) -> None:
    """Run the baseline, whose best accuracy sets relative targets, then the other arms."""
    shared = server_data(data)
    baseline_best = float("nan")

    def on_record(record: RoundRecord) -> None:
        results.records.append(record)
        folder.append(record)

    for name in experiment.arm_order:
        arm = experiment.arm(name)
        sets_targets = name == experiment.baseline_arm and experiment.has_relative_targets
        targets = (
            ()
            if sets_targets
            else tuple(convergence.resolve_target(target, baseline_best) for target in experiment.targets)
        )
        config = ArmConfig(
            arm=arm,
            data=shared,
            seed=seed,
            name=name,
            targets=targets,
            never_stop=sets_targets,
            simulation=wire.simulation_record(arm, seed, folder.store_path(name, seed)),
            on_record=on_record,
            on_event=on_event,
        )
        start = ArrayRecord(dict(initial_state(arm, shared, seed)))
        try:
            result = PreConsolidation(make_strategy(config), config).start(
                grid, start, arm.rounds.max, arm.server.deadlines.train
            )
        except Exception as error:
            results.outcomes.append(Outcome(name, seed, "failed", ""))
            if isinstance(error, KdfedError):
                raise RunError(f"arm {name}, seed {seed}: {error}") from error
            raise
        state = dict(result.arrays.to_torch_state_dict())
        folder.save_model(name, seed, state)
        consolidation = None
        if result.consolidation is not None:
            consolidation = {"method": arm.consolidation.method, **asdict(result.consolidation)}
        results.outcomes.append(Outcome(name, seed, result.stopped, weights_sha256(state), consolidation))
        if name == experiment.baseline_arm:
            baseline_best = max(record.accuracy for record in result.records)


def server_data(data: PreparedData) -> ServerData:
    """Return what the server holds of a data set: the held-out splits, and nothing of the train split."""
    splits = data.splits
    return ServerData(
        transfer=data.examples(splits.transfer),
        validation=data.examples(splits.validation),
        test=data.examples(splits.test),
        transfer_inputs=data.dataset.inputs[splits.transfer],
        classes=data.classes,
        task=data.task,
    )


def _partitions(experiment: Experiment, data: PreparedData) -> list[dict[str, Any]]:
    """Describe who holds which classes, for the summary."""
    return [
        partition_entry(data, seed, partition_of(data, experiment.partition, seed))
        for seed in experiment.seeds
    ]


def partition_entry(data: PreparedData, seed: int, partition: Partition) -> dict[str, Any]:
    """Return one seed's entry of ``partitions`` in ``summary.json``.

    Its ``counts`` are those of the first 100 participants, [participants, classes].
    """
    counts = class_counts(partition, data.strata, len(data.strata_names), participants=100)
    return {
        "seed": seed,
        "participants": len(partition),
        "moved": partition.moved,
        "unused": partition.unused,
        "class_names": list(data.strata_names),
        "counts": counts.tolist(),
    }


def _from_run_config(run_config: Any) -> tuple[Experiment, Path]:
    """Read the run-config keys ``experiment``, ``set``, ``seeds`` and ``out``."""
    named = Path(str(run_config["experiment"]))
    shipped = Path(__file__).parent / named
    path = shipped if not named.is_absolute() and not named.exists() and shipped.exists() else named
    seeds = str(run_config["seeds"]).split()
    experiment = load_experiment(path, split_set(str(run_config["set"])), seeds or None)
    out = str(run_config["out"])
    if not Path(out).is_absolute():
        wanted = "expected an absolute path, because Flower's working directory is not yours"
        raise ConfigError("run-config", [Mistake("out", f"{wanted}, got {out!r}")])
    return experiment, Path(out)


def _log(event: Event) -> None:
    """Log what `flwr run --stream` and `flwr log` should show: phases, and one line an evaluation."""
    if event.phase == "failed":
        log.error("%s", event.message)
    elif event.phase == "rounds":
        log.info(
            "%s, seed %d: round %d of %d, accuracy %.3f",
            event.arm,
            event.seed,
            event.step,
            event.steps,
            event.accuracy,
        )
    elif event.step == 0 and event.arm:
        log.info("%s, seed %d: %s", event.arm, event.seed, event.phase)


def _progress_file(path: str | None) -> OnEvent:
    if path is None:
        return ignore

    def append(event: Event) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event.to_json()) + "\n")

    return append
