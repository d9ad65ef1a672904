"""SGD, Adam and AdamW with the bits of ``torch.optim``, without what its classes import.

The first object of a class of ``torch.optim`` imports PyTorch's compiler (``torch._dynamo``, sympy and more),
which nothing here uses: 1.6 s and some 90 MB in every process, far more than a device's training takes. The
functions behind those classes, such as ``torch.optim.sgd.sgd``, do the arithmetic, and import nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from kdfed.errors import unknown
from kdfed.settings import OptimiserSettings

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's numbers, which are the defaults of ``torch.optim``."""

_ADAMS = {"adam": adam, "adamw": adamw}


class Optimiser:
    """The optimiser of one model; its state starts afresh.

    Parameters
    ----------
    parameters
        What is trained; those without a gradient stay as they are in a step.
    settings
        Optimiser and its numbers.

    Attributes
    ----------
    lr
        Learning rate of the next step; a schedule sets it.

    Examples
    --------
    >>> weight = nn.Parameter(torch.ones(1))
    >>> weight.grad = torch.ones(1)
    >>> Optimiser([weight], OptimiserSettings(optimizer="sgd", lr=0.25)).step()
    >>> weight.item()
    0.75
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimiserSettings) -> None:
        if settings.optimizer != "sgd" and settings.optimizer not in _ADAMS:
            raise unknown("optimizer", settings.optimizer, ("sgd", *_ADAMS), "kdfed.optimisers")
        self.lr = settings.lr
        self._parameters = list(parameters)
        self._settings = settings
        self._buffers: dict[int, torch.Tensor | None] = {}
        self._moments: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Make one step along the gradients."""
        held = [
            (number, parameter, parameter.grad)
            for number, parameter in enumerate(self._parameters)
            if parameter.grad is not None
        ]
        numbers = [number for number, _, _ in held]
        parameters: list[torch.Tensor] = [parameter for _, parameter, _ in held]
        gradients = [gradient for _, _, gradient in held]
        if self._settings.optimizer == "sgd":
            self._sgd(numbers, parameters, gradients)
        else:
            self._adam(numbers, parameters, gradients)

    def _sgd(self, numbers: list[int], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        buffers = [self._buffers.get(number) for number in numbers]
        sgd(
            parameters,
            gradients,
            buffers,
            weight_decay=self._settings.weight_decay,
            momentum=self._settings.momentum,
            lr=self.lr,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        self._buffers.update(zip(numbers, buffers, strict=True))

    def _adam(
        self, numbers: list[int], parameters: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> None:
        for number, parameter in zip(numbers, parameters, strict=True):
            if number not in self._moments:
                self._moments[number] = (
                    torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    torch.tensor(0.0),
                )
        moments = [self._moments[number] for number in numbers]
        function: Any = _ADAMS[self._settings.optimizer]
        function(
            parameters,
            gradients,
            [first for first, _, _ in moments],
            [second for _, second, _ in moments],
            [],
            [steps for _, _, steps in moments],
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=self.lr,
            weight_decay=self._settings.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
