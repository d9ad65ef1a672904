"""Dead units: those of a model's ReLUs that answer 0 to every input.

A ReLU is seen where it is computed, whoever called it: ``nn.ReLU``, ``functional.relu`` and
``tensor.relu_()`` are one operation to PyTorch's dispatcher. Its units are the channels of what a convolution
made, and the last dimension of what a linear layer made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdfed.models.weights import device_of

_RELU = {"relu", "relu_"}
_RELU6 = {"hardtanh", "hardtanh_"}  # from 0; Hardtanh from elsewhere has no dead units
_LINEAR = {"addmm", "mm", "bmm", "baddbmm", "linear", "matmul"}


@dataclass(frozen=True)
class Units:
    """Units of a model's ReLUs.

    Parameters
    ----------
    dead
        How many answered 0 to every input.
    of
        How many there are, at least 1.
    """

    dead: int
    of: int

    @property
    def share(self) -> float:
        """How many of all are dead, in [0, 1]."""
        return self.dead / self.of


class _Watch(TorchDispatchMode):
    """Remembers which units of each ReLU were above 0, in the order in which they are computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: list[torch.Tensor] = []
        self.seen, self._channels = 0, True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if "convolution" in name:
            self._channels = True
        elif name in _LINEAR:
            self._channels = False
        elif name in _RELU or (name in _RELU6 and args[1] == 0):
            self._see(result)
        return result

    def _see(self, values: torch.Tensor) -> None:
        if values.dim() < 2:  # no units
            return
        positive = (values > 0).movedim(1 if self._channels else -1, -1)
        alive = positive.flatten(0, -2).any(0)
        if self.seen < len(self.alive):
            self.alive[self.seen] |= alive
        else:
            self.alive.append(alive)
        self.seen += 1


def dead_units(model: nn.Module, inputs: Sequence[torch.Tensor], batch_size: int = 256) -> Units | None:
    """Count the units of a model's ReLUs that answer 0 to every input.

    Parameters
    ----------
    model
        On any device; asked in evaluation mode, and left as it was.
    inputs
        Tensors [N, ...] on any device.
    batch_size
        Examples at a time.

    Returns
    -------
    Units or None
        None where it cannot be told: the model has no ReLU that is seen, takes another way from batch to
        batch, or cannot be run.

    Examples
    --------
    >>> layer = nn.Linear(1, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> dead_units(nn.Sequential(layer, nn.ReLU()), [torch.tensor([[1.0], [2.0]])])
    Units(dead=1, of=2)
    """
    watch, was_training = _Watch(), model.training
    model.eval()
    try:
        with torch.no_grad(), watch:
            for batch in (batch for tensor in inputs for batch in torch.split(tensor, batch_size)):
                watch.seen = 0
                model(batch.to(device_of(model)))
                if watch.seen < len(watch.alive):
                    return None
        alive = torch.cat([torch.empty(0, dtype=torch.bool), *(units.cpu() for units in watch.alive)])
        return Units(int((~alive).sum()), of=len(alive)) if len(alive) else None
    except Exception:  # somebody's own model may not bear to be watched
        return None
    finally:
        model.train(was_training)
