"""Teachers, or their logits, into one student: distillation on the transfer set before the first round.

The teachers' logits are computed once, unless the transfer images change from step to step (augmentation
without fixed views). Labels of the transfer set are touched only where the settings say so; the validation
split serves selection and the ``validated`` ensemble.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn

from kdfed.cohort import plan_for, predict_stack, stack_states
from kdfed.cohort.predicting import BATCH
from kdfed.config import (
    ConsolidationBase,
    ConsolidationSettings,
    MutualConsolidation,
    PartitionedConsolidation,
    TunedConsolidation,
    VanillaConsolidation,
    variants,
)
from kdfed.distill import partitioned, tuned
from kdfed.distill.tuned import Trial
from kdfed.ensemble import validated_scores
from kdfed.errors import KdfedError, LogitsError, unknown
from kdfed.models import State, load_state, spare_inputs, state_of
from kdfed.seeding import torch_generator, torch_seed
from kdfed.task import CLASSIFICATION, Task
from kdfed.train import device_of, epochs, evaluate, make_optimizer, predict
from kdfed.transfer import augment, views_of

if TYPE_CHECKING:
    from kdfed.data import Examples

BatchOf: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Indices into the transfer set -> (the student's inputs, the task's soft target [N, C])."""

Run: TypeAlias = (
    "Callable[[_Work, Sequence[nn.Module] | torch.Tensor, np.ndarray | None], ConsolidationResult]"
)
"""(work, teachers or their logits [K, N, C], label counts [K, C] or None) -> what came of it."""

OnEpoch: TypeAlias = Callable[[int, int, float | None], None]
"""(epoch from 1, epochs of all trainings, validation accuracy or None)."""


@dataclass(frozen=True)
class ConsolidationResult:
    """What a consolidation left beside the student.

    Parameters
    ----------
    steps
        Optimiser steps of all models and trials.
    epochs
        Passes over the transfer set that the student was trained for.
    best_epoch
        The epoch whose student was kept, from 1; the last one with ``select: last``.
    accuracy
        The kept student's validation accuracy in [0, 1], or the task's score.
    ensemble_accuracy
        The ensemble's validation accuracy in [0, 1]; None when only logits on the transfer set are known, and
        where the method has no ensemble.
    trials
        Of a search; empty without one.
    """

    steps: int
    epochs: int
    best_epoch: int
    accuracy: float
    ensemble_accuracy: float | None
    trials: tuple[Trial, ...] = ()


def consolidate(
    student: nn.Module,
    teachers: Sequence[nn.Module] | torch.Tensor,
    transfer: Examples,
    validation: Examples,
    settings: ConsolidationSettings,
    seed: int,
    *,
    label_counts: np.ndarray | None = None,
    on_epoch: OnEpoch = lambda epoch, epochs, accuracy: None,
    task: Task = CLASSIFICATION,
) -> ConsolidationResult:
    """Distil teachers into a student.

    Parameters
    ----------
    student
        Trained in place, on its device. Its weights beforehand are what the method ``partitioned`` keeps.
    teachers
        Models, or their logits on the transfer set, [K, N, C] of any float type. They are not changed: the
        method ``mutual`` trains copies.
    transfer
        N examples; the labels are used only with ``settings.labels``.
    validation
        Examples for selection, for the ``validated`` ensemble, and for the accuracies in the result.
    settings
        Method, its own settings, optimiser.
    seed
        Derived seed of order, dropout, augmentation and search.
    label_counts
        For the ensemble ``label-counts``: examples per class of each teacher, [K, C], possibly noisy.
    on_epoch
        Called after each epoch with (epoch from 1, epochs, validation accuracy or None). With ``select:
        last`` only the last epoch is evaluated.
    task
        Whose loss, score and soft target are used.

    Returns
    -------
    ConsolidationResult
        Steps and accuracies.

    Raises
    ------
    KdfedError
        If there is no teacher, logits do not fit the transfer set, a teacher's logits are not finite,
        features or uploaded logits are to be augmented, a method that trains teachers gets logits, or a
        method, ensemble or temperature is not one of the task's, or the method is not in :data:`RUNS`.
    """
    problem = method_problem(settings)
    if problem is not None:
        raise KdfedError(problem)
    if task is not CLASSIFICATION and isinstance(settings, PartitionedConsolidation):
        raise KdfedError(
            f"method 'partitioned' asks which model is surest, which task {task.name!r} does not tell; use "
            "vanilla, tuned or mutual"
        )
    if isinstance(teachers, torch.Tensor) and settings.augmentation:
        raise KdfedError(
            f"augmentation {list(settings.augmentation)} needs teachers' weights: uploaded logits belong to "
            "the images as they are; remove it or set teachers.upload: weights"
        )
    if settings.views is not None:
        draw = torch_generator(seed, "augmentation")
        transfer = views_of(transfer, settings.augmentation, settings.views, draw)
    for model in (student, *(() if isinstance(teachers, torch.Tensor) else teachers)):
        spare_inputs(model)
    work = _Work(student, transfer, validation, settings, seed, on_epoch, task)
    return RUNS[type(settings)](work, teachers, label_counts)


def method_problem(settings: ConsolidationBase) -> str | None:
    """Say that nothing in :data:`RUNS` carries a method out; None where something does."""
    if type(settings) in RUNS:
        return None
    names = [name for name, kind in variants("consolidation").items() if kind in RUNS]
    method = getattr(settings, "method", type(settings).__name__)
    return str(unknown("consolidation.method", method, names, "kdfed.consolidate.RUNS"))


class _Answers:
    """What teachers say: to the transfer set once, unless its images change from step to step."""

    def __init__(
        self, teachers: Sequence[nn.Module] | torch.Tensor, work: _Work, label_counts: np.ndarray | None
    ) -> None:
        settings, transfer = work.settings, work.transfer
        self.stacks: TeacherStacks | None = None
        self.validation_KNC: torch.Tensor | None = None
        self.transfer_KNC: torch.Tensor | None = None
        self.scores_KC = None if label_counts is None else torch.as_tensor(label_counts)
        if isinstance(teachers, torch.Tensor):
            self.transfer_KNC = _uploaded_logits(teachers, len(transfer))
            return
        self.stacks = TeacherStacks(teachers)
        self.validation_KNC = self.stacks.logits(work.validation.inputs)
        if getattr(settings, "ensemble", None) == "validated" and work.task is CLASSIFICATION:
            self.scores_KC = validated_scores(self.validation_KNC, work.validation.labels.cpu())
        if not work.fresh:
            self.transfer_KNC = self.stacks.logits(transfer.inputs)


class _Work:
    """A student on its transfer set, with whatever method."""

    def __init__(
        self,
        student: nn.Module,
        transfer: Examples,
        validation: Examples,
        settings: ConsolidationSettings,
        seed: int,
        on_epoch: OnEpoch,
        task: Task,
    ) -> None:
        self.student, self.transfer, self.validation = student, transfer, validation
        self.settings, self.seed, self.on_epoch, self.task = settings, seed, on_epoch, task
        self.device = device_of(student)
        self.fresh = bool(settings.augmentation) and settings.views is None
        self.inputs = transfer.inputs.to(self.device)
        self.labels_N = transfer.labels.to(self.device) if settings.labels else None

    # ------------------------------------------------------------------ the methods

    def distil(
        self,
        answers: _Answers,
        settings: VanillaConsolidation | PartitionedConsolidation,
        done: int = 0,
        runs: int = 1,
    ) -> ConsolidationResult:
        """Minimise the task's soft loss towards the target of the method."""
        frozen = copy.deepcopy(self.student)

        def target_of(
            logits_KNC: torch.Tensor, inputs: torch.Tensor, labels_N: torch.Tensor | None
        ) -> torch.Tensor:
            if isinstance(settings, PartitionedConsolidation):
                labels_N = None if labels_N is None else labels_N.cpu()
                own_NC = predict(frozen, inputs)
                return partitioned.target(logits_KNC, own_NC, labels_N, settings.temperature).to(self.device)
            target_NC = self.task.target(
                settings.ensemble, logits_KNC, settings.temperature, answers.scores_KC
            )
            return target_NC.to(self.device)

        ensemble_accuracy = None
        if answers.validation_KNC is not None:
            combined = target_of(answers.validation_KNC, self.validation.inputs, None)
            ensemble_accuracy = self.task.score(combined.cpu(), self.validation.labels.cpu())
        batch_of = self._batches(answers, target_of)

        def batch_loss(index: torch.Tensor) -> torch.Tensor:
            inputs, target_NC = batch_of(index)
            labels_N = None if self.labels_N is None else self.labels_N[index]
            outputs_NC = self.student(inputs)
            return self.task.soft_losses(
                outputs_NC, target_NC, labels_N, settings.temperature, settings.weight
            ).mean()

        result = self._train(batch_loss, done, runs)
        return replace(result, ensemble_accuracy=ensemble_accuracy)

    def tuned(self, answers: _Answers) -> ConsolidationResult:
        """Distil once for every pair of the search, each time from the same start, and keep the best."""
        settings = self.settings
        assert isinstance(settings, TunedConsolidation)
        start, kept = state_of(self.student), state_of(self.student)
        results: list[ConsolidationResult] = []
        runs = tuned.count(settings)
        shared = settings.model_dump(exclude={"method", "temperatures", "weights", "sampler", "trials"})

        def run(temperature: float, weight: float) -> tuned.Trial:
            nonlocal kept
            load_state(self.student, start)
            trial = VanillaConsolidation(**shared, temperature=temperature, weight=weight)
            result = self.distil(answers, trial, len(results), runs)
            if all(result.accuracy > earlier.accuracy for earlier in results):
                kept = state_of(self.student)
            results.append(result)
            return tuned.Trial(temperature, weight, result.accuracy, result.steps)

        trials = tuned.search(settings, self.seed, run)
        load_state(self.student, kept)
        winner = results[trials.index(tuned.best(trials))]
        return replace(winner, steps=sum(result.steps for result in results), trials=tuple(trials))

    def mutual(self, teachers: Sequence[nn.Module] | torch.Tensor) -> ConsolidationResult:
        """Train the student and copies of the teachers on each other."""
        if isinstance(teachers, torch.Tensor):
            raise KdfedError(
                "method 'mutual' trains the teachers too, from their weights; set teachers.upload: weights"
            )
        if not teachers:
            raise KdfedError("expected at least one teacher to learn with, got none")
        peers = [copy.deepcopy(teacher).to(self.device) for teacher in teachers]
        optimisers = [make_optimizer(peer, self.settings) for peer in peers]
        generator = torch_generator(self.seed, "augmentation")

        def batch_loss(index: torch.Tensor) -> torch.Tensor:
            inputs = self.inputs[index]
            if self.fresh:
                inputs = augment(inputs, self.settings.augmentation, generator)
            labels_N = None if self.labels_N is None else self.labels_N[index]
            outputs = [model(inputs) for model in (self.student, *peers)]
            own, *others = self.task.peer_losses(outputs, labels_N)
            for optimiser, loss in zip(optimisers, others, strict=True):
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            return own

        result = self._train(batch_loss, peers=peers, optimisers=optimisers)
        return replace(result, steps=result.steps * (1 + len(peers)))

    # ------------------------------------------------------------------ the loop

    def _batches(self, answers: _Answers, target_of: Callable[..., torch.Tensor]) -> BatchOf:
        stacks = answers.stacks
        if stacks is None or not self.fresh:
            target_NC = target_of(answers.transfer_KNC, self.inputs, self.labels_N)
            return lambda index: (self.inputs[index], target_NC[index])
        generator = torch_generator(self.seed, "augmentation")

        def batch_of(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            changed = augment(self.inputs[index], self.settings.augmentation, generator)
            labels_N = None if self.labels_N is None else self.labels_N[index]
            return changed, target_of(stacks.logits(changed), changed, labels_N)

        return batch_of

    def _train(
        self,
        batch_loss: Callable[[torch.Tensor], torch.Tensor],
        done: int = 0,
        runs: int = 1,
        peers: Sequence[nn.Module] = (),
        optimisers: Sequence[torch.optim.Optimizer] = (),
    ) -> ConsolidationResult:
        """Minimise a loss over the transfer set; ``optimisers`` of peers follow the student's schedule."""
        settings, student = self.settings, self.student

        def schedule(share: float) -> float:
            factor = cosine(share) if settings.schedule == "cosine" else 1.0
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = settings.lr * factor
            return factor

        steps, best_epoch, best_accuracy, best_state = 0, settings.epochs, -math.inf, None
        with torch_seed(self.seed):
            training = epochs(student, len(self.transfer), settings, batch_loss, self.seed, schedule, peers)
            for epoch, (_, sizes) in enumerate(training, start=1):
                steps += len(sizes)
                measured = None
                if settings.select == "best" or epoch == settings.epochs:
                    measured, _ = evaluate(student, self.validation, self.task)
                    if settings.select == "last":
                        best_accuracy = measured
                    elif measured > best_accuracy:
                        best_epoch, best_accuracy, best_state = epoch, measured, state_of(student)
                self.on_epoch(done * settings.epochs + epoch, runs * settings.epochs, measured)
        if best_state is not None:
            load_state(student, best_state)
        return ConsolidationResult(steps, settings.epochs, best_epoch, best_accuracy, None)


def _distil(
    work: _Work, teachers: Sequence[nn.Module] | torch.Tensor, label_counts: np.ndarray | None
) -> ConsolidationResult:
    settings = work.settings
    assert isinstance(settings, VanillaConsolidation | PartitionedConsolidation)
    return work.distil(_Answers(teachers, work, label_counts), settings)


RUNS: dict[type[ConsolidationBase], Run] = {
    VanillaConsolidation: _distil,
    PartitionedConsolidation: _distil,
    TunedConsolidation: lambda work, teachers, counts: work.tuned(_Answers(teachers, work, counts)),
    MutualConsolidation: lambda work, teachers, counts: work.mutual(teachers),
}
"""What carries out a method, by its very settings class: one derived from vanilla's is not vanilla KD."""


class TeacherStacks:
    """Teachers, stacked by architecture, so that one pass serves all of them.

    Parameters
    ----------
    teachers
        At least one.

    Raises
    ------
    KdfedError
        If there is no teacher.
    """

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        if not teachers:
            raise KdfedError("expected at least one teacher to consolidate, got none")
        self._teachers = teachers
        groups: dict[str, list[int]] = {}
        for place, teacher in enumerate(teachers):
            shapes = [(key, tuple(value.shape)) for key, value in teacher.state_dict().items()]
            groups.setdefault(f"{teacher!r} {shapes} {device_of(teacher)}", []).append(place)
        self._groups = [
            (places, stack_states([state_of(teachers[place]) for place in places]))
            for places in groups.values()
        ]
        self._checked = False

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of every teacher, float32 [K, N, C] on the CPU; inputs [N, ...] are never copied.

        Raises
        ------
        KdfedError
            If teachers differ in their number of classes, or logits are not finite.
        """
        if not self._checked:
            self._check(inputs[:2])
        logits: list[torch.Tensor] = [torch.empty(0)] * len(self._teachers)
        batch = min(BATCH, len(inputs))
        for places, stack in self._groups:
            if plan_for(self._teachers[places[0]], tuple(inputs.shape[1:]), batch).level == "loop":
                for place in places:
                    logits[place] = predict(self._teachers[place], inputs, batch).float()
                continue
            values_KNC = predict_stack(self._teachers[places[0]], stack, inputs).float()
            for place, values_NC in zip(places, values_KNC, strict=True):
                logits[place] = values_NC
        classes = sorted({values.shape[1] for values in logits})
        if len(classes) > 1:
            raise KdfedError(f"expected teachers with the same classes, got {classes} logits per example")
        return _finite(torch.stack(logits))

    def _check(self, probe: torch.Tensor) -> None:
        """Give a pass of its own to every teacher that only looks like the others of its group."""
        kept = []
        for places, stack in self._groups:
            together = predict_stack(self._teachers[places[0]], stack, probe)
            alone = torch.stack([predict(self._teachers[place], probe) for place in places])
            same = torch.isclose(together, alone, rtol=1e-3, atol=1e-4, equal_nan=True).flatten(1).all(1)
            alike = [row for row in range(len(places)) if same[row]]
            kept += [
                ([places[row]], {k: v[[row]] for k, v in stack.items()})
                for row in range(len(places))
                if not same[row]
            ]
            if alike:
                kept.append(([places[row] for row in alike], {k: v[alike] for k, v in stack.items()}))
        self._groups, self._checked = kept, True


def teacher_logits(teachers: Sequence[nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits of every teacher, float32 [K, N, C] on the CPU; see :class:`TeacherStacks`."""
    return TeacherStacks(teachers).logits(inputs)


def _uploaded_logits(logits_KNC: torch.Tensor, count: int) -> torch.Tensor:
    shape = tuple(logits_KNC.shape)
    if len(shape) != 3 or shape[0] == 0 or shape[1] != count:
        raise KdfedError(f"expected teachers' logits of shape (teachers, {count}, classes), got {shape}")
    return _finite(logits_KNC.detach().cpu().float())


def _finite(logits_KNC: torch.Tensor) -> torch.Tensor:
    broken = [k for k, logits_NC in enumerate(logits_KNC) if not torch.isfinite(logits_NC).all()]
    if broken:
        raise LogitsError(broken, len(logits_KNC))
    return logits_KNC


def cosine(done: float) -> float:
    r"""Return the factor of the learning rate after the share x of steps.

    .. math:: \frac{1}{2} (1 + \cos \pi x)

    References
    ----------
    Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, equation 5 without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * done))


def average_states(states: Sequence[State], weights: Sequence[float]) -> State:
    r"""Return the weighted mean :math:`\sum_k w_k \theta_k / \sum_k w_k` of models of one architecture.

    Sums run in float64, in the given order; results have the dtypes of the first state, integers (such as
    BatchNorm's counters) are rounded.

    Parameters
    ----------
    states
        At least one; all with the same keys and shapes.
    weights
        One per state, 0 or larger, not all 0; e.g. numbers of examples.

    Raises
    ------
    KdfedError
        If states and weights do not go together.

    References
    ----------
    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv
    1602.05629, algorithm 1.
    """
    if not states or len(states) != len(weights):
        raise KdfedError(
            f"expected one weight per state, got {len(states)} states and {len(weights)} weights"
        )
    total = math.fsum(weights)
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise KdfedError(f"expected weights of at least 0 with a sum above 0, got {list(weights)}")
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in states]
    for index, other in enumerate(shapes):
        if other != shapes[0]:
            differing = sorted(key for key in {*shapes[0], *other} if shapes[0].get(key) != other.get(key))
            raise KdfedError(
                f"expected states of one architecture, state {index} differs in {', '.join(differing)}"
            )
    average: State = {}
    for key, first in states[0].items():
        mean = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            mean += weight * state[key].double()
        mean /= total
        average[key] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    return average
