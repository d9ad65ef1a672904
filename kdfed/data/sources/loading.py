"""Loading what an experiment asks for: the source is found, rows are drawn, and inputs are checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np

from kdfed.data.checks import check_inputs
from kdfed.data.dataset import Dataset, Listing, NoLabelsError
from kdfed.data.images import check_shape, convert_images
from kdfed.data.sources.registry import SOURCES, USERS
from kdfed.data.splits import strata_of, stratified_order
from kdfed.errors import DataError, shown
from kdfed.named import NamedError
from kdfed.seeding import numpy_generator
from kdfed.settings import DataSettings


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


def load_source(settings: DataSettings, *, labelled: bool = True) -> Dataset:
    """Load the examples that an experiment asks for.

    ``limit`` draws rows stratified by label and by official test part, with ``splits.seed``; only these
    rows are decoded. ``shape`` converts and resizes images. Inputs of any source are checked
    (:func:`~kdfed.data.checks.check_inputs`), and nobody can change the arrays that are returned.

    Parameters
    ----------
    settings
        The section ``data``.
    labelled
        False takes examples without labels too, where the source can list them; theirs are
        :data:`~kdfed.data.dataset.UNLABELLED`.

    Raises
    ------
    DataError
        If the data cannot be read or do not fit the settings; its ``key`` says what has to change.
    """
    problem = task_problem(settings)
    if problem is not None:
        raise DataError(problem, "data.task")
    check_shape(settings.shape)
    listing = _find(settings, labelled)
    rows = _limited(listing, settings)
    inputs = check_inputs(listing.read(rows), settings.source, lambda index: listing.where(int(rows[index])))
    mean, std = listing.mean, listing.std
    if inputs.ndim == 4:
        stored = inputs.shape[1]
        inputs = check_inputs(convert_images(inputs, settings.shape, settings.source), settings.source, str)
        mean, std = (_constants(values, stored, inputs.shape[1]) for values in (mean, std))
    elif settings.shape not in (None, inputs.shape[1:]):
        raise DataError(
            f"expected inputs of the shape {list(settings.shape or ())} in {settings.source}, got "
            f"{inputs.shape[1]} features a row: correct the data or data.shape",
            "data.shape",
        )
    test = None if listing.test is None else np.flatnonzero(listing.test[rows])
    labels, where, values_of = listing.labels, listing.where, listing.values_of
    if len(rows) < len(labels):
        labels, where, values_of = labels[rows], *_of_rows(rows, where, values_of)
    for array in (labels, test):
        if array is not None:
            array.flags.writeable = False
    return Dataset(
        inputs,
        labels,
        listing.class_names,
        test,
        mean,
        std,
        listing.synthetic,
        listing.columns,
        values_of,
        where,
    )


def _find(settings: DataSettings, labelled: bool) -> Listing:
    source, kind = settings.source, kind_of(settings.source)
    if kind not in SOURCES:
        try:
            return SOURCES[USERS].list_examples(source, settings)
        except NamedError as error:
            module, ours = source.partition(":")[0], [key.partition(":")[0] for key in SOURCES]
            near = difflib.get_close_matches(module, ours, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SOURCES)}"
            raise DataError(f"{error}; sources of ours: {hint}") from error
    argument = source.removeprefix(kind)
    if kind.endswith(":") and not argument:
        raise DataError(f"expected something behind {source!r}: {SOURCES[kind].description}")
    found = SOURCES[kind]
    try:
        return found.list_examples(argument, settings)
    except NoLabelsError:
        if labelled or found.list_inputs is None:
            raise
        return found.list_inputs(argument, settings)


def _of_rows(
    rows: np.ndarray, where: Callable[[int], str], values_of: Callable[[str], np.ndarray] | None
) -> tuple[Callable[[int], str], Callable[[str], np.ndarray] | None]:
    """Return what names a row, and what reads a column, for the rows that a limit draws."""
    return (
        lambda row: where(int(rows[row])),
        None if values_of is None else lambda name: values_of(name)[rows],
    )


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
