"""Test, evaluation, validation and transfer splits, held out before anything is dealt to participants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdfed.data.dataset import Dataset
from kdfed.errors import DataError, one_line
from kdfed.seeding import numpy_generator
from kdfed.settings import DataSettings

BINS = 10
"""Bins by which the numbers of a regression are split and dealt."""


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint, sorted int64 indices into a :class:`~kdfed.data.Dataset` that cover it together.

    Parameters
    ----------
    test
        Reported only.
    evaluation
        Curves, hits, converged accuracies. Empty where the settings hold none out.
    validation
        What the server may fit, choose and stop on.
    transfer
        The examples on which teachers and student are compared.
    train
        The pool that a partition deals to participants.
    """

    test: np.ndarray
    evaluation: np.ndarray
    validation: np.ndarray
    transfer: np.ndarray
    train: np.ndarray


def stratified_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Order examples so that every slice of the order holds every class in proportion.

    The i-th of a class's n examples, in random order, gets the position ``(i + u) / n`` with one uniform
    draw ``u`` per class (systematic sampling); positions are then sorted. A slice holds a class's share of
    its length, up to one example.

    Parameters
    ----------
    labels
        int64 [N], any strata.
    generator
        Every draw comes from it.

    Returns
    -------
    numpy.ndarray
        int64 [N], a permutation.
    """
    shuffled = generator.permutation(len(labels))
    strata = labels[shuffled]
    position = np.empty(len(labels))
    for stratum in np.unique(labels):
        members = np.flatnonzero(strata == stratum)
        position[members] = (np.arange(len(members)) + generator.random()) / len(members)
    del strata  # of millions of examples, every array counts
    return shuffled[np.argsort(position, kind="stable")]


def strata_of(labels: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Return what examples are dealt and split by: classes as they are, numbers by the bin they fall into.

    Parameters
    ----------
    labels
        int64 [N] classes, or float32 [N] numbers.
    reference
        Float32 numbers whose quantiles are the edges of the bins. Default: the labels themselves.

    Returns
    -------
    numpy.ndarray
        int64 [N], see :func:`bin_edges`.
    """
    if labels.dtype.kind == "i":
        return labels
    edges = bin_edges(labels if reference is None else reference)
    return np.searchsorted(edges, labels, side="right")


def bin_edges(numbers: np.ndarray) -> np.ndarray:
    """Return the inner edges of :data:`BINS` bins that hold equally many of some numbers, up to ties.

    Equal numbers share a bin, the one above an edge that they lie on, so numbers that take few values have
    fewer bins.
    """
    edges: np.ndarray = np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS))
    above: np.ndarray = edges[edges > numbers.min()]
    return above


def split(dataset: Dataset, settings: DataSettings) -> Splits:
    """Hold out every split but the last, stratified by label (numbers: by :func:`strata_of`).

    Shares are of all examples of the data set, which ``data.limit`` has reduced already. With
    ``test: official`` the other shares are of the examples outside the test part.
    Every draw comes from ``splits.seed``.

    Raises
    ------
    DataError
        If the source has no test part of its own, or one of other classes, or a split would be empty.
    """
    wanted = settings.splits
    rest: np.ndarray | None = None
    if wanted.test == "official":
        if dataset.official_test is None:
            raise DataError(
                f"{settings.source} has no test part of its own: set data.splits.test to a share like 0.15",
                "data.splits.test",
            )
        test = dataset.official_test
        rest = np.setdiff1d(np.arange(len(dataset), dtype=np.int64), test)
        held_out = 0
        _check_official(dataset, test, rest, settings)
    else:
        held_out = round(wanted.test * len(dataset))
    labels = dataset.labels if rest is None else dataset.labels[rest]
    order = stratified_order(strata_of(labels), numpy_generator(wanted.seed, "split"))
    if rest is not None:
        order = rest[order]
    shares = (wanted.evaluation, wanted.validation, wanted.transfer)
    sizes = [held_out, *(round(share * len(order)) for share in shares)]
    first, *others = np.split(order, np.cumsum(sizes))
    if wanted.test != "official":
        test = first
    splits = Splits(*(np.sort(part) for part in (test, *others)))
    empty = [name for name, part in vars(splits).items() if len(part) == 0]
    if wanted.evaluation == 0:
        empty.remove("evaluation")
    if not settings.deals and "train" in empty:
        empty.remove("train")
    if empty:
        raise DataError(
            f"expected examples in every split, got none for {', '.join(empty)} out of {len(dataset)}: use "
            "more examples or other shares",
            "data.splits",
        )
    return splits


def _check_official(dataset: Dataset, test: np.ndarray, rest: np.ndarray, settings: DataSettings) -> None:
    """Refuse an official test part with classes that nobody could learn."""
    if settings.task == "regression" or len(rest) == 0:
        return
    unseen = np.setdiff1d(dataset.labels[test], dataset.labels[rest])
    if len(unseen):
        count = int(np.isin(dataset.labels[test], unseen).sum())
        names = [dataset.class_names[label] for label in unseen[:10]]
        raise DataError(
            f"expected an official test part of classes that {settings.source} also has outside it, {count} "
            f"of its {len(test)} examples are of {one_line(names)}, and none of the others: correct the "
            "data, set data.splits.test to a share like 0.15, or raise data.limit",
            "data.splits.test",
        )
