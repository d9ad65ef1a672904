"""Which level trains a cohort: chosen by rule, never by a stopwatch."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import nn

from kdfed.cohort.folded import Folded, FoldedModel, NotFoldableError, Stack, own_inputs
from kdfed.errors import one_line
from kdfed.models import batch_norms, spare_inputs
from kdfed.seeding import torch_seed

log = logging.getLogger("kdfed.cohort")

Level = Literal["folded", "vmap", "loop"]

FOLD_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Memory budget of the activations of one fold, by device type."""

MOST_FOLDED = {"cpu": 24, "cuda": 1024}
"""Most participants of one fold, by device type: on a CPU more gain nothing, and do not fit its caches; on a
GPU they gain up to some 600 of the smallest models."""

KEPT = {"cpu": 3, "cuda": 5}
"""A step's memory in outputs of all layers: these, their gradients, what backward keeps; on a GPU windows of
convolutions, too."""

STEP_OVERHEAD = {"cpu": 4e6, "cuda": 2e9}
"""What a fold's step costs beside its arithmetic, as multiply-adds of a forward pass: padding that saves a
step may cost as much. On a GPU it is the time that starting a step's kernels takes (``docs/performance.md``).
"""

HEAVY_STEP = 6e7
"""Multiply-adds of one participant's forward pass over a batch above which a CPU is busy with arithmetic
alone, and folding gains nothing (measured in ``docs/performance.md``)."""


@dataclass(frozen=True)
class Cost:
    """What one example costs: multiply-adds of a forward pass, and bytes of all layers' outputs."""

    multiply_adds: float
    activation_bytes: float


@dataclass(frozen=True, eq=False)
class CohortPlan:
    """How models of one architecture are trained together.

    Parameters
    ----------
    level
        ``folded``, ``vmap`` or ``loop``.
    why
        One sentence.
    folded
        The traced model; None where it cannot be folded, or was not tried.
    architecture
        The model that was planned for; its weights mean nothing. A weak reference: plans are kept for as long
        as their model lives, and one that held its model would keep it for ever.
    cost
        Of one example.
    has_batch_norm
        Whether batches of different sizes must not be padded.
    """

    level: Level
    why: str
    folded: FoldedModel | None
    architecture: weakref.ref[nn.Module]
    cost: Cost
    has_batch_norm: bool

    @property
    def model(self) -> nn.Module:
        """The architecture, which the plan's user holds."""
        model = self.architecture()
        assert model is not None, "a plan is used while its model lives"
        return model

    @property
    def sees_examples_alone(self) -> bool:
        """Whether an example's logits are known to depend on nothing but the example and the weights."""
        return self.folded is not None and not self.has_batch_norm

    def forward(
        self, state: Mapping[str, torch.Tensor], inputs_BN: torch.Tensor, *, norm_training: bool
    ) -> torch.Tensor:
        """Return the logits [B, N, C] of B models, on inputs [B, N, ...] of their own."""
        if self.folded is not None:
            value = own_inputs(inputs_BN)
            return self.folded(state, value, len(inputs_BN), norm_training=norm_training)
        return _vmapped(self.model, state, inputs_BN, 0)

    def forward_shared(self, state: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, N, C] of B models, in evaluation mode, on the same inputs [N, ...]."""
        if self.folded is not None:
            participants = len(next(iter(state.values())))
            return self.folded(state, Folded(inputs, "shared"), participants)
        return _vmapped(self.model, state, inputs, None)

    def fold_width(self, batch_size: int, device: torch.device) -> int:
        """Return how many participants one fold takes, at least one."""
        kind = kind_of(device)
        each = KEPT[kind] * batch_size * self.cost.activation_bytes
        return int(max(1, min(MOST_FOLDED[kind], FOLD_BYTES[kind] // max(each, 1))))

    def folds(self, sizes: Sequence[int], batch_size: int, device: torch.device) -> list[slice]:
        """Cut participants into folds, so that padding and steps together cost least.

        Parameters
        ----------
        sizes
            Numbers of examples, falling.
        batch_size
            Examples of a step.
        device
            Where they are trained.

        Returns
        -------
        list of slice
            Neighbours, every participant in one slice. Those with equally many examples are only parted where
            there are too many for one fold.
        """
        width = self.fold_width(batch_size, device)
        overhead = STEP_OVERHEAD[kind_of(device)] / max(self.cost.multiply_adds, 1.0)
        ends = [0]  # of runs of equals
        for _, equals in groupby(sizes):
            count = len(list(equals))
            parts = -(-count // width)
            ends += [ends[-1] + count * (part + 1) // parts for part in range(parts)]
        firsts = [sizes[end] for end in ends[:-1]]
        steps = [-(-size // batch_size) for size in firsts]
        # Participants with fewer steps than the fold's largest are padded to whole batches, the others to it.
        whole = [0]
        for run, number in enumerate(steps):
            whole.append(whole[-1] + number * batch_size * (ends[run + 1] - ends[run]))
        alike = list(range(1, len(ends)))  # where runs with as many steps end
        for run in range(len(alike) - 2, -1, -1):
            if steps[run] == steps[run + 1]:
                alike[run] = alike[run + 1]
        best, came = [0.0], [0]
        for end in range(1, len(ends)):
            choices = []
            for begin in range(end - 1, -1, -1):
                if ends[end] - ends[begin] > width:
                    break
                same = min(alike[begin], end)
                rows = (ends[same] - ends[begin]) * firsts[begin] + whole[end] - whole[same]
                choices.append((best[begin] + rows + overhead * steps[begin], begin))
            cost, begin = min(choices)
            best.append(cost)
            came.append(begin)
        cuts: list[slice] = []
        last = len(ends) - 1
        while last:
            cuts.append(slice(ends[came[last]], ends[last]))
            last = came[last]
        return cuts[::-1]


def kind_of(device: torch.device) -> str:
    """Return the device type whose limits hold for a device."""
    return device.type if device.type in FOLD_BYTES else "cpu"


def functional_call(
    model: nn.Module, state: Mapping[str, torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    """Return a model's outputs with another state; the model is as it was afterwards."""
    with _untouched(model):
        outputs: torch.Tensor = torch.func.functional_call(model, dict(state), inputs)
    return outputs


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back, afterwards, what a pass sets on a model's modules: attributes, buffers and modes.

    Old ``weight_norm`` sets the weight that it has just computed: it would hold a graph, or the weights of
    many participants, and the model could not be copied any more.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            for own, kept in ((vars(module), attributes), (module._buffers, buffers)):
                own.clear()
                own.update(kept)


def _vmapped(
    model: nn.Module, state: Mapping[str, torch.Tensor], inputs: torch.Tensor, inputs_dim: int | None
) -> torch.Tensor:
    call = partial(functional_call, model)
    logits: torch.Tensor = torch.func.vmap(call, in_dims=(0, inputs_dim))(dict(state), inputs)
    return logits


_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, CohortPlan]] = weakref.WeakKeyDictionary()


def plan_for(model: nn.Module, input_shape: tuple[int, ...], batch_size: int = 1) -> CohortPlan:
    """Choose the level for models of one architecture.

    The rule, in this order: a model whose forward pass over a batch is heavy on a CPU, or that shares or
    freezes parameters, is looped; one made of registered layers is folded; one without batch statistics that
    ``torch.func`` takes is vmapped; the rest is looped. Folded and vmapped models are first tried on three
    participants with different weights, and must agree with the model itself.

    Parameters
    ----------
    model
        The architecture, on the device where it will run. Plans are kept for as long as it lives.
    input_shape
        Shape of one input.
    batch_size
        Examples of a step, or of a pass.

    Returns
    -------
    CohortPlan
        The same for the same arguments. Its level and reason are logged once.
    """
    device = next(model.parameters()).device
    spare_inputs(model)
    plans = _PLANS.setdefault(model, {})
    key = (input_shape, batch_size, device)
    if key not in plans:
        plans[key] = _choose(model, input_shape, batch_size, device)
        log.info("cohorts of %s: %s (%s)", type(model).__name__, plans[key].level, plans[key].why)
    return plans[key]


def _choose(
    model: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device
) -> CohortPlan:
    has_norm, own = bool(batch_norms(model)), weakref.ref(model)
    try:
        cost = _cost(model, input_shape, device)
    except Exception as error:
        return CohortPlan("loop", f"its cost cannot be estimated: {error}", None, own, Cost(0, 0), has_norm)

    def plan(level: Level, why: str, folded: FoldedModel | None = None) -> CohortPlan:
        return CohortPlan(level, why, folded, own, cost, has_norm)

    every = list(model.named_parameters(remove_duplicate=False))
    if len(every) != len(list(model.named_parameters())):
        return plan("loop", "it shares parameters between layers")
    if not all(parameter.requires_grad for _, parameter in every):
        return plan("loop", "some of its parameters are frozen")
    try:
        chosen = plan("folded", "all its layers are registered", FoldedModel(model))
        _try(chosen, input_shape, device)
        reason = ""
    except NotFoldableError as error:
        chosen = None
        reason = str(error)
    work = cost.multiply_adds * batch_size
    if device.type == "cpu" and work > HEAVY_STEP:
        why = f"{work:.1e} multiply-adds a step keep a CPU busy one participant at a time"
        return plan("loop", why) if chosen is None else replace(chosen, level="loop", why=why)
    if chosen is not None:
        return chosen
    if has_norm:
        return plan("loop", f"{reason}; and torch.func cannot keep BatchNorm's statistics")
    try:
        chosen = plan("vmap", reason)
        _try(chosen, input_shape, device)
        return chosen
    except Exception as error:
        return plan("loop", f"{reason}; torch.func does not take it: {one_line(error)}")


def _try(plan: CohortPlan, input_shape: tuple[int, ...], device: torch.device) -> None:
    """Compare three participants, each with weights of its own, with the model itself.

    Once in training mode (but BatchNorm is in evaluation mode) on inputs of their own, once in evaluation
    mode on shared inputs. The model is not changed.
    """
    generator = torch.Generator().manual_seed(0)
    model, own = plan.model, copy.deepcopy(plan.model)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(_TRIED, 2, *input_shape, generator=generator, dtype=dtype).to(device)
    states = [_other_weights(model, generator) for _ in range(_TRIED)]
    with _untouched(model), torch_seed(0):
        for training in (True, False):
            for each in (model, own):
                each.train(training)
                for norm in batch_norms(each):
                    norm.eval()
            stack = {key: torch.stack([state[key] for state in states]) for key in states[0]}
            try:
                with torch.no_grad():
                    if training:
                        logits = plan.forward(stack, inputs, norm_training=False)
                    else:
                        logits = plan.forward_shared(stack, inputs[0])
            except NotFoldableError:
                raise
            except Exception as error:
                raise NotFoldableError(f"it cannot be folded: {one_line(error)}") from error
            for index, state in enumerate(states):
                seen = inputs[index if training else 0]
                alone = _alone(own, state, seen)
                if logits[index].shape != alone.shape or not _close(logits[index], alone):
                    raise NotFoldableError("participants at once give other logits than one after the other")
                if plan.level == "vmap":
                    _check_independence(own, state, seen, alone)
            _check_use(own, inputs[0])


_TRIED = 3  # with two, an exchange that is undone by another would not show


def _alone(own: nn.Module, state: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Return a model's logits with one participant's state."""
    own.load_state_dict(dict(state))
    with torch.no_grad():
        logits: torch.Tensor = own(inputs)
    return logits


def _check_independence(
    own: nn.Module, state: Mapping[str, torch.Tensor], inputs: torch.Tensor, alone: torch.Tensor
) -> None:
    """Refuse a model that padding or stacking would change: unlike a folded one, its layers are not known."""
    if any(not torch.equal(values, state[key]) for key, values in own.state_dict().items()):
        raise NotFoldableError("its forward pass changes its buffers")
    singly = torch.cat([_alone(own, state, example.unsqueeze(0)) for example in inputs])
    if not _close(singly, alone):
        raise NotFoldableError("an example's logits depend on the others of its batch")


def _check_use(own: nn.Module, inputs: torch.Tensor) -> None:
    """Refuse parameters that get no gradient: an optimiser leaves them as they are, decay or not."""
    found = torch.autograd.grad(own(inputs).sum(), list(own.parameters()), allow_unused=True)
    if any(gradient is None for gradient in found):
        raise NotFoldableError("some of its parameters are not used")


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _other_weights(model: nn.Module, generator: torch.Generator) -> Stack:
    """Return a model's state with other numbers of the same size; buffers grow: variances stay positive."""
    parameters = {name for name, _ in model.named_parameters()}
    state = {}
    for key, values in model.state_dict().items():
        state[key] = values.clone()
        if values.is_floating_point() and values.numel():
            size = float(values.square().mean().sqrt()) or 0.1
            noise = torch.randn(values.shape, generator=generator, dtype=values.dtype).to(values.device)
            state[key] += 0.5 * size * (noise if key in parameters else noise.abs())
    return state


def _cost(model: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> Cost:
    """Count multiply-adds of convolutions and linear layers, and bytes of the outputs of all layers."""
    multiply_adds, activation_bytes = 0.0, 0.0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal multiply_adds, activation_bytes
        if not isinstance(output, torch.Tensor):
            return
        activation_bytes += output.numel() * output.element_size()
        if isinstance(module, nn.Conv2d):
            multiply_adds += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            multiply_adds += output.numel() * module.in_features

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        with _untouched(model), torch.no_grad():
            model.eval()
            model(torch.zeros(1, *input_shape, dtype=next(model.parameters()).dtype, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(multiply_adds, activation_bytes)
