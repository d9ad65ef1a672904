"""Reading an experiment file, and reporting every mistake at once."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kdfed.config.checks import cross_checks
from kdfed.config.experiment import ARM_KEYS, REPLACEABLE_KEYS, Arm, Experiment, validate
from kdfed.config.merging import merge, undotted
from kdfed.config.mistakes import describe_all, near, related, remove_all
from kdfed.config.sections import kebab
from kdfed.errors import ConfigError, DataError, Mistake
from kdfed.paths import user_path


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with repairs: ``1e-3`` is a number; a repeated key, or one that is no word, is a mistake."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?)$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        problem = ""
        if not isinstance(key_node, yaml.ScalarNode):
            problem = f"expected a word as a key, got {key!r}"
        elif not isinstance(key, str):
            problem = (
                f"expected a word as a key, got {key_node.value!r}, which YAML reads as {key!r}; "
                "write it in quotes"
            )
        elif key in result:
            problem = f"the key {key!r} stands twice; remove one"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""ValueError: a date that does not exist, a number of thousands of digits."""


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
        if not equals or not key.strip():
            mistakes.append(Mistake("", f"expected key=value, got {assignment!r}"))
            continue
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except _NOT_YAML as error:
            mistakes.append(Mistake(key, f"expected a YAML value, got {text!r} ({_one_line(error)})"))
            continue
        values = merge(values, {key.strip(): value})
    if mistakes:
        raise ConfigError("--set", mistakes)
    return values


def split_set(text: str) -> list[str]:
    """Split the run-config key ``set`` at white space, except inside quotes."""
    return re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", text)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(str(path), [Mistake("", f"expected a readable YAML file: {reason}")]) from error
    except _NOT_YAML as error:
        raise ConfigError(str(path), [Mistake("", f"expected YAML: {_one_line(error)}")]) from error
    if not isinstance(values, dict):
        got = type(values).__name__
        raise ConfigError(str(path), [Mistake("", f"expected a mapping of keys, got {got}")])
    return values


def load_experiment(
    path: str | Path, assignments: Sequence[str] = (), seeds: Sequence[str | int] | None = None
) -> Experiment:
    """Read an experiment file, replace keys, check everything.

    Parameters
    ----------
    path
        The YAML file.
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
        Every mistake at once: key, what was expected, what arrived, and a near match.
    """
    experiment, mistakes = examine_experiment(path, assignments, seeds)
    return _faultless(experiment, mistakes, str(path))


def examine_experiment(
    path: str | Path, assignments: Sequence[str] = (), seeds: Sequence[str | int] | None = None
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
    values = merge(read_mapping(Path(path)), parse_set(assignments))
    if seeds is not None:
        values["seeds"] = [_number(seed) for seed in seeds]
    return _check(_resolve_paths(values))


def _number(seed: str | int) -> str | int:
    return int(seed) if isinstance(seed, str) and re.fullmatch(r"-?[0-9]{1,20}", seed) else seed


def build_experiment(values: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Check an experiment that was read already; see :func:`load_experiment`."""
    return _faultless(*_check(_resolve_paths(merge({}, values))), source)


def _faultless(experiment: Experiment | None, mistakes: Sequence[Mistake], source: str) -> Experiment:
    if mistakes or experiment is None:
        raise ConfigError(source, mistakes)
    return experiment


def _check(values: dict[str, Any]) -> tuple[Experiment | None, list[Mistake]]:
    """Collect every mistake; those that only show once others are gone included."""
    mistakes: list[Mistake] = []
    experiment: Experiment | None = None
    pruned = json.loads(json.dumps(values, default=str))
    for _ in range(10):
        try:
            experiment = validate(Experiment, pruned)
            break
        except ValidationError as error:
            problems = error.errors()
            mistakes += unrelated(describe_all(problems, pruned), mistakes)
            remove_all(pruned, problems)
    if experiment is None:
        return None, mistakes
    experiment, more = _check_arms(experiment, [mistake.key for mistake in mistakes])
    return experiment, mistakes + unrelated(more, mistakes)


def unrelated(found: Iterable[Mistake], known: Iterable[Mistake]) -> list[Mistake]:
    """Return the mistakes of whose keys nothing is known yet."""
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
            Mistake("baseline", f"expected the name of an arm, got {experiment.baseline!r}{hint}")
        )
    base = validate(Arm, {k: v for k, v in experiment.model_dump(mode="json").items() if k in ARM_KEYS})
    base_mistakes = cross_checks(base)
    for name, changes in experiment.arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            mistakes.append(
                Mistake(f"arms.{name}", "expected a name of letters, digits, hyphen and underscore")
            )
        fixed = {key for key in undotted(changes) if key not in REPLACEABLE_KEYS}
        for key in sorted(fixed):
            if key in ARM_KEYS or key in {kebab(field) for field in Experiment.model_fields}:
                why = "arms share it: move it to the experiment"
            else:
                why = f"unknown key{near(key, REPLACEABLE_KEYS)}"
            mistakes.append(Mistake(f"arms.{name}.{key}", why))
        kept = {key: value for key, value in undotted(changes).items() if key not in fixed}
        values = merge(base.model_dump(mode="json"), kept)
        mistakes += [
            Mistake(f"arms.{name}.{section}", f"has no effect with start: {values['start']}; remove it")
            for section in _without_effect(values["start"])
            if section in kept
        ]
        good[name] = {}
        try:
            arm = validate(Arm, values)
        except ValidationError as error:
            for mistake in describe_all(error.errors(), values):
                mistakes.append(Mistake(f"arms.{name}.{mistake.key}", mistake.message))
            continue
        good[name] = kept
        for mistake in cross_checks(arm, known):
            key = mistake.key if mistake in base_mistakes else f"arms.{name}.{mistake.key}"
            if Mistake(key, mistake.message) not in mistakes:
                mistakes.append(Mistake(key, mistake.message))
    faultless = experiment.model_copy(update={"arms": good, "baseline": baseline}) if mistakes else experiment
    return faultless, mistakes


def _without_effect(start: object) -> tuple[str, ...]:
    """Return the sections that an arm with this start does not use."""
    if start == "averaged":
        return ("consolidation",)
    unused = start == "random" or str(start).startswith("file:")
    return ("teachers", "consolidation") if unused else ()


_SOURCE_PATH = r"(parquet:|folder:|hf:(?=[.~])|torchvision:\w+@)(.+)"
_PATHS = {
    "data.source": _SOURCE_PATH,
    "consolidation.proxy.source": _SOURCE_PATH,
    "start": r"(file:)(.+)",
}
"""Keys that can hold a path, in an experiment or an arm, and what stands before it."""


def _resolve_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute, so that they mean the same in every process."""

    def resolved(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {part: resolved(inner, f"{key}.{part}".lstrip(".")) for part, inner in value.items()}
        match = re.fullmatch(_PATHS[key], value) if key in _PATHS and isinstance(value, str) else None
        if match is None:
            return value
        try:
            return match[1] + str(user_path(match[2]).absolute())
        except DataError:  # whoever reads the path says so, beside all other mistakes
            return value

    result: dict[str, Any] = resolved(values)
    arms = values.get("arms")
    if isinstance(arms, dict):
        result["arms"] = {name: resolved(arm) for name, arm in arms.items()}
    return result


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
