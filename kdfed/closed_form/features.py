"""Features of a model: what its last linear layer reads, whose outputs are the logits.

Shape suffixes: N examples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kdfed.errors import KdfedError
from kdfed.models import State, device_of, spare_inputs
from kdfed.train import predict


@dataclass(frozen=True)
class HeadOf:
    """Where a model has its head.

    Parameters
    ----------
    name
        Of the ``torch.nn.Linear``; its state is ``name.weight`` [C, D] and ``name.bias`` [C].
    dims
        D, the features that it reads.
    """

    name: str
    dims: int

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of weight and bias in the model's state."""
        dot = f"{self.name}." if self.name else ""
        return f"{dot}weight", f"{dot}bias"

    def without(self, state: Mapping[str, torch.Tensor]) -> State:
        """Return a state without the head's: all that features depend on."""
        return {key: value for key, value in state.items() if key not in self.keys}

    def trained(self, state: Mapping[str, torch.Tensor], part: str) -> State:
        """Return of a state what a round trains: ``all``, ``body`` or ``head``."""
        if part == "body":
            return self.without(state)
        return {key: value for key, value in state.items() if part == "all" or key in self.keys}

    def replaced(
        self, state: Mapping[str, torch.Tensor], weight_CD: torch.Tensor, bias_C: torch.Tensor
    ) -> State:
        """Return a state with another head, in the order and with the dtypes of the old one."""
        new = dict(zip(self.keys, (weight_CD, bias_C), strict=True))
        return {
            key: new[key].to(value.dtype).contiguous() if key in new else value
            for key, value in state.items()
        }

    def features(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Return features, float [N, D] on the CPU, in evaluation mode; N at least 1.

        Parameters
        ----------
        model
            On any device.
        inputs
            As the model reads them, [N, ...].
        """
        caught: list[torch.Tensor] = []
        handle = model.get_submodule(self.name).register_forward_pre_hook(
            lambda module, given: caught.append(given[0].detach().cpu())
        )
        try:
            predict(model, inputs)
        finally:
            handle.remove()
        return torch.cat(caught)


def head_of(model: nn.Module, input_shape: tuple[int, ...]) -> HeadOf:
    """Return a model's head; it is found by trying the model on zeros.

    Parameters
    ----------
    model
        On any device.
    input_shape
        Shape of one input as the model reads it.

    Raises
    ------
    KdfedError
        If its logits are not what a ``torch.nn.Linear`` with a bias makes of one vector an example.
    """
    made: list[tuple[str, nn.Linear, torch.Tensor, torch.Tensor]] = []

    def watched(name: str) -> object:
        def note(module: nn.Linear, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            made.append((name, module, given[0], output))

        return note

    handles = [
        module.register_forward_hook(watched(name))  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    was_training = model.training
    spare_inputs(model)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *input_shape, device=device_of(model)))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    for name, module, read, output in made[-1:]:
        if output is logits and read.ndim == 2 and module.bias is not None:
            return HeadOf(name, module.in_features)
    raise KdfedError(
        "expected a model whose logits are what its last torch.nn.Linear, with a bias, makes of one vector "
        f"an example, got {type(model).__name__}, which has no such head; use another model"
    )
