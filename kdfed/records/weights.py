"""Final models: read back, and told apart by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from kdfed.arrays import Spec, problem_with_arrays
from kdfed.errors import DataError
from kdfed.models import State
from kdfed.paths import user_path


def serialised(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return weights as the content of a ``.safetensors`` file, with texts beside them."""
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    return save(tensors, None if metadata is None else dict(metadata))


def load_model(path: str | Path) -> State:
    """Read the weights of a ``.safetensors`` file.

    Parameters
    ----------
    path
        Such as ``models/<arm>-<seed>.safetensors`` of a run folder.

    Returns
    -------
    dict of Tensor
        On the CPU; ``model.load_state_dict`` takes it.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    where = user_path(path)
    if not where.is_file():
        raise DataError(f"expected a readable .safetensors file, got {path}, which is no file", "start")
    try:
        return dict(load_file(where))
    except (OSError, SafetensorError) as error:
        raise DataError(f"expected a readable .safetensors file, got {path}: {error}", "start") from error


def load_start(path: str | Path, spec: Spec) -> State:
    """Read the weights that an arm with ``start: file:PATH`` starts from.

    Parameters
    ----------
    path
        A ``.safetensors`` file.
    spec
        Shapes and dtypes of the federated model's weights.

    Raises
    ------
    DataError
        If the file cannot be read, keys, shapes or dtypes are those of another model, or a value is not
        finite.
    """
    state = load_model(path)
    problem = problem_with_arrays(state, spec)
    if problem is not None:
        raise DataError(
            f"{path} does not fit the model: {problem}; use weights of the same model, options, batch-norm, "
            "input shape and classes, saved with the dtypes of its layers",
            "start",
        )
    return state


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a model: its keys, dtypes, shapes and bytes, in any order of the keys.

    Parameters
    ----------
    state
        Tensors by name, on any device.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    sha256 = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        sha256.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()
