"""Reading settings from a YAML file, with every mistake at once, without what an experiment needs.

An experiment and the participants' file are read by :mod:`kdfed.config`, which knows families and near
values. A device reads its own file where PyTorch may be broken, and what kdfed wrote itself is read so, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from kdfed.errors import ConfigError, Mistake, near, one_line, shown
from kdfed.settings import Settings

Model = TypeVar("Model", bound=Settings)


def read_settings(file: Path, model: type[Model]) -> Model:
    """Read a YAML file.

    Parameters
    ----------
    file
        Its name stands in the error.
    model
        What it holds.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(file, f"expected a file that can be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, levels without end
        raise _wrong(file, f"expected YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise _wrong(file, f"expected a mapping of keys, got {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(str(file), mistakes_of(error, model)) from error


def _wrong(file: Path, message: str) -> ConfigError:
    return ConfigError(str(file), [Mistake("", message)])


def mistakes_of(error: ValidationError, model: type[Settings]) -> list[Mistake]:
    """Put pydantic's problems into words.

    Parameters
    ----------
    error
        Of reading a mapping as ``model``.
    model
        Whose keys are known.
    """
    return [_mistake(problem, model) for problem in error.errors()]


def _mistake(problem: Any, model: type[Settings]) -> Mistake:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return Mistake(key, "expected a value, got none")
    if problem["type"] == "extra_forbidden":
        name = problem["loc"][-1]
        keys = [field.alias or own for own, field in _at(model, problem["loc"][:-1]).model_fields.items()]
        return Mistake(key, f"unknown key{near(name, keys)}")
    said = one_line(str(problem["msg"]).removeprefix("Value error, "))
    return Mistake(key, f"{said}, got {shown(problem['input'])}" if key else said)


def _at(model: type[Settings], location: Sequence[int | str]) -> type[Settings]:
    """Return the model of the section at a location."""
    for part in location:
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                for inner in (field.annotation, *get_args(field.annotation)):
                    if isinstance(inner, type) and issubclass(inner, Settings):
                        model = inner
    return model
