"""Torchvision's classification sets."""

from __future__ import annotations

import difflib
import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from kdfed.data.dataset import Listing, check_labels, class_names, require
from kdfed.data.folders import existing
from kdfed.data.images import read_images
from kdfed.data.sources.source import Source
from kdfed.errors import DataError, one_line
from kdfed.settings import DataSettings

TORCHVISION_ROOT = Path("~/.cache/kdfed/torchvision")
"""Where torchvision's data sets are looked for, and downloaded to, when no root is given."""

# Customary constants of whole training sets, after scaling to [0, 1].
_CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def torchvision(argument: str, settings: DataSettings) -> Listing:
    """Any torchvision classification set that has a training and a test part.

    Parameters
    ----------
    argument
        ``NAME`` or ``NAME@ROOT``; it is downloaded to the root when it is not there.
    settings
        ``classes`` where the set has no names of its own, ``shape`` where sizes differ.

    Raises
    ------
    DataError
        If there is no such set, or it can be neither found nor downloaded.
    """
    sets = require("torchvision.datasets")
    name, _, given = argument.partition("@")
    root = existing(given or TORCHVISION_ROOT)
    maker = getattr(sets, name, None)
    if not inspect.isclass(maker):
        near = difflib.get_close_matches(name, sets.__all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"expected the name of a torchvision data set, got {name!r}{hint}")
    parts = [_part(maker, name, root, test) for test in (False, True)]
    declared, others = (
        None if names is None else tuple(map(str, names))
        for names in (getattr(part, "classes", None) for part in parts)
    )
    if declared != others:
        raise DataError(
            f"expected the same classes, in the same order, in both parts of torchvision:{name}, got "
            f"{one_line(declared)} in the training part and {one_line(others)} in the test part"
        )
    names = class_names(settings, declared)
    sizes = [len(part) for part in parts]

    def where(row: int) -> str:
        part, number = ("training", row) if row < sizes[0] else ("test", row - sizes[0])
        return f"row {number} of the {part} part"

    try:
        labels = np.concatenate([_labels(part) for part in parts])
    except Exception as error:  # a set is free to name its labels in its own way
        raise DataError(
            f"expected one label an example of torchvision:{name}, got others ({one_line(error)})"
        ) from error
    if len(labels) != sum(sizes):
        raise DataError(
            f"expected as many labels as images of torchvision:{name}, got {len(labels)} and {sum(sizes)}"
        )

    def load(row: int) -> Any:
        return parts[0][row][0] if row < sizes[0] else parts[1][row - sizes[0]][0]

    mean, std = _CONSTANTS.get(name, (None, None))
    return Listing(
        check_labels(labels, len(names), f"torchvision:{name}", where),
        names,
        lambda rows: read_images(rows, load, settings.shape, f"torchvision:{name}", where),
        np.repeat([False, True], sizes),
        mean,
        std,
        where=where,
    )


SOURCE = Source("torchvision:NAME[@ROOT], a torchvision classification set", torchvision, "classification")


def _part(maker: Any, name: str, root: Path, test: bool) -> Any:
    """Open the training or test part, downloading it only when it is not there."""
    parameters = inspect.signature(maker).parameters
    choice: dict[str, Any]
    if "train" in parameters and parameters["train"].default is True:
        choice = {"train": not test}
    elif parameters.get("split") is not None and parameters["split"].default in ("train", "trainval"):
        choice = {"split": "test" if test else parameters["split"].default}
    else:
        choice = {}
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and key != "root"
    ]
    if not choice or needed:
        raise DataError(
            "expected a torchvision set with a training and a test part and no further arguments, got "
            f"{name!r}: write a function of your own and name it package.module:name"
        )
    try:
        return maker(str(root), **choice)
    except Exception as missing:  # damaged files raise errors of many kinds
        if "download" not in parameters:
            raise DataError(f"cannot read torchvision:{name} in {root}: {one_line(missing)}") from missing
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return maker(str(root), **choice, download=True)
    except Exception as error:
        if is_new:
            shutil.rmtree(root, ignore_errors=True)
        raise DataError(
            f"torchvision:{name} is not in {root} and cannot be downloaded: {one_line(error)}; give "
            f"the folder that holds it as torchvision:{name}@ROOT"
        ) from error


def _labels(part: Any) -> np.ndarray:
    for attribute in ("targets", "labels", "_labels"):
        labels = getattr(part, attribute, None)
        if labels is not None:
            return np.asarray(labels)
    return np.array([part[row][1] for row in range(len(part))])
