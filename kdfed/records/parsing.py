"""JSON that a run wrote and that may have been damaged since: read strictly, and what is wrong in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from reprlib import Repr
from typing import Any

from pydantic import ValidationError

SHOWN = 60
"""Characters of a wrong value that an error quotes."""


def parse_json(text: str) -> Any:
    """Read JSON: no NaN, no infinity, no key twice.

    Raises
    ------
    ValueError
        If the text is something else, or nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
    except RecursionError as error:
        raise ValueError("expected JSON, got something nested too deeply to be read") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"expected finite numbers, got {name}")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"expected distinct keys, got {short(twice)} twice")
    return values


def short(value: Any) -> str:
    """Return a value as an error quotes it: on one line, at most :data:`SHOWN` characters."""
    quoted = _REPR.repr(value)
    return quoted if len(quoted) <= SHOWN else f"{quoted[: SHOWN - 1]}…"


def listed(names: Iterable[Any]) -> str:
    """Return names as an error lists them, the first ten."""
    words = [short(name).strip("'") for name in names]
    return ", ".join(words[:10] + (["…"] if len(words) > 10 else []))


_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = SHOWN
_REPR.maxlevel = _REPR.maxdict = _REPR.maxlist = 3


def problems_of(error: ValidationError) -> str:
    """Say what pydantic found, the first three problems: where, what was expected, what arrived."""
    problems = error.errors(include_url=False)
    said = [_problem(problem) for problem in problems[:3]]
    more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    return "; ".join(said + more)


_EXPECTED = {
    "missing": "expected this key",
    "model_type": "expected an object",
    "dict_type": "expected an object",
    "list_type": "expected a list",
}


def _problem(problem: Any) -> str:
    kind, where = problem["type"], ".".join(map(str, problem["loc"]))
    words = _EXPECTED.get(kind) or problem["msg"].replace("Input should be", "expected")
    if kind == "value_error":
        words = str(problem["ctx"]["error"])
    elif kind != "missing":
        words = f"{words}, got {short(problem['input'])}"
    return f"{where}: {words}" if where else words
