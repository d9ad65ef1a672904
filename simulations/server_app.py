"""The ServerApp: read the experiment, run seeds x arms, write records, then the report.

The only composition root: everything that an arm needs is put together here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from kdfed.config import Experiment, server_labels, split_set, with_horizon
from kdfed.data import PreparedData, prepare
from kdfed.device import exact_convolutions, resolve_device
from kdfed.device_data import DeviceData
from kdfed.errors import ConfigError, KdfedError, Mistake, RecordError, RunError, one_line, shown
from kdfed.events import FOLDER, OVERWRITE, PROGRESS, Event, OnEvent, ignore
from kdfed.messages import Simulation
from kdfed.named import ends_program, search_in
from kdfed.outside import code_of, models_of
from kdfed.partition import Partition, class_counts, partition_of
from kdfed.preflight import check_data
from kdfed.private.flwr import is_network
from kdfed.reasons import reason_of
from kdfed.records import DataFacts, Failure, Outcome, RunFolder, Stopped, summarise, versions, weights_sha256
from kdfed.saved import Card
from simulations.experiments import found_experiment, load_experiment
from simulations.server_data import held_out_data, server_data
from simulations.stream import Stream
from strategies.arm import initial_state
from strategies.arm_config import ArmConfig, HeldOut, ServerData
from strategies.catalogue import make_strategy
from strategies.closed_form import advice_before
from strategies.pre_consolidation import PreConsolidation
from strategies.roster import FILE as ROSTER
from strategies.roster import Devices, Roster

log = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run-config names."""
    progress = _progress_file(os.environ.get(PROGRESS))
    try:
        experiment, out = _from_run_config(context.run_config)
        _check_network(grid, experiment, str(context.run_config["experiment"]))
        mistakes = check_data(experiment)
        if mistakes:
            raise ConfigError(str(context.run_config["experiment"]), mistakes)
        folder = RunFolder.open_for(out, experiment, overwrite=OVERWRITE in os.environ)
        stream = Stream(experiment)

        def on_event(event: Event) -> None:
            progress(event)
            stream(event)

        with _streamed():
            run_experiment(grid, experiment, folder, "flower", on_event)
        log.info("records and report: %s", out)
    except Exception as error:
        log.error("%s", _reason_text(error))
        progress(Event(arm="", seed=0, phase="failed", message=_reason_text(error)))
        raise


def run_experiment(
    grid: Grid,
    experiment: Experiment,
    folder: RunFolder,
    engine: str,
    on_event: OnEvent = ignore,
    report: bool = True,
) -> dict[str, Any]:
    """Run every arm of every seed that is not finished, and leave its records in the run folder.

    An arm that fails does not stop the others; its reason is recorded.

    Parameters
    ----------
    grid
        The network.
    experiment
        Checked already.
    folder
        Opened for this experiment; it is closed on leaving.
    engine
        The engine's name, for the record.
    on_event
        Called with every event.
    report
        Whether pictures and page are made, which takes two seconds.

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    RunError
        If an arm could not go on, or the report not be made: once everything else is done.
    RecordError
        If the records cannot be written.

    Notes
    -----
    Whatever is raised, Ctrl-C included, the summary of what was recorded is written first.
    """
    torch.set_num_threads(experiment.threads)
    exact_convolutions()
    with folder:
        data = prepare(experiment.loaded_data)
        experiment = _with_horizon(folder.experiment)
        folder.begin(experiment)
        failures: list[Failure] = []
        roster = _roster(experiment, folder)
        with _logging_to(folder.log_path):
            try:
                for seed in experiment.seeds:
                    _run_seed(grid, experiment, data, seed, folder, failures, on_event, roster)
            except BaseException as error:
                unfinished: Stopped = "failed" if isinstance(error, Exception) else "interrupted"
                try:
                    conclude(experiment, folder, engine, failures, unfinished, report)
                except Exception as other:
                    log.error("%s", other)
                raise
            summary, problem = conclude(experiment, folder, engine, failures, report=report)
    problems = [*map(str, failures), *([problem] if problem else [])]
    if problems:
        raise RunError("\n".join(problems))
    on_event(Event(arm="", seed=experiment.seeds[-1], phase="done"))
    return summary


def _roster(experiment: Experiment, folder: RunFolder) -> Roster | None:
    """Return who is known of the devices, from an earlier start; None of a simulation."""
    if not experiment.data.of_devices:
        return None
    path = folder.path / ROSTER
    if folder.overwrites:
        path.unlink(missing_ok=True)
    return Roster(path)


def _with_horizon(experiment: Experiment) -> Experiment:
    """Return an experiment whose horizon is a number; it takes a run of the baseline to find one."""
    if experiment.rounds.horizon != "auto":
        return experiment
    from simulations.tuning.horizon import baseline_curves, horizon_of  # which runs arms like this module

    return with_horizon(experiment, *horizon_of(experiment, baseline_curves(experiment)))


def conclude(
    experiment: Experiment,
    folder: RunFolder,
    engine: str,
    failures: Sequence[Failure] = (),
    unfinished: Stopped = "failed",
    report: bool = True,
) -> tuple[dict[str, Any], str]:
    """Sum up what a run folder holds, and make the report.

    Parameters
    ----------
    experiment, folder, engine
        What was run, and where.
    failures
        Runs that could not go on.
    unfinished
        What became of runs that neither finished nor failed.
    report
        Whether the report is made.

    Returns
    -------
    tuple of dict and str
        What ``summary.json`` holds; and why the report could not be made, empty when it was.

    Raises
    ------
    RecordError
        If the summary cannot be written.
    """
    records = folder.read_rounds()
    data = prepare(experiment.loaded_data)
    summary = summarise(
        experiment,
        engine,
        records,
        folder.read_outcomes(),
        _partitions(experiment, data),
        failures,
        unfinished,
        data_facts(experiment, data),
    )
    folder.write_summary(summary)
    if not (records and report):
        return summary, ""
    try:
        from simulations.report import build_report

        build_report(folder.path)
    except Exception as error:  # whatever a drawing library raises: the records are what counts
        logging.getLogger("kdfed").exception("the report could not be made")
        return summary, (
            f"the records are complete, but the report could not be made: {_reason_text(error)}; "
            f"`kdfed report {folder.path}` tries again"
        )
    return summary, ""


def _run_seed(
    grid: Grid,
    experiment: Experiment,
    data: PreparedData,
    seed: int,
    folder: RunFolder,
    failures: list[Failure],
    on_event: OnEvent,
    roster: Roster | None = None,
) -> None:
    """Run every arm that is not finished; arms that are compared run equally long."""
    read: dict[str, tuple[ServerData, HeldOut]] = {}  # by what models read
    for name in experiment.arm_order:
        arm = experiment.arm(name)
        if (name, seed) not in folder.finished:
            model, device = arm.model, resolve_device(arm.device) if arm.model.reads else "cpu"
            if model.reads not in read:
                read[model.reads] = server_data(data, model, device), held_out_data(data, model, device)
            shared, held_out = read[model.reads]
            config = ArmConfig(
                arm=arm,
                data=shared,
                held_out=held_out,
                seed=seed,
                name=name,
                targets=tuple(target for target in experiment.targets if isinstance(target, float)),
                never_stop=len(experiment.arms) > 1,
                simulation=Simulation.of(arm, seed, folder.store_path(name, seed), experiment.folder)
                if roster is None
                else None,
                devices=None if roster is None else _devices(experiment, name, seed, data, roster),
                card=Card.of(arm.model, arm.data, data),
                on_record=folder.append,
            )
            failure = _run_arm(grid, config, folder, on_event)
            if failure is not None:
                failures.append(failure)
                on_event(Event(arm=name, seed=seed, phase="failed", message=failure.reason))
        else:
            on_event(Event(arm=name, seed=seed, phase="done"))


def _devices(experiment: Experiment, arm: str, seed: int, data: PreparedData, roster: Roster) -> Devices:
    """Return what the devices of one arm and seed are told; what an earlier start kept is not read again."""
    run = f"{experiment.name}/{arm}-{seed}/{uuid4().hex[:16]}"
    return Devices(DeviceData.of(experiment.data, data, experiment.precision, run), roster)


def _run_arm(grid: Grid, config: ArmConfig, folder: RunFolder, on_event: OnEvent) -> Failure | None:
    """Run one arm and record how it ended; return why it could not go on."""
    name, seed, arm = config.name, config.seed, config.arm
    phase, horizon = "start", arm.rounds.horizon
    assert horizon != "auto", "it was found before"

    def follow(event: Event) -> None:
        nonlocal phase
        phase = event.phase
        on_event(event)

    config = replace(config, on_event=follow)
    try:
        advice = advice_before(config)
        if advice is not None:
            words = f"a start that is {'' if advice.pays else 'not '}expected to pay: {advice.why}"
            follow(Event(arm=name, seed=seed, phase="start", message=words))
        made_of = versions(code_of(arm), models_of(arm))
        start = ArrayRecord(dict(initial_state(arm, config.data, seed)))
        result = PreConsolidation(make_strategy(config), config).start(
            grid, start, horizon, arm.server.deadlines.train
        )
        state = dict(result.arrays.to_torch_state_dict())
    except RecordError:
        raise
    except (Exception, SystemExit) as error:  # an arm's own code may call exit
        if ends_program(error):
            raise
        if not isinstance(error, KdfedError):
            logging.getLogger("kdfed").exception("arm %s, seed %d", name, seed)
        return Failure(name, seed, phase, _reason_text(error))
    consolidation = None
    if result.consolidation is not None:
        consolidation = {"method": arm.consolidation.method, **asdict(result.consolidation)}
    outcome = Outcome(
        name,
        seed,
        result.stopped,
        weights_sha256(state),
        consolidation,
        len(result.records),
        made_of,
        result.refits,
    )
    assert config.card is not None
    folder.finish(outcome, state, config.card.metadata())
    return None


def _reason_text(error: BaseException) -> str:
    return str(error) if isinstance(error, KdfedError) else one_line(reason_of(error))


@contextmanager
def _streamed() -> Iterator[None]:
    """Let `flwr run --stream` and `flwr log` show kdfed's warnings too."""
    logger, handlers = logging.getLogger("kdfed"), logging.getLogger("flwr").handlers
    before = list(logger.handlers)
    logger.handlers += [handler for handler in handlers if handler not in before]
    try:
        yield
    finally:
        logger.handlers[:] = before


class _LogFile(logging.FileHandler):
    """A log that is given up where the disk is full: the run's own error says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing."""


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Keep kdfed's warnings and tracebacks in a file, which is made with the first of them."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("kdfed")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def data_facts(experiment: Experiment, data: PreparedData) -> DataFacts:
    """Return what the summary says of the data."""
    splits = data.splits
    arms = (experiment.arm(name) for name in experiment.arm_order if name not in experiment.controls)
    sizes = len(splits.validation), len(splits.transfer)
    starts = [arm for arm in map(experiment.arm, experiment.arm_order) if arm.start == "server"]
    return DataFacts(
        evaluation_examples=len(splits.evaluation),
        majority=data.majority(splits.evaluation),
        server_labels=max(server_labels(arm, *sizes) for arm in arms),
        control_labels=max((server_labels(arm, *sizes) for arm in starts), default=sizes[0]),
    )


def _partitions(experiment: Experiment, data: PreparedData) -> list[dict[str, Any]]:
    """Describe who holds which classes, for the summary; of devices nobody knows."""
    if experiment.data.of_devices:
        return []
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


def _check_network(grid: Grid, experiment: Experiment, name: str) -> None:
    """Refuse a simulation where the nodes are real ones, before anything is sent or loaded.

    Raises
    ------
    ConfigError
        If the data of the experiment's participants are no devices' own.
    """
    source = experiment.data.source
    if is_network(grid) and not experiment.data.of_devices:
        problem = (
            f"expected 'devices', because this SuperLink has real nodes, which train on data of their own, "
            f"got {shown(source)}: give such an experiment, or start this one with a connection to Flower's "
            'simulation runtime (address = ":local:")'
        )
        raise ConfigError(name, [Mistake("data.source", problem)])


def _from_run_config(run_config: Any) -> tuple[Experiment, Path]:
    """Read the run-config keys ``experiment``, ``set``, ``seeds`` and ``out``."""
    path = found_experiment(str(run_config["experiment"]))
    seeds = str(run_config["seeds"]).split()
    folder = Path(os.environ.get(FOLDER, path.absolute().parent))
    search_in(folder)
    experiment = load_experiment(path, split_set(str(run_config["set"])), seeds or None).found_in(folder)
    out = str(run_config["out"])
    if not Path(out).is_absolute():
        wanted = "expected an absolute path, because Flower's working directory is not yours"
        raise ConfigError("run-config", [Mistake("out", f"{wanted}, got {out!r}")])
    return experiment, Path(out)


def _progress_file(path: str | None) -> OnEvent:
    if path is None:
        return ignore

    def append(event: Event) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event.to_json()) + "\n")

    return append
