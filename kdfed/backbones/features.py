"""Activations at a cut, computed once: in memory and on disk, by what they are computed from.

The key is the SHA-256 of the cut's fingerprint, the device and the inputs' bytes, so nothing is ever out of
date: other weights, another cut, another size or other images are another key. On disk an entry is a
``.safetensors`` file that holds the SHA-256 of its numbers; one that is damaged is computed anew.

Images are computed in batches of :data:`BATCH`, the last one filled up with black images, so that every
computation has the same shape: on a CPU an image's bits then depend neither on its neighbours nor on its
place among them (measured, also with more threads), while in batches of 7 they differ in the last digits.

Shape suffix: N images.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdfed.backbones.cut import Cut
from kdfed.backbones.weights import digest
from kdfed.data.checks import check_memory
from kdfed.device import to_device
from kdfed.errors import DataError
from kdfed.paths import user_path

log = logging.getLogger("kdfed.backbones")

FOLDER = Path("~/.cache/kdfed/features")
"""Where activations are kept."""

BATCH = 32
"""Images that are computed at once."""

_NAME = "activations"
_ABANDONED = 3600  # seconds: no file takes so long to write


class FeatureCache:
    """Activations by what they are computed from: the least recently used are dropped first.

    Parameters
    ----------
    folder
        Of the files, which any number of processes may share; None keeps them in memory alone.
    memory
        Bytes in memory, at most.
    disk
        Bytes of files, at most.
    """

    runs: int
    """How often activations were computed: neither found in memory nor on disk."""

    def __init__(self, folder: Path | None, memory: int = 2**30, disk: int = 8 * 2**30) -> None:
        self.folder = folder
        self.memory = memory
        self.disk = disk
        self.runs = 0
        self._held: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.RLock()

    def activations(self, cut: Cut, images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the activations of images at a cut.

        Parameters
        ----------
        cut
            Of the backbone.
        images
            As they are stored, uint8 [N, C, H, W]; N may be 0.
        device
            Where they are computed.

        Returns
        -------
        torch.Tensor
            float32 [N, *cut.shape] on the CPU, which others read too: it must not be changed.

        Raises
        ------
        DataError
            If they are no images, or their activations do not fit in memory.
        """
        device = torch.device(device)
        if images.dtype != np.uint8 or images.ndim != 4:
            cut.frozen.preparation(torch.from_numpy(np.asarray(images)[:1]))  # says what is wrong
        check_memory(
            4 * len(images) * math.prod(cut.shape),
            f"activations {cut.shape} of {len(images)} images at the cut of the backbone",
            "train fewer stages, or lower model.size or data.limit",
            "model.trainable",
        )
        key = _key(cut, images, device)
        with self._lock:
            found = self._held.get(key)
            if found is None:
                found = self._read(key, (len(images), *cut.shape))
            if found is None:
                found = compute(cut, images, device)
                self.runs += 1
                self._write(key, found)
            self._hold(key, found)
        return found

    def _hold(self, key: str, activations: torch.Tensor) -> None:
        self._held[key] = activations
        self._held.move_to_end(key)
        while self._held and sum(held.nbytes for held in self._held.values()) > self.memory:
            self._held.popitem(last=False)

    def _read(self, key: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """Return what a file holds; None where there is none, or it is damaged."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata, found = file.metadata() or {}, file.get_tensor(_NAME)
            if tuple(found.shape) == shape and metadata.get("sha256") == digest({_NAME: found}):
                os.utime(path)  # it was used
                return found  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            pass
        log.warning("%s is damaged, and computed anew", path)
        return None

    def _write(self, key: str, activations: torch.Tensor) -> None:
        """Keep activations in a file: whole or not at all, whoever else writes the same one."""
        if self.folder is None or activations.nbytes > self.disk:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(prefix=key[:16], suffix=".part", dir=self.folder)
            os.close(number)
            try:
                save_file({_NAME: activations}, name, {"sha256": digest({_NAME: activations})})
                os.replace(name, self._path(self.folder, key))
            finally:
                Path(name).unlink(missing_ok=True)
            self._tidy(self.folder)
        except (OSError, SafetensorError) as error:  # a full disk: it is computed again, next time
            log.warning("activations cannot be kept in %s: %s", self.folder, error)

    def _tidy(self, folder: Path) -> None:
        """Remove the files that were used least recently, until the others are small enough."""
        files = []
        for path in folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process removed it
                found = path.stat()
                files.append((found.st_mtime_ns, found.st_size, path))
        for path in folder.glob("*.part"):  # of processes that were ended while they wrote
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.disk:
                break
            path.unlink(missing_ok=True)
            total -= size

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key}.safetensors"


def compute(cut: Cut, images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the activations of images at a cut, without any cache: float32 [N, *cut.shape], on the CPU."""
    device = torch.device(device)
    found = torch.empty(len(images), *cut.shape)
    frozen = cut.frozen.to(device)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            batch = np.zeros((BATCH, *images.shape[1:]), dtype=images.dtype)
            batch[: len(part)] = part
            found[start : start + BATCH] = frozen(to_device(torch.from_numpy(batch), device))[: len(part)]
    if not bool(torch.isfinite(found).all()):
        raise DataError("expected finite activations of the backbone, got NaN or infinity", "model.weights")
    return found


@lru_cache(maxsize=1)
def default_cache() -> FeatureCache:
    """Return the cache of this process, whose files lie in :data:`FOLDER`."""
    try:
        return FeatureCache(user_path(FOLDER))
    except DataError:  # no home folder
        return FeatureCache(None)


def _key(cut: Cut, images: np.ndarray, device: torch.device) -> str:
    key = hashlib.sha256(f"{cut.fingerprint} {device.type} {BATCH} {images.dtype} {images.shape}\n".encode())
    key.update(np.ascontiguousarray(images).data)
    return key.hexdigest()
