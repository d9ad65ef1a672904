"""Reading a run's ``roster.json``: what every participant told of itself at hello.

The server writes it while it runs, and later releases may write more: what is missing or has another form is
left out, never an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from kdfed.errors import RunError, plain, shortened

FILE = "roster.json"


class Entry(NamedTuple):
    """A participant of a roster; empty where it does not say."""

    name: str
    node_id: str = ""
    examples: str = ""
    versions: str = ""
    """kdfed / flwr / torch."""
    device: str = ""
    memory: str = ""
    status: str = ""


def read_roster(run: Path) -> list[Entry]:
    """Return the participants of a run.

    Parameters
    ----------
    run
        A run folder, or the file itself.

    Raises
    ------
    RunError
        If there is no such file, or it is no JSON.
    """
    file = run / FILE if run.is_dir() else run
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"expected a roster at {file}: {error.strerror}; --run names the run's folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"expected JSON in {file}: {error}") from error
    whole = values if isinstance(values, dict) else {}
    found = [_entry(row) for row in _rows(whole.get("participants"))]
    there = {entry.name for entry in found}
    refused = (_refused(row) for row in _rows(whole.get("refused")))
    return found + [entry for entry in refused if entry.name not in there]


def _rows(listed: object) -> list[dict[str, Any]]:
    """Return the entries of a list that name somebody."""
    rows = listed if isinstance(listed, list) else []
    return [row for row in rows if isinstance(row, dict) and row.get("name")]


def _refused(row: dict[str, Any]) -> Entry:
    return _entry(row)._replace(status=_text(f"refused: {row.get('reason', 'no reason was given')}"))


def _entry(row: dict[str, Any]) -> Entry:
    told = row.get("versions")
    versions = told if isinstance(told, dict) else {}
    names = [str(versions.get(name, "?")) for name in ("kdfed", "flwr", "torch")]
    memory = row.get("memory")
    known = isinstance(memory, int | float) and not isinstance(memory, bool)
    return Entry(
        _text(row["name"]),
        _text(row.get("node")),
        _text(row.get("examples")),
        _text(" / ".join(names)) if versions else "",
        _text(row.get("device")),
        f"{memory / 2**30:.1f} GiB" if known and memory is not None else "",
    )


def _text(value: object) -> str:
    """Return what a device told of itself as a terminal can show it."""
    return "" if value is None else shortened(plain(str(value)), 100)
