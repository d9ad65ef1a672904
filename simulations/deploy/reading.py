"""Reading the participants' file, with every mistake at once, and what a deployment's folder records.

The participants' file is read like an experiment. What kdfed wrote itself is read without the packages that
an experiment needs: a device's folder is checked where PyTorch may be broken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from clients.device_folder import FILE, DeviceFolder
from kdfed.errors import ConfigError, Mistake, near, one_line, shown
from kdfed.settings import Settings
from simulations.deploy.layout import DEPLOYMENT
from simulations.deploy.settings import Deployment, Plan, is_loopback

Model = TypeVar("Model", bound=Settings)

NOT_PARTICIPANTS = ("superlink", "venv", "wheels")
"""Names of what stands beside the participants' folders."""


# ----------------------------------------------------------------------------- the participants' file


def read_plan(file: Path, *, insecure: bool = False) -> Plan:
    """Read the participants' file.

    Parameters
    ----------
    file
        YAML.
    insecure
        Whether ``--insecure`` was given, which loopback hosts alone may have.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    from kdfed.config import read_mapping
    from kdfed.config.mistakes import describe_all

    values = read_mapping(file)
    plan, mistakes = None, []
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        mistakes = describe_all(error.errors(), values, Plan)
    mistakes += [*_clashes(values), *(_exposed(values) if insecure else ())]
    if mistakes or plan is None:
        raise ConfigError(str(file), mistakes)
    return plan


def _clashes(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what participants have in common and must not, in a file in which anything may be wrong."""
    listed = values.get("participants")
    rows = [(place, row) for place, row in enumerate(listed if isinstance(listed, list) else ())]
    given = [(place, row) for place, row in rows if isinstance(row, dict)]
    named = [(place, row["name"].lower()) for place, row in given if isinstance(row.get("name"), str)]
    for place, name, first in _repeated(named):
        yield Mistake(
            f"participants.{place}.name",
            f"expected distinct names, also in lower case, got {shown(name)}, which participant {first} of "
            "the list has (counted from 0)",
        )
    for place, name in named:
        if name in NOT_PARTICIPANTS:
            yield Mistake(
                f"participants.{place}.name",
                f"expected none of {', '.join(NOT_PARTICIPANTS)}, which stand beside its folder, got "
                f"{shown(name)}",
            )
    superlink = values.get("superlink")
    own = superlink.get("port", 8000) if isinstance(superlink, dict) else 8000
    ports = [(place, row["port"]) for place, row in given if isinstance(row.get("port"), int)]
    for place, port, first in _repeated(ports):
        yield Mistake(
            f"participants.{place}.port",
            f"expected a port of its own, because participants may share a machine, got {port}, which "
            f"participant {first} of the list has (counted from 0)",
        )
    for place, port in ports:
        if port == own:
            yield Mistake(
                f"participants.{place}.port", f"expected another port than the SuperLink's, got {port}"
            )


def _repeated(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any, int]]:
    """Yield place and value of what was there before, and the place where it was."""
    first: dict[Any, int] = {}
    for place, value in rows:
        if value in first:
            yield place, value, first[value]
        first.setdefault(value, place)


def _exposed(values: Mapping[str, Any]) -> Iterator[Mistake]:
    superlink = values.get("superlink")
    section = superlink if isinstance(superlink, dict) else {}
    hosts, listen = section.get("hosts"), section.get("listen", "auto")
    listed = [host for host in hosts if isinstance(host, str)] if isinstance(hosts, list) else []
    for host in [host for host in listed if not is_loopback(host)]:
        yield Mistake(
            "superlink.hosts",
            f"expected loopback hosts alone with --insecure (localhost, 127.0.0.1, ::1), got {shown(host)}, "
            "which others can reach without a key; leave --insecure out",
        )
    if isinstance(listen, str) and listen != "auto" and not is_loopback(listen):
        yield Mistake(
            "superlink.listen",
            f"expected auto or a loopback address with --insecure, got {shown(listen)}; leave --insecure out",
        )


# ----------------------------------------------------------------------------- what kdfed wrote


def read_deployment(folder: Path) -> Deployment:
    """Read what a deployment's folder records of itself.

    Raises
    ------
    ConfigError
        If it has no such file, as after an interrupted ``init``, or the file was changed.
    """
    return _read(folder / DEPLOYMENT, Deployment)


def read_device_folder(folder: Path) -> DeviceFolder:
    """Read a device's ``node.yaml``.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    return _read(folder / FILE, DeviceFolder)


def _read(file: Path, model: type[Model]) -> Model:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(str(file), [Mistake("", f"expected a readable YAML file: {reason}")]) from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(str(file), [_mistake(problem, model) for problem in error.errors()]) from error


def _mistake(problem: Any, model: type[Settings]) -> Mistake:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return Mistake(key, "is required")
    if problem["type"] == "extra_forbidden":
        keys = [field.alias or name for name, field in _at(model, problem["loc"][:-1]).model_fields.items()]
        return Mistake(key, f"unknown key{near(problem['loc'][-1], keys)}")
    said = one_line(str(problem["msg"]).removeprefix("Value error, "))
    return Mistake(key, f"{said}, got {shown(problem['input'])}")


def _at(model: type[Settings], location: tuple[int | str, ...]) -> type[Settings]:
    """Return the model of the section at a location."""
    for part in location:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if part in (name, field.alias) and isinstance(inner, type) and issubclass(inner, Settings):
                model = inner
    return model


# ----------------------------------------------------------------------------- writing YAML

_PLAIN = re.compile(r"[A-Za-z][A-Za-z_./-]*|\.?/[A-Za-z0-9_./-]+")
_DOUBTFUL = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})


def to_yaml(values: Any) -> str:
    """Return YAML that every reader of YAML reads alike: words are in quotes where one could doubt."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    """Quotes what is not plainly a word."""


def _represent_word(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _DOUBTFUL
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_word)
