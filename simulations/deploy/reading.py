"""Reading the participants' file, with every mistake at once, and what a deployment's folder records.

The participants' file is read like an experiment, what kdfed wrote itself without the packages that one needs
(:mod:`kdfed.settings_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kdfed.errors import ConfigError, Mistake, shown
from kdfed.settings_file import read_settings
from simulations.deploy.layout import DEPLOYMENT
from simulations.deploy.settings import Deployment, Plan, is_loopback

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
    return read_settings(folder / DEPLOYMENT, Deployment)


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
