"""Registering the keys of a deployment's devices at its SuperLink, and who has which node id since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kdfed.errors import ConfigError, Mistake
from simulations.deploy.flower import Flower, KeyInUseError
from simulations.deploy.layout import CONNECTION, DEVICES, NODES, OPERATOR, PUBLIC_KEY
from simulations.deploy.reading import read_deployment
from simulations.deploy.secret import write_open


class Registered(NamedTuple):
    """Names of participants."""

    now: tuple[str, ...]
    before: tuple[str, ...]
    elsewhere: tuple[str, ...]
    """Whose keys were registered without this command, so that nobody here knows their node ids."""


def flower_of(folder: Path) -> Flower:
    """Return Flower's commands with a deployment's connection."""
    return Flower(CONNECTION, folder.absolute() / OPERATOR)


def register(folder: Path, on_registered: Callable[[str, str], None]) -> Registered:
    """Register every device of a deployment that is not registered yet.

    Parameters
    ----------
    folder
        The deployment's.
    on_registered
        Called with the name of a participant and its node id.

    Returns
    -------
    Registered
        Who was registered, and who had been.

    Raises
    ------
    ConfigError
        If it is no deployment with keys.
    RunError
        If the SuperLink does not answer, or refuses.
    """
    deployment = read_deployment(folder)
    if deployment.insecure:
        raise ConfigError(str(folder), [Mistake("", "this deployment has no keys: nothing is registered")])
    flower = flower_of(folder)
    there = {node.node_id for node in flower.nodes() if node.status != "unregistered"}
    known = {name: node for name, node in registered(folder).items() if node in there}
    new = [one.name for one in deployment.plan.participants if one.name not in known]
    elsewhere = []
    for name in new:
        try:
            known[name] = flower.register(folder / DEVICES / name / PUBLIC_KEY)
        except KeyInUseError:
            elsewhere.append(name)
            continue
        _write(folder, known)
        on_registered(name, known[name])
    now = [name for name in new if name not in elsewhere]
    before = [one.name for one in deployment.plan.participants if one.name not in new]
    return Registered(tuple(now), tuple(before), tuple(elsewhere))


def registered(folder: Path) -> dict[str, str]:
    """Return the node ids that were given to participants, by name."""
    try:
        values = json.loads((folder / OPERATOR / NODES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(node) for name, node in values.items()} if isinstance(values, dict) else {}


def _write(folder: Path, nodes: dict[str, str]) -> None:
    file = folder / OPERATOR / NODES
    part = file.with_name(f".{NODES}.part")
    write_open(part, json.dumps(nodes, indent=1) + "\n")
    part.replace(file)
