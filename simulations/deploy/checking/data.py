"""A device's data, as far as they can be known without the experiment."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from kdfed.named import is_named
from simulations.deploy.checking.findings import Finding, fine, reason, wrong

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Files that count as images, as in :mod:`kdfed.data.images`, which needs a PyTorch that works."""

_MAGIC = {"parquet": (b"PAR1", "a parquet file"), "npz": (b"PK", "an archive of NumPy (.npz)")}
_NEEDS = {"folder": ("PIL", "pillow"), "parquet": ("pyarrow", "pyarrow")}
_FILES = {"parquet": ".parquet"}


def check_data(data: str, folder: Path) -> Iterator[Finding]:
    """Yield what is so of a device's data.

    Parameters
    ----------
    data
        The node-config's ``data``.
    folder
        The device's; paths may be relative to it.
    """
    kind, _, argument = data.partition(":")
    if kind not in ("folder", "parquet", "csv", "npz"):
        yield _check_code(data)
        return
    if kind in _NEEDS:
        module, package = _NEEDS[kind]
        if importlib.util.find_spec(module) is None:
            yield wrong("data", f"{kind}: needs the package {package}: pip install 'kdfed[edge]'")
    path = folder / Path(argument).expanduser()
    try:
        yield _check_folder(path) if kind == "folder" else _check_file(kind, path)
    except OSError as error:
        yield wrong(
            "data",
            f"expected {error.filename or path} to be readable: {reason(error)}; correct node-config.data, "
            "or let the user who runs kdfed read it",
        )


def _check_code(name: str) -> Finding:
    if not is_named(name):
        return wrong(
            "data",
            f"expected folder:, parquet:, csv: or npz: with a path, or package.module:name, got {name!r}",
        )
    top = name.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(top) is None:
        return wrong(
            "data", f"expected an installed package {top!r} for {name}; install it in kdfed's environment"
        )
    return fine("data", f"the package {top!r} is installed; {name} itself was not run")


def _check_folder(root: Path) -> Finding:
    classes = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )
    counts: dict[str, int] = {}
    for name in classes:
        for where, _, names in os.walk(root / name, onerror=_raise, followlinks=True):
            images = [one for one in names if Path(one).suffix.lower() in IMAGES and one[0] != "."]
            if images and name not in counts:
                (Path(where) / images[0]).open("rb").close()  # one of each class: may it be read?
            if images:
                counts[name] = counts.get(name, 0) + len(images)
    if not counts:
        return wrong(
            "data",
            f"expected images in {root} in one sub-folder per class, got {len(classes)} of them without",
        )
    return fine("data", f"{sum(counts.values())} images of {len(counts)} classes in {root}")


def _raise(error: OSError) -> None:
    raise error


def _check_file(kind: str, path: Path) -> Finding:
    files = [path]
    if path.is_dir() and kind in _FILES:
        files = sorted(path.rglob(f"*{_FILES[kind]}"))
        if not files:
            return wrong("data", f"expected files {_FILES[kind]} in {path}, got none")
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(4)
        magic, form = _MAGIC.get(kind, (b"", "a table with a line of column names"))
        if not start or not start.startswith(magic):
            return wrong("data", f"expected {form} at {file}, got {'something else' if start else 'nothing'}")
    size = sum(file.stat().st_size for file in files)
    return fine(
        "data", f"{len(files)} file{'s' if len(files) > 1 else ''} of {size / 2**20:.1f} MiB at {path}"
    )
