"""SGD, Adam and AdamW over stacked parameters, with the arithmetic of ``torch.optim``.

Active participants are a prefix of the fold, so that every step is one operation on a slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdfed.errors import unknown
from kdfed.optimisers import BETA_1, BETA_2, EPSILON
from kdfed.settings import OptimiserSettings


class StackedOptimiser:
    """The optimisers of B participants that all begin at step 1.

    Parameters
    ----------
    parameters
        Stacked parameters, each [B, *shape]. Where steps take slices, they are not changed and may be one
        tensor expanded: the first step replaces them. Steps of indexed rows change them in place.
    settings
        Optimiser and its numbers.
    steps
        How many steps there will be at most.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], settings: OptimiserSettings, *, steps: int
    ) -> None:
        self.parameters, self.settings, self.steps = list(parameters), settings, steps
        self._first: list[torch.Tensor] = []
        self._second: list[torch.Tensor] = []
        self._leaves: list[torch.Tensor] = []
        self._rows: slice | None = None

    def leaves(self, rows: slice | torch.Tensor) -> list[torch.Tensor]:
        """Return the parameters of some rows, each [R, *shape], to differentiate by.

        Those of a slice are views, which the next step of the same slice changes.
        """
        if isinstance(rows, torch.Tensor) or rows != self._rows:
            self._leaves = [values[rows].detach().requires_grad_() for values in self.parameters]
            self._rows = rows if isinstance(rows, slice) else None
        return self._leaves

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], step: int, rows: slice | torch.Tensor) -> None:
        """Make one step of some participants.

        Parameters
        ----------
        gradients
            One for each parameter, [R, *shape].
        step
            From 0; all these participants have made as many.
        rows
            Which R participants: a slice, or int64 indices.
        """
        settings = self.settings
        if isinstance(rows, torch.Tensor):  # gathered, stepped, put back
            stacks = [self.parameters, self._first, self._second]
            gathered = [[values[rows] for values in stack] for stack in stacks]
            part = StackedOptimiser(gathered[0], settings, steps=self.steps)
            part._first, part._second = gathered[1], gathered[2]
            part.step(gradients, step, slice(0, len(rows)))
            if not self._first and part._first:
                self._first = [torch.zeros_like(p) for p in self.parameters]
            if not self._second and part._second:
                self._second = [torch.zeros_like(p) for p in self.parameters]
            for whole, changed in (
                (self.parameters, part.parameters), (self._first, part._first), (self._second, part._second),
            ):  # fmt: skip
                for target, source in zip(whole, changed, strict=True):
                    target[rows] = source
            return
        if step == 0 and settings.optimizer != "sgd":
            self.parameters, self._rows = [parameter.clone() for parameter in self.parameters], None
        parameters = self.leaves(rows)
        grads = list(gradients)
        decay = settings.weight_decay
        if settings.optimizer == "adamw":
            if decay:
                torch._foreach_mul_(parameters, 1 - settings.lr * decay)
        elif decay:
            grads = list(torch._foreach_add(grads, parameters, alpha=decay))
        if settings.optimizer == "sgd":
            self._sgd(parameters, grads, step, rows)
        elif settings.optimizer in ("adam", "adamw"):
            self._adam(parameters, grads, step, rows)
        else:
            raise unknown(
                "optimizer", settings.optimizer, ("sgd", "adam", "adamw"), "kdfed.cohort.optimisers"
            )

    def _sgd(self, parameters: list[torch.Tensor], grads: list[torch.Tensor], step: int, rows: slice) -> None:
        momentum, rate = self.settings.momentum, self.settings.lr
        if step == 0:
            if momentum and self.steps > 1:
                self._first = grads  # the first step has no momentum to add: its gradients are the buffers
            self.parameters = list(torch._foreach_add(parameters, grads, alpha=-rate))
            self._rows = None
            return
        if not self._first:
            torch._foreach_add_(parameters, grads, alpha=-rate)
            return
        alike: list[tuple[torch.Tensor, ...]] = []
        others: list[tuple[torch.Tensor, ...]] = []
        for triple in zip(parameters, grads, (buffer[rows] for buffer in self._first), strict=True):
            (alike if all(values.is_contiguous() for values in triple) else others).append(triple)
        if alike:  # one pass instead of three; it ignores strides, and is silently wrong where they differ
            torch._fused_sgd_(
                *map(list, zip(*alike, strict=True)),
                weight_decay=0.0,  # added to the gradients already
                momentum=momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        for parameter, grad, buffer in others:
            buffer.mul_(momentum).add_(grad)
            parameter.add_(buffer, alpha=-rate)

    def _adam(
        self, parameters: list[torch.Tensor], grads: list[torch.Tensor], step: int, rows: slice
    ) -> None:
        if not self._first:
            self._first = [torch.zeros_like(parameter) for parameter in self.parameters]
            self._second = [torch.zeros_like(parameter) for parameter in self.parameters]
        correction_1, correction_2 = 1 - BETA_1 ** (step + 1), 1 - BETA_2 ** (step + 1)
        for parameter, grad, first, second in zip(
            parameters,
            grads,
            (one[rows] for one in self._first),
            (two[rows] for two in self._second),
            strict=True,
        ):
            first.lerp_(grad, 1 - BETA_1)
            second.mul_(BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
            denominator = (second.sqrt() / correction_2**0.5).add_(EPSILON)
            parameter.addcdiv_(first, denominator, value=-self.settings.lr / correction_1)
