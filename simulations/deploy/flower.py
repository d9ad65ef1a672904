"""Flower's own commands about SuperNodes, with a deployment's connection."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

from kdfed.errors import RunError, one_line
from kdfed.private.flwr import silent_environment

_IN_USE = "already in use"  # of flwr 1.42's answer; another wording is an error like any other


class Node(NamedTuple):
    """A SuperNode, as ``flwr supernode list --format json`` tells of it."""

    node_id: str
    status: str
    """``registered``, ``online``, ``offline`` or ``unregistered``."""
    seen: str
    """When it was seen last: ``now``, or a time; empty: never."""


class KeyInUseError(RunError):
    """A key is registered already, and Flower does not say as which node."""


class Flower:
    """Flower's commands.

    Parameters
    ----------
    connection
        The name of a SuperLink in Flower's configuration.
    home
        The folder with that configuration. Default: the user's own.
    """

    def __init__(self, connection: str, home: Path | None = None) -> None:
        self._connection = connection
        self._environment = {
            **os.environ,
            **silent_environment(),
            **({} if home is None else {"FLWR_HOME": str(home)}),
        }

    def nodes(self) -> list[Node]:
        """Return the SuperNodes that are registered or connected.

        Raises
        ------
        RunError
            If the SuperLink does not answer.
        """
        listed = self._ask("list", self._connection).get("nodes", [])
        return [_node(one) for one in listed if isinstance(one, dict)]

    def register(self, public_key: Path) -> str:
        """Let the SuperNode with a key connect; return its node id.

        Raises
        ------
        KeyInUseError
            If the key is registered already.
        RunError
            If the SuperLink does not answer, or refuses.
        """
        return str(self._ask("register", str(public_key), self._connection).get("node-id", ""))

    def _ask(self, *words: str) -> dict[str, Any]:
        """Return what a command prints as JSON."""
        flwr = Path(sysconfig.get_path("scripts")) / "flwr"
        command = [str(flwr), "supernode", *words, "--format", "json"]
        try:
            done = subprocess.run(  # noqa: S603
                command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except OSError as error:
            raise RunError(
                f"expected Flower's command {flwr}: {error.strerror}; is flwr installed?"
            ) from error
        answer = last_json(done.stdout)
        if not answer.get("success"):
            reason = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
            reason = one_line(_without_greeting(reason), 500) or "it gave no reason"
            if _IN_USE in reason.lower():
                raise KeyInUseError(reason)
            raise RunError(
                f"flwr supernode {words[0]} failed: {reason}; kdfed deploy check says whether the SuperLink "
                "can be reached"
            )
        return answer


def _without_greeting(text: str) -> str:
    lines = text.splitlines()
    return "\n".join(line for line in lines if not line.startswith("Using SuperLink"))


def last_json(text: str) -> dict[str, Any]:
    """Return the JSON object with which a text ends; empty where it ends with none."""
    start = text.find("{")
    while start >= 0:
        try:
            found = json.loads(text[start:])
        except ValueError:
            start = text.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _node(told: dict[str, Any]) -> Node:
    status = str(told.get("status", "unknown"))
    seen = "now" if status == "online" else str(told.get("offline-at") or told.get("online-at") or "")
    return Node(str(told.get("node-id", "")), status, "" if seen == "N/A" else seen)
