"""Files of weights: read without running anything that is in them, and fitted to a network."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kdfed.backbones.backbone import same_key
from kdfed.errors import DataError, one_line, shortened

KEY = "model.weights"

HEADS = frozenset({"fc", "classifier", "head", "heads", "AuxLogits", "aux1", "aux2"})
"""What classifiers are called in published files: entries of one that the network lacks are left out."""

_MOST_NAMED = 5  # entries of a file that a message names
_NUMBERS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                      torch.int16, torch.int8, torch.uint8, torch.bool})  # fmt: skip
"""What can be looked at and copied: not quantised numbers, or those of a byte and less."""
_HASHED = re.compile(r"-([0-9a-f]{8,})\.pth")


def read_state(path: Path, key: str = KEY) -> dict[str, torch.Tensor]:
    """Read a state dict from a file; nothing that is in the file is run.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a ``.pt`` or ``.pth`` file of ``torch.save(model.state_dict(), path)``.
    key
        The key of the experiment that has to change when the file is wrong.

    Returns
    -------
    dict
        Dense tensors by name, on the CPU.

    Raises
    ------
    DataError
        If the file is missing or damaged, or holds anything but tensors by name.
    """
    if not path.is_file():
        raise DataError(f"expected a file of weights, got {path}, which is no file; correct the path", key)
    advice = "save it with torch.save(model.state_dict(), path), or as .safetensors"
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            _refuse_packed(path, key)
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise DataError(f"expected a file .safetensors, .pt or .pth, got {path}: {advice}", key)
    except (SafetensorError, OSError) as error:
        raise DataError(f"expected a whole {path.suffix} file, got {path}: {one_line(error)}", key) from error
    except DataError:
        raise
    except Exception as error:  # a pickle of anything else, a truncated archive, TorchScript
        raise DataError(
            f"expected a state dict in {path}, got something that is no file of tensors alone, or a damaged "
            f"one; nothing in it was executed ({one_line(error, 200)}): {advice}",
            key,
        ) from error
    if not isinstance(state, Mapping) or not state:
        raise DataError(f"expected a state dict in {path}, got a {type(state).__name__}: {advice}", key)
    other = [name for name, value in state.items() if not _is_plain(name, value)]
    if other:
        raise DataError(
            f"expected only dense tensors by name in {path}, got {_listed([repr(name) for name in other])} "
            f"besides: {advice}",
            key,
        )
    return dict(state)


def fit_state(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    where: str,
    renamed: Callable[[str], str] = same_key,
) -> None:
    """Copy a state dict into a network, in place.

    Entries of a classifier that the network does not have are left out, and BatchNorm's counters, which old
    files lack, may be missing.

    Parameters
    ----------
    module
        The network.
    state
        Of a file.
    where
        Names the file in messages.
    renamed
        Takes a key of the file; returns that of the network.

    Raises
    ------
    DataError
        If an entry is missing, unexpected, of another shape, or not finite.
    """
    own = module.state_dict()
    given = {renamed(key): (key, value) for key, value in state.items()}
    wrong = [f"missing {key}" for key in own if key not in given and not key.endswith("num_batches_tracked")]
    fitting = {}
    for key, (written, value) in given.items():
        if key not in own:
            if key.partition(".")[0] not in HEADS:
                wrong.append(f"unexpected {written}")
        elif own[key].shape != value.shape:
            wrong.append(f"{written} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}")
        elif own[key].is_floating_point() != value.is_floating_point() or value.dtype not in _NUMBERS:
            wrong.append(f"{written} is {value.dtype}, expected {own[key].dtype}")
        elif not bool(torch.isfinite(value.to(own[key].dtype)).all()):
            wrong.append(f"{written} has NaN or infinity")
        else:
            fitting[key] = value
    if wrong:
        raise DataError(
            f"expected weights of {type(module).__name__} in {where}, got others: {_listed(wrong)}; use a "
            "file of this backbone with these options",
            KEY,
        )
    own.update(fitting)  # a dict of its own class, which knows the versions of layers
    module.load_state_dict(own)


def check_hash(path: Path) -> Path:
    """Return a published file whose name ends in the beginning of its own SHA-256, as ``-f37072fd.pth``.

    Raises
    ------
    DataError
        If it holds something else: it is damaged.
    """
    named = _HASHED.search(path.name)
    if named is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(named[1]):
            raise DataError(
                f"expected a whole file {path}, whose SHA-256 begins with {named[1]}, got one with "
                f"{found[:8]}: it is damaged; remove it, and install or download it again",
                KEY,
            )
    return path


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, shapes and dtypes, as hexadecimal digits."""
    found = hashlib.sha256()
    for key, value in state.items():
        found.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _refuse_packed(path: Path, key: str) -> None:
    """Refuse an archive that holds more than it is long: a small one can be unpacked to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        held = sum(entry.file_size for entry in archive.infolist())
    if held > path.stat().st_size:
        raise DataError(
            f"expected an archive that is not compressed, as torch.save writes it, got {path}, which is "
            f"{path.stat().st_size} bytes long and holds {held}: save it again",
            key,
        )


def _is_plain(name: object, value: object) -> bool:
    """Tell whether something is a dense tensor under a name, with its numbers here."""
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
    )


def _listed(what: Sequence[str]) -> str:
    more = f" and {len(what) - _MOST_NAMED} more" if len(what) > _MOST_NAMED else ""
    return shortened(", ".join(what[:_MOST_NAMED]), 800) + more
