"""Reading an experiment file, and reporting every mistake at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdfed.config.checks import TRAINING, UNTRAINED, cross_checks
from kdfed.config.controls import impossible_controls, unlike_controls, with_controls
from kdfed.config.document import DocumentError, parse
from kdfed.config.experiment import ARM_KEYS, REPLACEABLE_KEYS, Experiment, experiment_type, validate
from kdfed.config.merging import merge, undotted
from kdfed.config.mistakes import describe_all, related, remove_all
from kdfed.config.overrides import sections_without_effect, unused
from kdfed.config.recipe import RECIPE, with_recipes
from kdfed.data import prepare
from kdfed.errors import ConfigError, DataError, Mistake, near, shown
from kdfed.families import ALL_FAMILIES
from kdfed.family import Families
from kdfed.named import ends_program, search_in, text_of_error
from kdfed.partition import in_data
from kdfed.paths import user_path
from kdfed.settings import kebab, with_batch_norm


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` assignments; keys are dotted, values are YAML.

    Raises
    ------
    ConfigError
        If an assignment has no ``=``, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    mistakes = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key or not key.isprintable():
            mistakes.append(Mistake("", f"expected key=value, got {shown(assignment)}"))
            continue
        try:
            value = parse(text, levels=key.count("."))
        except DocumentError as error:
            mistakes.append(Mistake(key, f"expected a YAML value, got {shown(text)}: {error}"))
            continue
        values = merge(values, {key: value})
    if mistakes:
        raise ConfigError("--set", mistakes)
    return values


def split_set(text: str) -> list[str]:
    """Split the run-config key ``set`` at white space, except inside quotes.

    Raises
    ------
    ConfigError
        If a quote is not closed.
    """
    words = re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", text)
    if "".join("".join(words).split()) != "".join(text.split()):
        raise ConfigError("set", [Mistake("", f"expected every quote to be closed, got {shown(text)}")])
    return words


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(str(path), [Mistake("", f"expected a readable YAML file: {reason}")]) from error
    except DocumentError as error:
        raise ConfigError(str(path), [Mistake("", f"expected YAML: {error}")]) from error
    if not isinstance(values, dict):
        got = type(values).__name__
        raise ConfigError(str(path), [Mistake("", f"expected a mapping of keys, got {got}")])
    return values


def load_experiment(
    path: str | Path,
    families: Families,
    assignments: Sequence[str] = (),
    seeds: Sequence[str | int] | None = None,
) -> Experiment:
    """Read an experiment file, replace keys, check everything.

    Parameters
    ----------
    path
        The YAML file. What it names ``package.module:name`` is looked for in its folder too.
    families
        What an experiment can choose from.
    assignments
        ``key=value`` strings as given to ``--set``.
    seeds
        Replaces ``seeds``; words are reported like any other mistake.

    Returns
    -------
    Experiment
        Relative paths in it are resolved against the current directory.

    Raises
    ------
    ConfigError
        Every mistake at once: key, what was expected, what arrived, and a near match. An assignment that no
        arm uses is one.
    """
    experiment, mistakes = examine_experiment(path, families, assignments, seeds)
    return _faultless(experiment, mistakes, str(path))


def examine_experiment(
    path: str | Path,
    families: Families,
    assignments: Sequence[str] = (),
    seeds: Sequence[str | int] | None = None,
) -> tuple[Experiment | None, list[Mistake]]:
    """Read an experiment like :func:`load_experiment`, and return its mistakes.

    Returns
    -------
    experiment, mistakes
        With mistakes, an experiment from which they were removed, so that more can be looked for; None where
        that is not possible.

    Raises
    ------
    ConfigError
        If the file or an assignment is not YAML.
    """
    changes = parse_set(assignments)
    values, folder = read_mapping(Path(path)), Path(path).absolute().parent
    search_in(folder)
    values = merge(values, changes, families.open_to([values, changes])[0])
    twice = []
    if seeds is not None:
        values["seeds"] = [_number(seed) for seed in seeds]
        if "seeds" in changes:
            twice.append(Mistake("seeds", "is given twice, by set and by seeds; remove one"))
    experiment, mistakes = _check(_resolve_paths(values), families)
    mistakes += unrelated(twice, mistakes)
    if experiment is not None:
        mistakes += unrelated(unused(experiment, changes), mistakes)
        experiment = experiment.found_in(folder)
    return experiment, mistakes


def _number(seed: str | int) -> str | int:
    return int(seed) if isinstance(seed, str) and re.fullmatch(r"-?[0-9]{1,20}", seed) else seed


def build_experiment(values: Mapping[str, Any], families: Families, source: str = "experiment") -> Experiment:
    """Check an experiment that was read already; see :func:`load_experiment`."""
    return _faultless(*_check(_resolve_paths(merge({}, values)), families), source)


def read_recorded(path: Path) -> Experiment:
    """Read an experiment that was checked before it was recorded; no code of a user's is imported.

    Raises
    ------
    ConfigError
        If it is none.
    """
    values = upgraded(read_mapping(path))
    families = ALL_FAMILIES.with_placeholders(values)
    kind = experiment_type(families)
    try:
        return validate(kind, values, families)
    except ValidationError as error:
        raise ConfigError(str(path), describe_all(error.errors(), values, kind)) from error


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded experiment as this release writes it.

    The first version had ``rounds.max``, no evaluation split (it read curves on the validation split), and
    targets that were shares of the baseline's best accuracy. Before backbones had ``batch-norm``
    their trained stages took the statistics of each batch.
    """
    model = values.get("model")
    if isinstance(model, Mapping):
        values = {**values, "model": with_batch_norm(model)}
    rounds = values.get("rounds")
    if not (isinstance(rounds, Mapping) and "max" in rounds):
        return dict(values)
    kept = {key: value for key, value in rounds.items() if key == "stop-at-target"}
    found = {
        **values,
        "rounds": {**kept, "horizon": rounds["max"], "why": "the most rounds of an earlier release"},
    }
    data, targets = values.get("data"), values.get("targets")
    if isinstance(data, Mapping) and isinstance(data.get("splits"), Mapping):
        found["data"] = {**data, "splits": {**data["splits"], "evaluation": 0.0}}
    if isinstance(targets, list):
        found["targets"] = [
            target.replace("-of-best", "-of-converged") if isinstance(target, str) else target
            for target in targets
        ]
    return found


def _faultless(experiment: Experiment | None, mistakes: Sequence[Mistake], source: str) -> Experiment:
    if mistakes or experiment is None:
        raise ConfigError(source, mistakes)
    return experiment


def _check(values: dict[str, Any], families: Families) -> tuple[Experiment | None, list[Mistake]]:
    """Collect every mistake; those that only show once others are gone included."""
    arms = values.get("arms")
    plain = {**values, "arms": undotted_arms(arms)} if isinstance(arms, Mapping) else values
    families, unknown = families.open_to(plain)
    mistakes = [Mistake(key, message) for key, message in unknown]
    kind = experiment_type(families)
    experiment: Experiment | None = None
    pruned = json.loads(json.dumps(values, default=str))
    mistakes += _remove_training(pruned)
    for _ in range(10):
        try:
            experiment = validate(kind, pruned, families)
            break
        except ValidationError as error:
            problems = error.errors()
            mistakes += unrelated(describe_all(problems, pruned, kind), mistakes)
            remove_all(pruned, problems, families)
        except (Exception, SystemExit) as error:
            return None, [*mistakes, _unmade(error)]
    if experiment is None:
        return None, mistakes
    with suppress(Exception):  # the arm's own mistakes are told below
        experiment = with_recipes(experiment)
    try:
        experiment.to_yaml()
    except (Exception, SystemExit) as error:
        return None, [*mistakes, _unmade(error)]
    known = [mistake.key for mistake in mistakes]
    if experiment.partition.participants == 0:
        if {key.partition(".")[0] for key in known}.isdisjoint({"", "data", "partition"}):
            experiment, more = _in_data(experiment)
            mistakes += more
        if experiment.partition.participants == 0:
            known.append("partition.participants")
    experiment, more = _check_arms(experiment, known)
    mistakes += unrelated(more, mistakes)
    more = list(_check_whole(experiment))
    mistakes += unrelated(more, mistakes)
    if more or not experiment.controls:
        return experiment, mistakes
    experiment = with_controls(experiment)
    known = [mistake.key for mistake in mistakes]
    controlled, more = _check_arms(experiment, known)
    return controlled, mistakes + unrelated([found for found in more if found not in mistakes], mistakes)


def _remove_training(values: dict[str, Any]) -> Iterator[Mistake]:
    """Remove keys of training that stand beside ``teachers.from``, also where they say the default.

    A resolved experiment names every key, and says nothing by it.
    """
    training, arms = {kebab(name) for name in TRAINING}, values.get("arms")
    sections = [("", values)]
    sections += [(f"arms.{name}.", arm) for name, arm in (arms if isinstance(arms, dict) else {}).items()]
    for where, section in sections:
        teachers = undotted(section).get("teachers") if isinstance(section, dict) else None
        if not isinstance(teachers, dict) or teachers.get("from") is None or training <= set(teachers):
            continue
        for key in sorted(training & set(teachers)):
            yield Mistake(f"{where}teachers.{key}", UNTRAINED)
            section.pop(f"teachers.{key}", None)
            if isinstance(section.get("teachers"), dict):
                section["teachers"].pop(key, None)


def _in_data(experiment: Experiment) -> tuple[Experiment, list[Mistake]]:
    """Return the experiment with as many participants as its data have; what they lack is a mistake."""
    try:
        partition = in_data(experiment.partition, prepare(experiment.data))
    except DataError as error:
        return experiment, [Mistake(error.key, str(error))]
    return experiment.model_copy(update={"partition": partition}), []


def _check_whole(experiment: Experiment) -> Iterator[Mistake]:
    """Yield what is wrong with an experiment as a whole, whose arms are right."""
    rounds, several = experiment.rounds, len(experiment.arms) + len(experiment.controls) > 1
    if experiment.loaded_data.splits.evaluation == 0:
        section = "data" if experiment.server_data is None else "server-data"
        yield Mistake(
            f"{section}.splits.evaluation", "expected a share above 0, on which rounds are counted, got 0"
        )
    for name in ("splits", "limit"):
        if experiment.data.of_devices and name in experiment.data.model_fields_set:
            yield Mistake(
                f"data.{name}",
                "has no effect with data.source 'devices': each device trains on all that it has, and the "
                f"server's examples are cut by server-data.{name}; remove it",
            )
    stops = {"rounds.stop-at-target": rounds.stop_at_target, "rounds.plateau.stop": rounds.plateau.stop}
    for key, stop in stops.items():
        if stop and several:
            yield Mistake(
                key, "expected false, because arms that are compared run equally long; or keep a single arm"
            )
    if rounds.stop_at_target and not several and experiment.has_relative_targets:
        yield Mistake(
            "rounds.stop-at-target",
            "expected targets that are accuracies, because what the arm converges to is not known before its "
            "end; set targets: [0.9], or remove it",
        )
    yield from impossible_controls(experiment)
    yield from unlike_controls(experiment)
    reported = sorted(set(experiment.seeds) & set(experiment.tuning.seeds if experiment.tuning else ()))
    if reported:
        yield Mistake(
            "tuning.seeds",
            "expected other seeds than the experiment's, which are reported, got "
            f"{', '.join(map(str, reported))} in both; change one of them",
        )


def _unmade(error: BaseException, key: str = "") -> Mistake:
    """Say that a class of the user's raised something while its settings were made, or written."""
    if ends_program(error):
        raise error
    return Mistake(
        key, f"expected settings that can be made and written; they raised {text_of_error(error, '')}"
    )


def undotted_arms(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Return arms whose dotted keys are nested mappings."""
    return {name: undotted(arm) if isinstance(arm, Mapping) else arm for name, arm in arms.items()}


def unrelated(found: Iterable[Mistake], known: Iterable[Mistake]) -> list[Mistake]:
    """Return the mistakes whose keys have nothing to do with a mistake that is known already."""
    keys = [mistake.key for mistake in known]
    return [mistake for mistake in found if not any(related(mistake.key, key) for key in keys)]


def _check_arms(experiment: Experiment, known: Collection[str]) -> tuple[Experiment, list[Mistake]]:
    """Return the mistakes of the arms, and the experiment without them."""
    mistakes: list[Mistake] = []
    good: dict[str, dict[str, Any]] = {}
    baseline = experiment.baseline if experiment.baseline in experiment.arms else None
    if experiment.baseline is not None and experiment.baseline not in experiment.arms:
        hint = near(experiment.baseline, experiment.arms)
        mistakes.append(
            Mistake("baseline", f"expected the name of an arm, got {shown(experiment.baseline)}{hint}")
        )
    arm_type, families = experiment.arm_type, experiment.families
    shared = {k: v for k, v in experiment.model_dump(mode="json").items() if k in ARM_KEYS}
    base = validate(arm_type, shared, families)
    base_mistakes = cross_checks(base)
    for name, changes in experiment.arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            mistakes.append(
                Mistake(
                    f"arms.{name}", "expected a name of letters, digits, hyphen and underscore, at most 64"
                )
            )
        fixed = {key for key in undotted(changes) if key not in REPLACEABLE_KEYS}
        for key in sorted(fixed):
            if key in ARM_KEYS or key in {kebab(field) for field in Experiment.model_fields}:
                why = "arms share it: move it to the experiment"
            else:
                why = f"unknown key{near(key, REPLACEABLE_KEYS)}"
            mistakes.append(Mistake(f"arms.{name}.{key}", why))
        kept = {key: value for key, value in undotted(changes).items() if key not in fixed}
        values = merge(base.model_dump(mode="json"), kept, families)
        mistakes += [
            Mistake(f"arms.{name}.{section}", f"has no effect with start: {values['start']}; remove it")
            for section in sections_without_effect(values["start"])
            if section in kept
        ]
        good[name] = {}
        try:
            arm = validate(arm_type, values, families)
            arm.model_dump_json()
        except ValidationError as error:
            for mistake in describe_all(error.errors(), values, arm_type):
                mistakes.append(Mistake(f"arms.{name}.{mistake.key}", mistake.message))
            continue
        except (Exception, SystemExit) as error:
            mistakes.append(_unmade(error, f"arms.{name}"))
            continue
        good[name] = kept
        if arm.start == RECIPE:
            message = "expected 'recipe' in an arm, of which it says what is best, got it in the experiment"
            mistakes.append(Mistake("start", f"{message}; set arms.{name}.start"))
            continue
        for mistake in cross_checks(arm, known):
            key = mistake.key if mistake in base_mistakes else f"arms.{name}.{mistake.key}"
            if Mistake(key, mistake.message) not in mistakes:
                mistakes.append(Mistake(key, mistake.message))
    faultless = experiment.model_copy(update={"arms": good, "baseline": baseline}) if mistakes else experiment
    return faultless, mistakes


_SOURCE_PATH = r"(parquet:|csv:|npz:|folder:|hf:(?=[.~])|torchvision:\w+@)(.+)"
_FILE = r"(file:)(.+)"
_MODEL_PATHS = {
    "start": _FILE,
    "model.weights": _FILE,
    "teachers.model.weights": _FILE,
    "local.model.weights": _FILE,
    "server.models.weights": _FILE,
    "teachers.from": r"()(.+)",
    "teachers.from.file": r"()(.+)",
    "teachers.from.model.weights": _FILE,
}
_DATA_PATHS = dict.fromkeys(("data.source", "server-data.source", "consolidation.proxy.source"), _SOURCE_PATH)
"""Keys that can hold a path, in an experiment or an arm, and what stands before it."""


def _with_paths(
    values: dict[str, Any], patterns: Mapping[str, str], change: Callable[[str, str], str]
) -> dict[str, Any]:
    """Return an experiment whose paths are changed: each by where it stands, with its arm, and the path."""

    def changed(value: Any, key: str, arm: str = "") -> Any:
        if isinstance(value, dict):
            return {part: changed(inner, f"{key}.{part}".lstrip("."), arm) for part, inner in value.items()}
        if isinstance(value, list):
            return [changed(inner, key, f"{arm}/{place}") for place, inner in enumerate(value)]
        match = re.fullmatch(patterns[key], value) if key in patterns and isinstance(value, str) else None
        return value if match is None else match[1] + change(f"{arm}.{key}", match[2])

    result: dict[str, Any] = changed(values, "")
    arms = values.get("arms")
    if isinstance(arms, dict):
        result["arms"] = {name: changed(arm, "", str(name)) for name, arm in arms.items()}
    return result


def _resolve_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute, so that they mean the same in every process."""

    def resolved(_: str, path: str) -> str:
        try:
            return str(user_path(path).absolute())
        except (DataError, OSError):  # nobody's home, or no current directory: whoever reads it says so
            return path

    return _with_paths(values, {**_MODEL_PATHS, **_DATA_PATHS}, resolved)


def model_paths(experiment: Experiment) -> dict[str, str]:
    """Return the files of models that an experiment names: where each stands, and its path."""
    found = dict[str, str]()

    def remember(place: str, path: str) -> str:
        found[place] = path
        return path

    _with_paths(experiment.model_dump(mode="json"), _MODEL_PATHS, remember)
    return found


def moved_models(old: Experiment, new: Experiment) -> dict[str, str]:
    """Return where a new experiment names a file of a model that was moved since an old one.

    The path at that place is neither what it was nor any other that the old one names, but has the same last
    part. What a run records of the file tells whether it is still the same.

    Returns
    -------
    dict
        The old path, by place.
    """
    before = model_paths(old)
    return {
        place: before[place]
        for place, path in model_paths(new).items()
        if place in before and path not in before.values() and Path(before[place]).name == Path(path).name
    }


def written(experiment: Experiment, moved: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys of an experiment, with the files of :func:`moved_models` where they were."""
    values = experiment.model_dump(mode="json")
    return _with_paths(values, _MODEL_PATHS, lambda place, path: moved.get(place, path))
