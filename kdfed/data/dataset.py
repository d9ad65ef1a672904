"""What a source gives: a listing of its labels first, then the arrays of the rows that are wanted.

Legend: N examples, C channels, H height, W width, F features.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kdfed.errors import DataError, one_line, shown
from kdfed.settings import ColumnSettings, DataSettings

MOST_OF_A_NAME = 200
"""Characters of the name of a class."""

UNLABELLED = -1
"""The label of an example that has none."""


class Inputs(Protocol):
    """What kdfed asks of inputs: an array, or something that makes only the rows it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W] or [N, F]."""

    @property
    def ndim(self) -> int:
        """4 for images, 2 for features."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 for images, float32 for features."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """Return the rows at an int, a slice or an array of int64."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """All examples of a source, as stored.

    Parameters
    ----------
    inputs
        Images: uint8 [N, C, H, W]; features: float32 [N, F]. An array, except where rows are drawn on demand.
    labels
        int64 [N], indices into ``class_names``; of a regression the numbers as stored, float32 [N].
    class_names
        One name per class, in label order; none in a regression.
    official_test
        int64 indices of the source's own test part, sorted; None where it has none.
    mean, std
        Declared constants of known sources, one number per channel, after scaling to [0, 1]; else None.
    synthetic
        Whether the examples are drawn, not measured; tables must say so.
    columns
        Which columns of a table the inputs and the labels are; None of what is no table.
    values_of
        Takes the name of any column, returns its values, [N]: whole numbers or texts, by which
        ``partition: {kind: column}`` deals. None where there are no columns.
    where
        Names a row for people.
    """

    inputs: Inputs
    labels: np.ndarray
    class_names: tuple[str, ...]
    official_test: np.ndarray | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    synthetic: bool = False
    columns: ColumnSettings | None = None
    values_of: Callable[[str], np.ndarray] | None = None
    where: Callable[[int], str] = "row {}".format

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> bool:
        """Whether the examples have labels."""
        return not (self.labels.dtype.kind == "i" and bool((self.labels == UNLABELLED).all()))

    @property
    def is_images(self) -> bool:
        """Whether the inputs are images, not feature vectors."""
        return self.inputs.ndim == 4


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source knows before it reads any input, so that ``limit`` reads only the rows it draws.

    Parameters
    ----------
    labels
        int64 [N], checked against ``class_names``; float32 [N] in a regression; all -1, :data:`UNLABELLED`,
        where there are none.
    class_names
        One name per class; none in a regression.
    read
        Takes sorted int64 rows, returns their inputs: uint8 [n, C, H, W] or float32 [n, F].
    test
        bool [N], True for the source's own test part; None where it has none.
    mean, std, synthetic, columns, values_of
        As in :class:`Dataset`.
    where
        Names a row for messages.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    read: Callable[[np.ndarray], Inputs]
    test: np.ndarray | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    synthetic: bool = False
    columns: ColumnSettings | None = None
    values_of: Callable[[str], np.ndarray] | None = None
    where: Callable[[int], str] = "row {}".format


class NoLabelsError(DataError):
    """A source has examples, and no labels of them."""


def unlabelled(count: int) -> np.ndarray:
    """Return labels that say nothing, int64 [N]: :data:`UNLABELLED`."""
    return np.full(count, UNLABELLED)


def one_form(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in Unicode's form NFC, in which they are compared.

    macOS writes file names in another one, so that what looks the same would differ.
    """
    return tuple(unicodedata.normalize("NFC", str(name)) for name in names)


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def class_names(
    settings: DataSettings,
    declared: tuple[str, ...] | None,
    needs_names: bool = False,
    *,
    strict: bool = False,
) -> tuple[str, ...]:
    """Return the names of the classes, in label order and :func:`one_form`.

    Parameters
    ----------
    settings
        Its ``classes`` counts where the source declares none, and must agree where it does.
    declared
        What the source itself declares; None when it declares nothing.
    needs_names
        The source holds names, not indices, so that a mere number of classes is not enough.
    strict
        What is declared must be distinct and short, as ``data.classes`` must be. Known data sets are taken
        as they are: ImageNet has two classes of cranes.

    Raises
    ------
    DataError
        If neither names the classes, or both do and differ, or a name cannot be written down, is longer than
        :data:`MOST_OF_A_NAME`, or stands for two classes.
    """
    asked = settings.classes if isinstance(settings.classes, int | None) else one_form(settings.classes)
    if declared is None:
        if asked is None:
            raise DataError(
                f"{settings.source} does not declare its classes: set data.classes to their names in label "
                "order" + ("" if needs_names else ", or to their number"),
                "data.classes",
            )
        if isinstance(asked, int):
            if needs_names:
                raise DataError(
                    f"expected the names of the classes, because {settings.source} holds names and not "
                    f"indices, got the number {asked}",
                    "data.classes",
                )
            return tuple(str(index) for index in range(asked))
        _check_names(asked, "data.classes", "data.classes", strict=True)
        return asked
    declared = one_form(declared)
    _check_names(declared, settings.source, "data.source", strict=strict)
    if isinstance(asked, int) and asked != len(declared):
        raise DataError(
            f"{settings.source} declares {len(declared)} classes, data.classes says {asked}: remove it",
            "data.classes",
        )
    if isinstance(asked, tuple) and asked != declared:
        raise DataError(
            f"{settings.source} declares the classes {one_line(list(declared))}, data.classes says "
            f"{one_line(list(asked))}: remove it",
            "data.classes",
        )
    return declared


def _check_names(names: tuple[str, ...], where: str, key: str, *, strict: bool) -> None:
    """Refuse names, in :func:`one_form`, that no record can hold, or that readers cannot tell apart.

    Raises
    ------
    DataError
        If there is one.
    """
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(
                f"expected names of classes that can be written as UTF-8 in {where}, got {shown(name)} with "
                "half a surrogate pair; rename the class",
                key,
            )
        if strict and len(name) > MOST_OF_A_NAME:
            raise DataError(
                f"expected names of classes of at most {MOST_OF_A_NAME} characters in {where}, got "
                f"{shown(name, 40)}; shorten it",
                key,
            )
    if strict and repeated(names):
        raise DataError(
            f"expected distinct names of classes in {where} (in Unicode's form NFC), got "
            f"{shown(repeated(names))} more than once",
            key,
        )


def check_labels(
    labels: np.ndarray, classes: int, source: str, where: Callable[[int], str] = "row {}".format
) -> np.ndarray:
    """Return labels as int64 [N]; ``where`` names a row.

    Raises
    ------
    DataError
        If there are none, they are not whole numbers, or one is outside [0, classes).
    """
    is_float = labels.dtype.kind == "f"
    broken = np.flatnonzero(np.floor(labels) != labels) if is_float else np.arange(0)
    if labels.ndim == 1 and len(broken):
        row = int(broken[0])
        raise DataError(
            f"expected whole numbers as labels in {source}, got {labels[row]} in {where(row)}; for numbers "
            "to predict set data.task: regression"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        hint = {
            "f": ": make them integers; for numbers to predict set data.task: regression",
            "U": ": give the index of each in the class names",
        }.get(labels.dtype.kind, "")
        raise DataError(
            f"expected whole numbers as labels in {source}, got {labels.dtype} {labels.shape}{hint}"
        )
    if len(labels) == 0:
        raise DataError(f"expected examples in {source}, got none")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"expected labels from 0 to {classes - 1} in {source}, got {labels[outside][0]} in "
            f"{where(int(np.flatnonzero(outside)[0]))} (-1 means a missing label); correct data.classes or "
            "the data",
            "data.classes",
        )
    return labels.astype(np.int64)


def check_numbers(
    labels: np.ndarray, source: str, where: Callable[[int], str] = "row {}".format
) -> np.ndarray:
    """Return the labels of a regression as float32 [N]; ``where`` names a row.

    Raises
    ------
    DataError
        If there are none, they are not numbers, or one is not finite.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iubf":
        raise DataError(
            f"expected numbers as labels in {source} with data.task 'regression', got {labels.dtype} "
            f"{labels.shape}",
            "data.task",
        )
    if len(labels) == 0:
        raise DataError(f"expected examples in {source}, got none")
    with np.errstate(over="ignore"):
        numbers = labels.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(numbers))
    if len(broken):
        raise DataError(
            f"expected a finite label in every row of {source}, got {labels[broken[0]]} in "
            f"{where(int(broken[0]))}"
        )
    return numbers


def labels_from_names(values: list[str], names: tuple[str, ...], source: str) -> np.ndarray:
    """Map class names to their indices in ``names``, which are in :func:`one_form`; int64 [N].

    Raises
    ------
    DataError
        If the data hold a name that ``names`` does not.
    """
    index = {name: number for number, name in enumerate(names)}
    form = {value: one_form([value])[0] for value in set(values)}
    values = [form[value] for value in values]
    unknown = sorted(set(values) - set(index))
    if unknown:
        raise DataError(
            f"{source} holds the classes {one_line(unknown[:10])}, which data.classes does not name; known: "
            f"{one_line(list(names))}",
            "data.classes",
        )
    return np.array([index[value] for value in values], dtype=np.int64)


def require(module: str, extra: str = "sim") -> Any:
    """Import an optional package.

    Raises
    ------
    DataError
        If it is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"this source needs the package {module.partition('.')[0]!r}: pip install 'kdfed[{extra}]' "
            f"({error})"
        ) from error
