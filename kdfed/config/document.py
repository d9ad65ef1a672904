"""YAML as an experiment means it: YAML 1.1, without the readings that surprise.

Files and ``--set`` hold plain values: mappings with words as keys, lists, words, numbers, true, false, null.

- ``1e-3`` is a number, and a date is a word.
- ``020`` (16 in YAML 1.1), ``1:30`` (90) and ``yes``, ``no``, ``on``, ``off`` (true, false) are mistakes that
  say what to write. ``1_000``, ``0x1F`` and ``0b11`` are the numbers that everybody expects.
- Tags (``!!bool x``), keys that stand twice and keys that are no words are mistakes.
- Anchors, aliases and merge keys are YAML's own: in ``{<<: *base, max: 4}`` the explicit key wins, in
  ``<<: [*first, *second]`` the first.
- What a few lines can blow up has bounds: depth, and the number of values once aliases are written out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import yaml

from kdfed.errors import shortened, shown

MOST_LEVELS = 30
"""Levels of a document; a dot in a key begins one too. An experiment has six."""
MOST_VALUES = 100_000
"""Values of a document, each as often as aliases repeat it."""

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_BOOLEANS = {"true": True, "false": False}
_DOUBTFUL = {"yes": True, "on": True, "no": False, "off": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?)"
)
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_SEXAGESIMAL = re.compile(r"[-+]?([1-9][0-9_]*(:[0-5]?[0-9])+|[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*)")


class DocumentError(Exception):
    """Why a text is not YAML that an experiment can hold; one line."""


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses tags, and levels without end."""

    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _wrong(
                f"expected a value without a tag, got {shown(tag.replace(_TAG, '!!'))}; remove it", event
            )
        self.levels += 1
        if self.levels > 2 * MOST_LEVELS:  # Python's own limit is nearer than YAML's
            raise _wrong(f"expected at most {MOST_LEVELS} levels", event)
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def _wrong(problem: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    mark: Any = at.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse(text: str, levels: int = 0) -> Any:
    """Return what a YAML text says.

    Parameters
    ----------
    text
        One document.
    levels
        Levels above it.

    Raises
    ------
    DocumentError
        If it is not YAML, or not what this module allows.
    """
    try:
        return _Reader().value(yaml.compose(text, Loader=_Loader), levels)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, ", ".join(filter(None, (error.context, error.problem)))
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise DocumentError(f"{shortened(problem, 1000)}{where}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError(shortened(" ".join(str(error).split()))) from error


def dump(values: Any) -> str:
    """Return YAML that :func:`parse` reads back to equal values, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes every word that this module would not read as that word."""


def _represent_word(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        style = None if _plain(text) == text else "'"
    except ValueError:
        style = "'"
    return dumper.represent_scalar(yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG, text, style=style)


_Dumper.add_representer(str, _represent_word)


class _Reader:
    """Turns nodes into values."""

    def __init__(self) -> None:
        self._open: list[yaml.Node] = []
        self._values = 0

    def value(self, node: yaml.Node | None, levels: int) -> Any:
        if node is None:
            return None
        self._values += 1
        if self._values > MOST_VALUES:
            raise _wrong(f"expected at most {MOST_VALUES} values, got more; aliases repeat them", node)
        if levels > MOST_LEVELS:
            raise _wrong(f"expected at most {MOST_LEVELS} levels, got more (a dot in a key begins one)", node)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if any(node is one for one in self._open):
            raise _wrong("expected a value that does not contain itself; remove the alias", node)
        self._open.append(node)
        if isinstance(node, yaml.MappingNode):
            result: Any = self._mapping(node, levels)
        else:
            result = [self.value(item, levels + 1) for item in node.value]
        self._open.pop()
        return result

    def _mapping(self, node: yaml.MappingNode, levels: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                if merged is not None:
                    raise _wrong("the key '<<' stands twice; write <<: [*first, *second]", key_node)
                merged = self._merged(value_node, levels)
                continue
            key = self._key(key_node, levels)
            if key in own:
                raise _wrong(f"the key {shown(key)} stands twice; remove one", key_node)
            own[key] = self.value(value_node, levels + 1 + key.count("."))
        return {**(merged or {}), **own}

    def _key(self, node: yaml.Node, levels: int) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _wrong(f"expected a word as a key, got {shown(self.value(node, levels + 1))}", node)
        problem = f"expected a word as a key, got {shown(node.value)}, which YAML reads as"
        if node.style is None and node.value in _words(_DOUBTFUL):
            read = _DOUBTFUL[node.value.lower()]
            raise _wrong(f"{problem} {read}; write it in quotes", node)
        key = _scalar(node)
        if not isinstance(key, str):
            raise _wrong(f"{problem} {shown(key)}; write it in quotes", node)
        return key

    def _merged(self, node: yaml.Node, levels: int) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in reversed(parts):  # the first wins, where PyYAML puts it
            value = self.value(part, levels)
            if not isinstance(value, dict):
                raise _wrong(f"expected a mapping to merge (<<), got {shown(value)}", part)
            result.update(value)
        return result


def _words(words: dict[str, bool]) -> set[str]:
    """Return the spellings that YAML 1.1 knows: ``yes``, ``Yes``, ``YES``."""
    return {spelt for word in words for spelt in (word, word.capitalize(), word.upper())}


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n"), None)
    if bad is not None:
        raise _wrong(f"expected text without control characters, got {bad!r} in {shown(text)}", node)
    if node.style is not None:  # in quotes
        return text
    try:
        return _plain(text)
    except ValueError as error:
        raise _wrong(str(error), node) from error


def _plain(text: str) -> Any:
    """Return what a word without quotes is; ValueError where YAML 1.1 would surprise."""
    word = shortened(text)
    if text in _NULLS:
        return None
    if text in _words(_BOOLEANS):
        return _BOOLEANS[text.lower()]
    if text in _words(_DOUBTFUL):
        read = str(_DOUBTFUL[text.lower()]).lower()
        raise ValueError(
            f"got {text}, which YAML 1.1 reads as {read}: write {read}, or '{text}' for the word"
        )
    if _OCTAL.fullmatch(text):
        sign, digits = text[0].strip("+0123456789"), text.replace("_", "").lstrip("-+0") or "0"
        raise ValueError(
            f"got {word}, a number that begins with 0, which YAML 1.1 reads as octal: write "
            f"{sign}{shortened(digits)}, or '{word}' for the word"
        )
    if _SEXAGESIMAL.fullmatch(text):
        raise ValueError(
            f"got {word}, which YAML 1.1 reads as a number to the base 60: write the number, or '{word}' for "
            "the word"
        )
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(text):
        try:
            return int(digits, 0)
        except ValueError as error:  # thousands of digits, or none
            raise ValueError(f"expected a number, got {shown(text)}: {error}") from error
    if _FLOAT.fullmatch(text):
        return float(digits)
    not_finite = _NOT_FINITE.fullmatch(text)
    if not_finite:
        return float(f"{not_finite[1] or ''}{'nan' if not_finite[3] else 'inf'}")
    return text
