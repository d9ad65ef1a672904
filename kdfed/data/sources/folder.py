"""Images in files: one sub-folder per class."""

from __future__ import annotations

from functools import partial

import numpy as np

from kdfed.data.dataset import (
    Listing,
    NoLabelsError,
    check_labels,
    class_names,
    labels_from_names,
    one_form,
    repeated,
    unlabelled,
)
from kdfed.data.folders import existing, is_hidden, visible_files
from kdfed.data.images import SUFFIXES, opener, read_images
from kdfed.data.sources.source import Source
from kdfed.errors import DataError
from kdfed.settings import DataSettings


def folder(argument: str, settings: DataSettings, *, labelled: bool = True) -> Listing:
    """Images in one sub-folder per class, as a device keeps its own; without ``labelled``, beside each other.

    The classes and their order come from ``data.classes`` alone: a device that holds no example of a
    class has no such folder. Files without an image's suffix are passed over, and so is what is hidden.

    Raises
    ------
    NoLabelsError
        If there is no sub-folder with images, and there are some beside it.
    DataError
        If the folder cannot be read, or holds a class that ``data.classes`` does not name.
    """
    open_image = opener()
    root = existing(argument)
    if not root.is_dir():
        absent = "" if root.exists() else ", which does not exist"
        raise DataError(f"expected a folder with one sub-folder per class, got {root}{absent}")
    every = visible_files(root, SUFFIXES)
    files = [path for path in every if path.parent != root] if labelled else every

    def where(row: int) -> str:
        return str(files[row].relative_to(root))

    def read(rows: np.ndarray) -> np.ndarray:
        return read_images(rows, lambda row: open_image(files[row]), settings.shape, str(root), where)

    if not labelled:
        return Listing(unlabelled(len(files)), (), read, where=where)
    if every and not files:
        raise NoLabelsError(
            f"expected images in {root} in one sub-folder per class, got {len(every)} beside each other"
        )
    names = class_names(settings, None, needs_names=True)
    present = [path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    labels_from_names(present, names, str(root))
    if repeated(one_form(present)):
        raise DataError(
            f"expected one folder of each class in {root}, got two whose names {repeated(one_form(present))} "
            "are the same but for their Unicode form: merge them"
        )
    values = [path.relative_to(root).parts[0] for path in files]
    labels = check_labels(labels_from_names(values, names, str(root)), len(names), str(root))
    return Listing(labels, names, read, where=where)


SOURCE = Source(
    "folder:PATH, images in one sub-folder per class",
    folder,
    "classification",
    partial(folder, labelled=False),
)
