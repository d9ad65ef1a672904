"""Training a cohort: its folds, their batches, and the steps themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from kdfed.cohort.folded import Stack
from kdfed.cohort.levels import CohortPlan, plan_for
from kdfed.cohort.one_step import one_step_participants, sum_of_steps
from kdfed.cohort.optimisers import StackedOptimiser
from kdfed.cohort.predicting import stack_states, state_at
from kdfed.errors import KdfedError
from kdfed.local import LocalLoss
from kdfed.models import State, load_state, state_of
from kdfed.seeding import shuffled
from kdfed.settings import OptimiserSettings
from kdfed.setup import Setup
from kdfed.train import TrainResult, fit

if TYPE_CHECKING:
    from kdfed.data import Examples


@dataclass(frozen=True)
class Trained:
    """What training left of some of a cohort's participants.

    Parameters
    ----------
    states
        Weights and buffers, each [R, *shape], on the CPU, or on the GPU that trained them where sums were
        enough; empty where ``sums`` is not.
    indices
        Whose they are: R indices into the cohort.
    results
        One for each of R.
    sums
        The sum of their weights and buffers, each times its number of examples; float64, each [*shape].
    """

    states: Stack
    indices: list[int]
    results: list[TrainResult]
    sums: State = field(default_factory=dict)

    def each(self) -> Iterator[tuple[int, State, TrainResult]]:
        """Yield each participant's index, its state in memory of its own, and its result; nothing of sums."""
        for row, (index, result) in enumerate(zip(self.indices, self.results, strict=True)):
            yield index, {key: value.clone() for key, value in state_at(self.states, row).items()}, result


def train_cohort(
    model: nn.Module,
    start: State | Sequence[State],
    examples: Examples,
    sizes: Sequence[int],
    settings: OptimiserSettings,
    loss: LocalLoss,
    seeds: Sequence[int],
    *,
    setup: Setup,
    shared: bool = False,
    sums: bool = False,
    only: frozenset[str] | None = None,
    pulls: Sequence[State] | None = None,
) -> Iterator[Trained]:
    """Train B participants with models of one architecture, each as :func:`kdfed.train.fit` trains one.

    Participants are sorted by their numbers of examples and cut into folds that fit a memory budget. A fold
    takes its steps together. At step t these are the participants who still have a batch, the first of the
    fold. Batches of different sizes are padded with examples of weight 0. Padding would change BatchNorm's
    statistics: with it, only participants with batches of one size step together.

    Parameters
    ----------
    model
        The architecture, on the setup's device. Not changed.
    start
        The weights that all start from, or one state for each of B.
    examples
        Everybody's, one participant after the other. What the loss gets as labels may be of any shape,
        [N, ...].
    sizes
        How many of them each of B participants holds, at least one each.
    settings
        Epochs, batch size and optimiser.
    loss
        What is minimised.
    seeds
        Derived seeds, one for each of B: of the order of examples and of dropout.
    setup
        Where training runs, and in which arithmetic; weights and the loss are float32 in any.
    shared
        All participants train on the same examples, which are there once: every size is their number.
    sums
        The sum of the weights is enough: participants who make one step may be trained as one, and only their
        sum be given (:mod:`.one_step`). States of a fold may stay on the GPU: copying them takes longer than
        a step.
    only
        Names of the parameters that are trained; the others stay as they start. Default: all.
    pulls
        What is added to the gradients of each of B, in every step, by names of parameters; ``sums`` is not to
        be set then. Default: nothing.

    Yields
    ------
    Trained
        A fold, as soon as it is trained: a caller who sums folds never holds all B states.

    Raises
    ------
    KdfedError
        If a participant has no example, or the numbers of examples do not add up.
    """
    held = sizes[:1] if shared else sizes
    if not sizes or min(sizes) < 1 or sum(held) != len(examples) or (shared and len(set(sizes)) > 1):
        raise KdfedError(
            f"expected at least one example of each participant, {len(examples)} in all, got {list(sizes)}; "
            "raise partition.min-examples"
        )
    counts = np.asarray(sizes)
    starts = np.zeros(len(sizes), dtype=np.int64) if shared else np.cumsum(counts) - counts
    device = setup.device
    plan = plan_for(model, tuple(examples.inputs.shape[1:]), settings.batch_size)
    examples = examples.to(device)
    indices = np.arange(len(sizes))
    assert not (sums and pulls), "participants who are trained as one have no pulls of their own"
    if sums and only is None and isinstance(start, dict) and not shared and setup.precision == "float32":
        together = one_step_participants(plan, counts, settings)
        summed = None
        if len(together) > 1:
            theirs = _examples_of(examples, counts, together)
            summed = sum_of_steps(plan, start, theirs, counts[together].tolist(), settings, loss)
        if summed is not None:
            sums_of_weights, results = summed
            yield Trained({}, together.tolist(), results, sums_of_weights)
            indices = np.setdiff1d(indices, together)
    if not len(indices):
        return
    if plan.level == "loop" or len(indices) < 2:
        yield from _loop(
            model, start, examples, indices, starts, sizes, settings, loss, seeds, setup, only, pulls
        )
        return
    model.train()
    order = indices[np.argsort(-counts[indices], kind="stable")]
    common = {key: value.to(device) for key, value in start.items()} if isinstance(start, dict) else {}
    for cut in plan.folds(counts[order].tolist(), settings.batch_size, device):
        indices = order[cut]
        schedule = _Schedule.of(
            counts[indices],
            starts[indices],
            [seeds[index] for index in indices.tolist()],
            settings,
            merge_single=plan.has_batch_norm,
        )
        if isinstance(start, dict):
            stack = {key: value.expand(len(indices), *value.shape) for key, value in common.items()}
        else:
            own = stack_states([start[index] for index in indices.tolist()])
            stack = {key: values.to(device) for key, values in own.items()}
        pull: Stack = {}
        if pulls is not None:
            stacked = stack_states([pulls[index] for index in indices.tolist()])
            pull = {key: values.to(device) for key, values in stacked.items()}
        states, losses = _train_fold(plan, stack, examples, settings, loss, schedule, setup, only, pull)
        results = [
            TrainResult(mean, steps, sizes[index])
            for mean, steps, index in zip(losses, schedule.steps.tolist(), indices.tolist(), strict=True)
        ]
        if not (sums and device.type == "cuda"):
            states = {key: values.cpu() for key, values in states.items()}
        yield Trained(states, indices.tolist(), results)


def _examples_of(examples: Examples, counts: np.ndarray, indices: np.ndarray) -> Examples:
    """Return the examples of some participants, whose indices rise."""
    if len(indices) == len(counts):
        return examples
    there = np.isin(np.arange(len(counts)), indices)
    rows = torch.from_numpy(np.flatnonzero(np.repeat(there, counts))).to(examples.inputs.device)
    return type(examples)(examples.inputs[rows], examples.labels[rows])


@dataclass(frozen=True)
class _StepGroup:
    """Participants of a fold who take one step together.

    Parameters
    ----------
    rows
        Which R of the fold's participants: a slice, or int64 indices.
    width
        Examples of the largest batch among them.
    ragged
        Whether some batches are smaller.
    norm_training
        Whether BatchNorm uses the batch's statistics.
    """

    rows: slice | torch.Tensor
    width: int
    ragged: bool
    norm_training: bool


@dataclass(frozen=True)
class _Schedule:
    """Who sees which examples at which step.

    Parameters
    ----------
    batches
        int64 [T, B, N]: indices into all examples. Batches are padded with the participant's own examples:
        somebody else's might not be finite.
    sizes
        int64 [T, B]: sizes of the batches, 0 where a participant has finished.
    steps
        int64 [B]: steps of each participant, falling.
    per_epoch
        int64 [B]: steps of an epoch.
    batch_of_one
        bool [B]: every batch holds one example, so that BatchNorm keeps its statistics.
    """

    batches: np.ndarray
    sizes: np.ndarray
    steps: np.ndarray
    per_epoch: np.ndarray
    batch_of_one: np.ndarray

    @classmethod
    def of(
        cls,
        counts: np.ndarray,
        starts: np.ndarray,
        seeds: Sequence[int],
        settings: OptimiserSettings,
        *,
        merge_single: bool,
    ) -> _Schedule:
        """Lay out the batches of :func:`kdfed.train.batch_sizes` for participants in falling order."""
        epochs, size = settings.epochs, settings.batch_size
        per_epoch = -(-counts // size)
        if merge_single:  # a last example joins the batch before
            per_epoch -= (counts % size == 1) & (per_epoch > 1)
        steps = epochs * per_epoch
        last = counts - (per_epoch - 1) * size
        epoch, batch = np.divmod(np.arange(steps[0])[:, None], per_epoch)
        sizes = np.where(batch == per_epoch - 1, last, size) * (epoch < epochs)
        begins = epoch * counts.sum() + (np.cumsum(counts) - counts) + batch * size
        there = np.arange(counts[0]) < counts[:, None]
        orders = [
            (shuffled(seeds, epoch, counts.tolist()) + starts[:, None])[there] for epoch in range(epochs)
        ]
        columns = np.minimum(np.arange(sizes.max()), np.maximum(sizes, 1)[:, :, None] - 1)
        batches = np.concatenate(orders)[np.where(sizes > 0, begins, 0)[:, :, None] + columns]
        return cls(batches, sizes, steps, per_epoch, sizes[0] == 1)

    def groups(self, has_batch_norm: bool) -> Iterator[tuple[int, list[_StepGroup]]]:
        """Yield every step, and the groups that take it together."""
        widest = self.sizes.max(1).tolist()
        actives = (self.sizes > 0).sum(1).tolist()
        ragged = (np.where(self.sizes > 0, self.sizes, np.iinfo(np.int64).max).min(1) < widest).tolist()
        for step, (active, width) in enumerate(zip(actives, widest, strict=True)):
            if has_batch_norm:
                yield step, list(self._groups_of_one_size(self.sizes[step, :active]))
            else:
                yield step, [_StepGroup(slice(0, active), width, ragged[step], False)]

    def _groups_of_one_size(self, sizes: np.ndarray) -> Iterator[_StepGroup]:
        """Yield a group for each size of a batch: padding would change BatchNorm's statistics."""
        for size in np.unique(sizes):
            for alone in (False, True):
                rows = np.flatnonzero((sizes == size) & (self.batch_of_one[: len(sizes)] == alone))
                if len(rows):
                    yield _StepGroup(torch.from_numpy(rows), int(size), False, not alone)


def _train_fold(
    plan: CohortPlan,
    stack: Stack,
    examples: Examples,
    settings: OptimiserSettings,
    loss: LocalLoss,
    schedule: _Schedule,
    setup: Setup,
    only: frozenset[str] | None,
    pull: Stack,
) -> tuple[Stack, list[float]]:
    """Train one fold; return the states, and everybody's mean loss of the last epoch.

    The stack may be one state expanded: it is read, and not changed.
    """
    if plan.has_batch_norm:  # steps of some rows only, and statistics changed in place
        stack = {key: values.clone() for key, values in stack.items()}
    device = examples.inputs.device
    batches, sizes = (torch.from_numpy(each).to(device) for each in (schedule.batches, schedule.sizes))
    columns = torch.arange(batches.shape[2], device=device)
    names = [name for name, _ in plan.model.named_parameters() if only is None or name in only]
    optimiser = StackedOptimiser([stack[name] for name in names], settings, steps=len(sizes))
    buffers = {key: values for key, values in stack.items() if key not in set(names)}
    dtype = stack[names[0]].dtype
    losses = torch.zeros(sizes.shape, dtype=dtype, device=device)
    ones = torch.ones(len(schedule.steps), dtype=dtype, device=device)
    for step, groups in schedule.groups(plan.has_batch_norm):
        for group in groups:
            rows = group.rows
            leaves = optimiser.leaves(rows)
            own = {key: values[rows] for key, values in buffers.items()}
            own.update(zip(names, leaves, strict=True))
            indices = batches[step, rows, : group.width]
            inputs, labels = (
                values.index_select(0, indices.flatten()).view(*indices.shape, *values.shape[1:])
                for values in (examples.inputs, examples.labels)
            )
            with setup.autocast():
                logits = plan.forward(own, inputs, norm_training=group.norm_training)
            logits = logits.to(dtype)
            each = loss.examples(inputs.flatten(0, 1), logits.flatten(0, 1), labels.flatten(0, 1))
            each = each.view(labels.shape[:2])
            if group.ragged:
                size = sizes[step, rows]
                means = torch.where(columns[: group.width] < size.unsqueeze(1), each, 0).sum(1) / size
            else:
                means = each.mean(1)
            if loss.penalty is not None:
                means = means + loss.penalty(dict(zip(names, leaves, strict=True)))
            gradients = torch.autograd.grad(means, leaves, ones[: len(means)])
            if pull:
                gradients = tuple(g + pull[name][rows] for name, g in zip(names, gradients, strict=True))
            losses[step, rows] = means.detach()
            optimiser.step(gradients, step, rows)
            if isinstance(rows, torch.Tensor):
                for key, values in buffers.items():
                    values[rows] = own[key]
    trained = stack | dict(zip(names, optimiser.parameters, strict=True))
    return trained, _last_epoch(losses.cpu().double().numpy(), schedule)


def _last_epoch(losses: np.ndarray, schedule: _Schedule) -> list[float]:
    """Return each participant's mean loss over the examples of its last epoch."""
    step = np.arange(len(losses))[:, None]
    last = schedule.sizes * ((step >= schedule.steps - schedule.per_epoch) & (step < schedule.steps))
    means: list[float] = (np.where(last > 0, losses * last, 0).sum(0) / last.sum(0)).tolist()
    return means


def _loop(
    model: nn.Module,
    start: State | Sequence[State],
    examples: Examples,
    indices: np.ndarray,
    starts: np.ndarray,
    sizes: Sequence[int],
    settings: OptimiserSettings,
    loss: LocalLoss,
    seeds: Sequence[int],
    setup: Setup,
    only: frozenset[str] | None,
    pulls: Sequence[State] | None,
) -> Iterator[Trained]:
    """Train one participant after another: for models that cannot be folded, and to compare folds with."""
    for index in indices.tolist():
        own = copy.deepcopy(model)  # training may change more of a model than its state
        if only is not None:
            for name, parameter in own.named_parameters():
                parameter.requires_grad_(name in only)
        pull = {} if pulls is None else pulls[index]
        for name, parameter in own.named_parameters() if pull else ():
            moved = partial(torch.add, pull[name].to(setup.device))
            parameter.register_hook(moved)  # type: ignore[no-untyped-call]
        begin, size = starts[index], sizes[index]
        load_state(own, start if isinstance(start, dict) else start[index])
        part = type(examples)(examples.inputs[begin : begin + size], examples.labels[begin : begin + size])
        with setup.autocast():
            result = fit(own, part, settings, loss, seeds[index])
        yield Trained(stack_states([state_of(own)]), [index], [result])
