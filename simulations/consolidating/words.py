"""How a model is written on the command line: ``PATH``, ``PATH=MODEL``, a model's name, or a mapping."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kdfed.config.document import DocumentError, parse
from kdfed.config.mistakes import describe_all
from kdfed.errors import DataError, Mistake, shown
from kdfed.paths import MODEL_SUFFIXES, user_path
from kdfed.settings import ModelSettings, Settings, TeacherFile
from kdfed.shelf import model_files

S = TypeVar("S", bound=Settings)

_SUFFIX = "|".join(re.escape(suffix) for suffix in MODEL_SUFFIXES)


def teachers_in(words: Sequence[str], key: str = "TEACHER") -> tuple[list[TeacherFile], list[Mistake]]:
    """Read teachers.

    Parameters
    ----------
    words
        A file, ``FILE=MODEL`` with a name or a mapping ``{name: ..., options: ...}``, a mapping with the keys
        of :class:`~kdfed.settings.TeacherFile`, or a folder, which stands for the models in it.
    key
        What they are called in a mistake.
    """
    found: list[TeacherFile] = []
    mistakes: list[Mistake] = []
    for word in words:
        try:
            _check_text(word)
            there = _there(word)
            found += model_files(word, key) if there is not None and there.is_dir() else [_file(word)]
        except _WordError as error:
            mistakes += [Mistake(key, f"{shown(word)}: {text}") for text in error.texts]
        except DataError as error:
            mistakes.append(Mistake(key, str(error)))
    return found, mistakes


def student_in(word: str, key: str = "--student") -> tuple[TeacherFile | ModelSettings | None, list[Mistake]]:
    """Read a student: a model's name, a mapping ``{name: ..., options: ...}``, or a file to start from."""
    try:
        _check_text(word)
        if _is_mapping(word) and "file" not in _mapping(word):
            return _read(ModelSettings, _mapping(word)), []
        if _is_mapping(word) or re.fullmatch(rf".+({_SUFFIX})(=.+)?", word):
            return _file(word), []
        return _read(ModelSettings, {"name": word}), []
    except _WordError as error:
        return None, [Mistake(key, f"{shown(word)}: {text}") for text in error.texts]


class _WordError(Exception):
    def __init__(self, *texts: str) -> None:
        self.texts = texts


def _check_text(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise _WordError("expected text in UTF-8; rename the file") from error


def _there(word: str) -> Path | None:
    """Return what a word is the path of; None of a word that is none, which may be longer than any path."""
    with suppress(DataError):
        path = user_path(word)
        return path if path.exists() else None
    return None


def _file(word: str) -> TeacherFile:
    if _is_mapping(word):
        return _read(TeacherFile, _mapping(word))
    both = None if _there(word) else re.fullmatch(rf"(.+?(?:{_SUFFIX}))=(.+)", word)
    if both is None:
        return _read(TeacherFile, {"file": word})
    model: Any = _mapping(both[2]) if _is_mapping(both[2]) else {"name": both[2]}
    return _read(TeacherFile, {"file": both[1], "model": model})


def _is_mapping(word: str) -> bool:
    return word.lstrip().startswith("{")


def _mapping(word: str) -> dict[str, Any]:
    try:
        values = parse(word)
    except DocumentError as error:
        raise _WordError(f"expected a YAML mapping: {error}") from error
    return dict(values) if isinstance(values, dict) else {}


def _read(kind: type[S], values: dict[str, Any]) -> S:
    try:
        return kind.model_validate_json(
            json.dumps(values, default=str), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise _WordError(*map(str, describe_all(error.errors(), values, kind))) from error
