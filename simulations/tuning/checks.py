"""Reading an experiment that is to be tuned, and reporting every mistake at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdfed.config import Experiment, parse_set, read_mapping, unrelated
from kdfed.config.merging import undotted
from kdfed.config.tuning import TuningSettings
from kdfed.errors import ConfigError, Mistake, near, shown
from kdfed.preflight import check_data
from simulations.engines.checks import refuse_devices
from simulations.experiments import examine_experiment, merge
from simulations.tuning.space import (
    MOST_POINTS,
    alone,
    candidates,
    every_trial,
    points,
    with_changes,
)
from simulations.tuning.trial import tuning_settings


@dataclass(frozen=True)
class Plan:
    """What is tuned.

    Parameters
    ----------
    values
        The experiment as its file has it, overrides put in: what ``tuned.yaml`` is made of.
    experiment
        What that means, checked.
    """

    values: Mapping[str, Any]
    experiment: Experiment

    @property
    def tuning(self) -> TuningSettings:
        """The section that says how."""
        assert self.experiment.tuning is not None, "it was checked"
        return self.experiment.tuning


def load_tuning(path: str | Path, assignments: Sequence[str] = ()) -> Plan:
    """Read an experiment that is to be tuned, and check everything that can be before a trial is run.

    Parameters
    ----------
    path
        The YAML file.
    assignments
        ``key=value`` strings as given to ``--set``.

    Raises
    ------
    ConfigError
        Every mistake at once: those of the experiment, and values of a search space that its arm refuses.
        That participants are devices is told alone: nothing of the rest can be tried.
    """
    experiment, mistakes = examine_experiment(path, assignments)
    if experiment is not None:
        refuse_devices(experiment)
    values = undotted(merge(read_mapping(Path(path)), parse_set(assignments)))
    if experiment is not None:
        own = list(_of_the_section(experiment, values))
        if not mistakes and experiment.tuning is not None:
            own = list(dict.fromkeys([*own, *_of_values(Plan(values, experiment), {m.key for m in own})]))
        mistakes += unrelated(own, mistakes)
    if mistakes or experiment is None:
        raise ConfigError(str(path), mistakes)
    return Plan(values, experiment)


def _of_the_section(experiment: Experiment, values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what is wrong with the section itself."""
    tuning, baseline = experiment.tuning, experiment.baseline_arm
    if tuning is None:
        yield Mistake(
            "tuning", "is required: what is searched, e.g. {arms: {cold: {local.lr: [0.02, 0.05]}}}"
        )
        return
    written = values.get("arms", {})
    for name in tuning.arms:
        if name not in written:
            yield Mistake(
                f"tuning.arms.{name}", f"expected the name of an arm, got {shown(name)}{near(name, written)}"
            )
    for name in tuning.by_hand:
        if name not in tuning.arms:
            hint = near(name, tuning.arms)
            yield Mistake(f"tuning.by-hand.{name}", f"expected an arm that is tuned, got {shown(name)}{hint}")
    if baseline not in tuning.arms:
        yield Mistake(
            "tuning.arms",
            f"expected the baseline {baseline!r} among them: what others are compared with is tuned, too",
        )
    splits = experiment.data.splits
    shares = [splits.test, splits.evaluation, splits.validation, splits.transfer, tuning.examples]
    total = sum(share for share in shares if not isinstance(share, str))
    if total >= 1:
        yield Mistake(
            "tuning.examples",
            f"expected a share that leaves examples for participants, got {total:g} in all splits",
        )
    for name, space in tuning.arms.items():
        count = points(space)
        if count > MOST_POINTS:
            yield Mistake(f"tuning.arms.{name}", f"expected at most {MOST_POINTS} points, got {count}")
        if name not in written or name == baseline or experiment.arm(name).start == "random":
            continue
        for key in space:
            if key.partition(".")[0] == "server":
                yield Mistake(
                    f"tuning.arms.{name}.{key}",
                    "an arm with a warm start keeps the server of the tuned baseline; to try another, tune a "
                    "cold arm with it, too",
                )


def _of_values(plan: Plan, wrong: Set[str]) -> Iterator[Mistake]:
    """Yield what is wrong with the arms on the tuning data, and with single values of their spaces.

    ``wrong`` are the keys of the section that are known to be.
    """
    values, tuning = plan.values, plan.tuning
    tuned = {name: space for name, space in tuning.arms.items() if f"tuning.arms.{name}" not in wrong}
    if not tuned or "tuning.examples" in wrong:
        return
    known = check_data(alone_in_trials(plan, values, next(iter(tuned))))
    yield from known
    if known:
        return
    for name, space in tuned.items():
        for key, options in space.items():
            if f"tuning.arms.{name}.{key}" in wrong:
                continue
            found: dict[str, list[int]] = {}
            for index, value in enumerate(options):
                for message in _refused(plan, name, key, value):
                    found.setdefault(message, []).append(index)
            for message, indices in found.items():
                everywhere = len(indices) == len(options)
                for place in [""] if everywhere else [f".{index}" for index in indices]:
                    yield Mistake(f"tuning.arms.{name}.{key}{place}", message)
    if not wrong:
        yield from _too_few(plan)


def _refused(plan: Plan, name: str, key: str, value: object) -> list[str]:
    """Return why an arm refuses a value; nothing where it takes it."""
    try:
        experiment = alone_in_trials(plan, with_changes(plan.values, name, {key: value}), name)
        mistakes: Sequence[Mistake] = check_data(experiment)
    except ConfigError as error:
        mistakes = error.mistakes
    prefix, messages = f"arms.{name}.", []
    for mistake in mistakes:
        where = mistake.key.removeprefix(prefix)
        messages.append(mistake.message if where == key else f"{where}: {mistake.message}")
    return messages


def alone_in_trials(plan: Plan, values: Mapping[str, Any], name: str) -> Experiment:
    """Return the experiment of one arm with the seeds and the data of trials."""
    experiment = alone(values, name)
    data = tuning_settings(experiment.data, plan.tuning.examples)
    return experiment.model_copy(update={"data": data, "seeds": plan.tuning.seeds})


def _too_few(plan: Plan) -> Iterator[Mistake]:
    """Yield where the baseline cannot get as many trials as were made by hand for another arm."""
    tuning, baseline = plan.tuning, plan.experiment.baseline_arm
    own = tuning.by_hand.get(baseline, 0)
    most = every_trial(tuning) - own
    count = own + len(candidates(plan.values, baseline, tuning.arms[baseline], tuning.seeds[0], most))
    for name, made in tuning.by_hand.items():
        if made >= count:
            yield Mistake(
                f"tuning.arms.{baseline}",
                f"expected a space with more points than the {made} trials of {name!r} by hand, got {count}: "
                "the baseline gets at least as many",
            )
