"""Images in files: one sub-folder per class."""

from __future__ import annotations

from kdfed.data.dataset import Listing, check_labels, class_names, labels_from_names, one_form, repeated
from kdfed.data.folders import existing, is_hidden, visible_files
from kdfed.data.images import SUFFIXES, opener, read_images
from kdfed.data.sources.source import Source
from kdfed.errors import DataError
from kdfed.settings import DataSettings


def folder(argument: str, settings: DataSettings) -> Listing:
    """Images in one sub-folder per class, as a device keeps its own.

    The classes and their order come from ``data.classes`` alone: a device that holds no example of a
    class has no such folder. Files without an image's suffix are passed over, and so is what is hidden.

    Raises
    ------
    DataError
        If the folder cannot be read, or holds a class that ``data.classes`` does not name.
    """
    open_image = opener()
    root = existing(argument)
    if not root.is_dir():
        absent = "" if root.exists() else ", which does not exist"
        raise DataError(f"expected a folder with one sub-folder per class, got {root}{absent}")
    names = class_names(settings, None, needs_names=True)
    files = [path for path in visible_files(root, SUFFIXES) if path.parent != root]
    present = [path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    labels_from_names(present, names, str(root))
    if repeated(one_form(present)):
        raise DataError(
            f"expected one folder of each class in {root}, got two whose names {repeated(one_form(present))} "
            "are the same but for their Unicode form: merge them"
        )
    values = [path.relative_to(root).parts[0] for path in files]
    labels = check_labels(labels_from_names(values, names, str(root)), len(names), str(root))

    def where(row: int) -> str:
        return str(files[row].relative_to(root))

    return Listing(
        labels,
        names,
        lambda rows: read_images(rows, lambda row: open_image(files[row]), settings.shape, str(root), where),
        where=where,
    )


SOURCE = Source("folder:PATH, images in one sub-folder per class", folder, "classification")
