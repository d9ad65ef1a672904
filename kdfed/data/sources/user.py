"""Data of the user's: what the function that ``package.module:name`` names returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from kdfed.data.dataset import Dataset, Listing, check_labels, check_numbers, class_names
from kdfed.data.sources.source import Source, reader_of
from kdfed.errors import DataError, one_line
from kdfed.named import NamedError, blamed, load_named, signature_of
from kdfed.settings import DataSettings


def user(name: str, settings: DataSettings) -> Listing:
    """Call a user's ``package.module:name`` with the settings.

    It returns a :class:`~kdfed.data.Dataset`, or (inputs, labels, class names). In a regression the labels
    are numbers, and there are no class names.

    Raises
    ------
    NamedError
        If the name stands for nothing that can be called.
    DataError
        If it does not take the settings alone, fails, or returns something else.
    """
    function = load_named(name)
    try:
        _check_signature(name, function, settings)
        with blamed(
            name, f"expected (inputs, labels, class names) from {name}, which takes the data settings"
        ):
            made = function(settings)
    except NamedError as error:
        raise DataError(str(error)) from error
    if not isinstance(made, Dataset | tuple) or (isinstance(made, tuple) and len(made) != 3):
        raise DataError(
            f"expected (inputs, labels, class names) or a kdfed.data.Dataset from {name}, got "
            f"{type(made).__name__}"
        )
    return _listed(Dataset(*made) if isinstance(made, tuple) else made, settings, name)


def _check_signature(name: str, function: Callable[..., Any], settings: DataSettings) -> None:
    signature = signature_of(name, function)
    try:
        signature.bind(settings)
    except TypeError as error:
        raise DataError(
            f"expected {name} to take (settings) and to return (inputs, labels, class names), got "
            f"{signature}: {error}"
        ) from error


def _listed(dataset: Dataset, settings: DataSettings, name: str) -> Listing:
    """Check what a user's function returned, and take it over; its inputs are checked when they are read."""
    names: Any = dataset.class_names
    try:
        if isinstance(names, str):
            raise TypeError(f"the names are one text, {one_line(names)!r}")
        if np.ma.is_masked(dataset.inputs) or np.ma.is_masked(dataset.labels):
            raise ValueError("some values are masked; fill or drop them")
        inputs, labels = np.asarray(dataset.inputs).view(), np.asarray(dataset.labels)
        names = tuple(names)
        mean, std = (
            None if values is None else tuple(map(float, values)) for values in (dataset.mean, dataset.std)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            "expected arrays, numbers as mean and std, and a list of class names from "
            f"{name}: {one_line(error)}"
        ) from error
    inputs.flags.writeable = False  # a view: the user's own array stays as it is
    if inputs.ndim == 0:
        raise DataError(f"expected uint8 [N, C, H, W] or floats [N, F] from {name}, got {inputs.dtype} ()")
    if settings.task == "regression":
        labels, names = check_numbers(labels, name), ()
    else:
        names = class_names(settings, names or None, strict=True)
        labels = check_labels(labels, len(names), name)
    if len(labels) != len(inputs):
        raise DataError(f"expected as many labels as inputs from {name}, got {len(labels)} and {len(inputs)}")
    if (mean is None) != (std is None):
        raise DataError(f"expected both mean and std from {name}, or neither")
    test = None if dataset.official_test is None else _test_part(dataset.official_test, len(labels), name)
    values_of = None if dataset.values_of is None else partial(_values, dataset.values_of, len(labels), name)
    return Listing(
        labels, names, reader_of(inputs), test, mean, std, bool(dataset.synthetic), values_of=values_of
    )


def _values(values_of: Callable[[str], Any], count: int, name: str, column: str) -> np.ndarray:
    """Return what a user's ``values_of`` gives for a column, checked."""
    expected = f"expected {count} whole numbers or texts of column {column!r} from {name}"
    try:
        with blamed(name, expected):
            values = np.asarray(values_of(column))
    except NamedError as error:
        raise DataError(str(error), "partition.column") from error
    if values.shape != (count,) or values.dtype.kind not in "iubU":
        raise DataError(f"{expected}, got {values.dtype} {values.shape}", "partition.column")
    return values


def _test_part(indices: object, count: int, name: str) -> np.ndarray:
    """Return bool [N] of a user's indices, or of a mask of all N rows."""
    rows = np.asarray(indices)
    expected = f"expected the official test part of {name} as distinct rows from 0 to {count - 1}"
    if rows.dtype == bool and rows.shape == (count,):
        return rows.copy()
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise DataError(f"{expected}, got {rows.dtype} {rows.shape}")
    rows = rows.astype(np.int64)
    wrong = rows[(rows < 0) | (rows >= count)]
    if len(wrong):
        raise DataError(f"{expected}, got {wrong[0]}")
    times = np.bincount(rows, minlength=count)
    if times.max() > 1:
        raise DataError(f"{expected}, got {times.argmax()} {times.max()} times")
    test: np.ndarray = times == 1
    return test


SOURCE = Source("a function of yours: (settings) -> (inputs, labels, class names)", user)
