"""Training a cohort: folds, ragged batches, and the steps themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from kdfed.cohort.folded import Stack
from kdfed.cohort.levels import Plan, plan_for
from kdfed.cohort.optimisers import StackedOptimiser
from kdfed.cohort.predicting import stack_states
from kdfed.config import OptimiserSettings
from kdfed.errors import KdfedError
from kdfed.models import State, load_state, state_of
from kdfed.seeding import shuffled
from kdfed.train import LocalLoss, TrainResult, batch_sizes, device_of, fit

if TYPE_CHECKING:
    from kdfed.data import Examples


@dataclass(frozen=True)
class Trained:
    """What a cohort's training left.

    Parameters
    ----------
    states
        Weights and buffers, each [B, *shape], on the CPU.
    rows
        The row of each participant in the stack, in the order of the participants.
    results
        One a participant, in the order of the participants.
    """

    states: Stack
    rows: list[int]
    results: list[TrainResult]

    def state(self, place: int) -> State:
        """Return one participant's state; it shares memory with the stack."""
        return {key: values[self.rows[place]] for key, values in self.states.items()}


def train_cohort(
    model: nn.Module,
    start: State | Sequence[State],
    examples: Examples,
    sizes: Sequence[int],
    settings: OptimiserSettings,
    loss: LocalLoss,
    seeds: Sequence[int],
    *,
    bfloat16: bool = False,
) -> Trained:
    """Train B participants of one architecture, each as :func:`kdfed.train.fit` would alone.

    Participants are sorted by their numbers of examples and cut into folds that fit a memory budget. A fold
    takes its steps together: at step t those that still have a batch, which are a prefix. Batches of
    different sizes are padded with examples of weight 0; with BatchNorm, whose statistics padding would
    change, participants with batches of one size step together.

    Parameters
    ----------
    model
        The architecture, on the device where training runs. Not changed.
    start
        The weights that all start from, or one state for each of B.
    examples
        Everybody's, one participant after the other.
    sizes
        How many of them each of B participants holds, at least one each.
    settings
        Epochs, batch size and optimiser.
    loss
        What is minimised.
    seeds
        Derived seeds, one for each of B: of the order of examples and of dropout.
    bfloat16
        Run layers in bfloat16 (autocast); weights and the loss stay float32.

    Returns
    -------
    Trained
        States and results, in the order of the participants.

    Raises
    ------
    KdfedError
        If a participant has no example, or the numbers of examples do not add up.
    """
    if not sizes or min(sizes) < 1 or sum(sizes) != len(examples):
        raise KdfedError(
            f"expected at least one example of each participant, {len(examples)} in all, got {list(sizes)}; "
            "raise partition.min-examples"
        )
    device = device_of(model)
    plan = plan_for(model, tuple(examples.inputs.shape[1:]), settings.batch_size)
    if plan.level == "loop" or len(sizes) == 1:
        return _loop(model, start, examples, sizes, settings, loss, seeds, bfloat16)
    examples = examples.to(device)
    starts = np.cumsum([0, *sizes[:-1]])
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    whole = _stack(start if isinstance(start, dict) else [start[place] for place in order], len(sizes))
    results: list[TrainResult] = [TrainResult(0.0, 0, 0)] * len(sizes)
    rows = [0] * len(sizes)
    first = 0
    for places in _folds(order, plan.fold_width(settings.batch_size, device)):
        here = slice(first, first + len(places))
        first += len(places)
        schedule = _Schedule.of(
            [sizes[p] for p in places],
            [int(starts[p]) for p in places],
            [seeds[p] for p in places],
            settings,
            merge_single=plan.has_batch_norm,
        )
        stack = {key: values[here].to(device) for key, values in whole.items()}  # on a CPU a view
        losses = _train_fold(plan, stack, examples, settings, loss, schedule, bfloat16)
        if device.type != "cpu":
            for key, values in stack.items():
                whole[key][here] = values.cpu()
        for row, place in enumerate(places):
            rows[place] = here.start + row
            results[place] = TrainResult(losses[row], int(schedule.steps[row]), sizes[place])
    return Trained(whole, rows, results)


def _folds(order: Sequence[int], width: int) -> Iterator[list[int]]:
    """Cut into folds of nearly equal width."""
    count = -(-len(order) // width)
    for part in np.array_split(np.asarray(order), count):
        yield part.tolist()


def _stack(start: State | Sequence[State], count: int) -> Stack:
    if not isinstance(start, dict):
        return stack_states(start)
    return {key: value.cpu().unsqueeze(0).repeat(count, *(1,) * value.ndim) for key, value in start.items()}


@dataclass(frozen=True)
class _Schedule:
    """Who sees which examples at which step.

    Parameters
    ----------
    index
        int64 [T, B, N]: places among all examples, 0 where padded.
    sizes
        int64 [T, B]: sizes of the batches, 0 where a participant has finished.
    steps
        int64 [B]: steps of each participant, falling.
    per_epoch
        int64 [B]: steps of an epoch.
    batch_of_one
        bool [B]: every batch holds one example, so that BatchNorm keeps its statistics.
    """

    index: torch.Tensor
    sizes: np.ndarray
    steps: np.ndarray
    per_epoch: np.ndarray
    batch_of_one: np.ndarray

    @classmethod
    def of(
        cls,
        counts: Sequence[int],
        starts: Sequence[int],
        seeds: Sequence[int],
        settings: OptimiserSettings,
        *,
        merge_single: bool,
    ) -> _Schedule:
        epochs, size = settings.epochs, settings.batch_size
        batches = [batch_sizes(count, size, merge_single=merge_single) for count in counts]
        per_epoch = np.array([len(own) for own in batches])
        steps = epochs * per_epoch
        widest = max(max(own) for own in batches)
        index = np.zeros((int(steps.max()), len(counts), widest), dtype=np.int64)
        sizes = np.zeros((int(steps.max()), len(counts)), dtype=np.int64)
        who = np.repeat(np.arange(len(counts)), counts)
        place = np.concatenate([np.arange(count) for count in counts])
        step = np.minimum(place // size, per_epoch[who] - 1)  # a merged last example joins the batch before
        column = place - step * size
        for epoch in range(epochs):
            order = shuffled(seeds, epoch, counts)
            index[epoch * per_epoch[who] + step, who, column] = order[who, place] + np.asarray(starts)[who]
        for row, own in enumerate(batches):
            sizes[: steps[row], row] = np.tile(own, epochs)
        alone = np.array([own[0] == 1 for own in batches])
        return cls(torch.from_numpy(index), sizes, steps, per_epoch, alone)

    def parts(self, step: int, has_batch_norm: bool) -> Iterator[tuple[slice | torch.Tensor, int, bool]]:
        """Yield who steps together: rows, the widest batch, and whether BatchNorm uses its statistics."""
        active = int((self.steps > step).sum())
        sizes = self.sizes[step, :active]
        if not has_batch_norm:
            yield slice(0, active), int(sizes.max()), False
            return
        for size in np.unique(sizes):
            for alone in (False, True):
                rows = np.flatnonzero((sizes == size) & (self.batch_of_one[:active] == alone))
                if len(rows):
                    yield torch.from_numpy(rows), int(size), not alone


def _train_fold(
    plan: Plan,
    stack: Stack,
    examples: Examples,
    settings: OptimiserSettings,
    loss: LocalLoss,
    schedule: _Schedule,
    bfloat16: bool,
) -> list[float]:
    """Train one fold in place; return everybody's mean loss of the last epoch."""
    device = examples.inputs.device
    index, sizes = schedule.index.to(device), torch.from_numpy(schedule.sizes).to(device)
    columns = torch.arange(index.shape[2], device=device)
    names = [name for name, _ in plan.model.named_parameters()]
    optimiser = StackedOptimiser([stack[name] for name in names], settings, steps=len(index))
    dtype = stack[names[0]].dtype
    losses = torch.zeros(sizes.shape, dtype=dtype, device=device)
    plan.model.train()
    for step in range(len(index)):
        for rows, width, norm_training in schedule.parts(step, plan.has_batch_norm):
            own = {key: values[rows] for key, values in stack.items()}
            leaves = [own[name].detach().requires_grad_() for name in names]
            own.update(zip(names, leaves, strict=True))
            chosen = index[step, rows, :width]
            mask = columns[:width] < sizes[step, rows].unsqueeze(1)
            inputs, labels = examples.inputs[chosen], examples.labels[chosen]
            with _autocast(device, bfloat16):
                logits = plan.forward(own, inputs, norm_training=norm_training)
            logits = logits.to(dtype)
            each = loss.examples(inputs.flatten(0, 1), logits.flatten(0, 1), labels.flatten()).view_as(labels)
            means = torch.where(mask, each, 0).sum(1) / mask.sum(1)
            if loss.penalty is not None:
                means = means + loss.penalty(dict(zip(names, leaves, strict=True)))
            gradients = torch.autograd.grad(means.sum(), leaves)
            losses[step, rows] = means.detach()
            optimiser.step(gradients, step, rows)
            if isinstance(rows, torch.Tensor):
                for key in stack.keys() - set(names):
                    stack[key][rows] = own[key]
    return _last_epoch(losses.cpu().double().numpy(), schedule)


def _last_epoch(losses: np.ndarray, schedule: _Schedule) -> list[float]:
    """Return each participant's mean loss over the examples of its last epoch."""
    means = []
    for row, (steps, per_epoch) in enumerate(zip(schedule.steps, schedule.per_epoch, strict=True)):
        last = slice(int(steps - per_epoch), int(steps))
        sizes = schedule.sizes[last, row]
        means.append(float(losses[last, row] @ sizes) / int(sizes.sum()))
    return means


def _loop(
    model: nn.Module,
    start: State | Sequence[State],
    examples: Examples,
    sizes: Sequence[int],
    settings: OptimiserSettings,
    loss: LocalLoss,
    seeds: Sequence[int],
    bfloat16: bool,
) -> Trained:
    """Train one participant after another: the slow twin, and the level for what cannot be folded."""
    states, results = [], []
    end = 0
    own = copy.deepcopy(model)
    for place, size in enumerate(sizes):
        load_state(own, start if isinstance(start, dict) else start[place])
        part = type(examples)(examples.inputs[end : end + size], examples.labels[end : end + size])
        end += size
        with _autocast(device_of(model), bfloat16):
            results.append(fit(own, part, settings, loss, seeds[place]))
        states.append(state_of(own))
    return Trained(stack_states(states), list(range(len(sizes))), results)


def _autocast(device: torch.device, bfloat16: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
