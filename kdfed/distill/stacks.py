"""Teachers' logits: one pass for all teachers of an architecture.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from kdfed.cohort import plan_for, predict_stack, stack_states
from kdfed.cohort.predicting import BATCH
from kdfed.distill.partial import completed, known_classes
from kdfed.errors import KdfedError, LogitsError
from kdfed.models import device_of, state_of
from kdfed.train import predict


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
        self._teachers, self._knows_KC = teachers, known_classes(teachers)
        groups: dict[str, list[int]] = {}
        for index, teacher in enumerate(teachers):
            shapes = [(key, tuple(value.shape)) for key, value in teacher.state_dict().items()]
            groups.setdefault(f"{teacher!r} {shapes} {device_of(teacher)}", []).append(index)
        self._groups = [
            (indices, stack_states([state_of(teachers[index]) for index in indices]))
            for indices in groups.values()
        ]
        self._checked = False

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of every teacher, float32 [K, N, C] on the CPU; inputs [N, ...] are never copied.

        Classes that a teacher does not know are completed from the others (:mod:`kdfed.distill.partial`).

        Raises
        ------
        KdfedError
            If teachers differ in their number of classes, or logits are not finite.
        """
        found_KNC = self.own_logits(inputs)
        return found_KNC if self._knows_KC is None else completed(found_KNC, self._knows_KC)

    def own_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what :meth:`logits` does, where nothing is completed from others."""
        if not self._checked:
            self._check(inputs[:2])
        logits: list[torch.Tensor] = [torch.empty(0)] * len(self._teachers)
        batch = min(BATCH, len(inputs))
        for indices, stack in self._groups:
            if plan_for(self._teachers[indices[0]], tuple(inputs.shape[1:]), batch).level == "loop":
                for index in indices:
                    logits[index] = predict(self._teachers[index], inputs, batch).float()
                continue
            values_KNC = predict_stack(self._teachers[indices[0]], stack, inputs).float()
            for index, values_NC in zip(indices, values_KNC, strict=True):
                logits[index] = values_NC
        classes = sorted({values.shape[1] for values in logits})
        if len(classes) > 1:
            raise KdfedError(f"expected teachers with the same classes, got {classes} logits per example")
        return _finite(torch.stack(logits))

    def _check(self, probe: torch.Tensor) -> None:
        """Take teachers out of their group that only look like the others: stacking changes their logits."""
        kept = []
        for indices, stack in self._groups:
            together = predict_stack(self._teachers[indices[0]], stack, probe)
            alone = torch.stack([predict(self._teachers[index], probe) for index in indices])
            same = torch.isclose(together, alone, rtol=1e-3, atol=1e-4, equal_nan=True).flatten(1).all(1)
            alike = [row for row in range(len(indices)) if same[row]]
            kept += [
                ([indices[row]], {k: v[[row]] for k, v in stack.items()})
                for row in range(len(indices))
                if not same[row]
            ]
            if alike:
                kept.append(([indices[row] for row in alike], {k: v[alike] for k, v in stack.items()}))
        self._groups, self._checked = kept, True


def teacher_logits(teachers: Sequence[nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits of every teacher, float32 [K, N, C] on the CPU; see :class:`TeacherStacks`."""
    return TeacherStacks(teachers).logits(inputs)


def logits_apart(
    teachers: Sequence[nn.Module],
    reads: Sequence[str],
    inputs_of: Callable[[int], Sequence[torch.Tensor]],
) -> list[torch.Tensor]:
    """Return what :meth:`TeacherStacks.logits` does, of teachers that do not read the same.

    Parameters
    ----------
    teachers
        At least one.
    reads
        For each, what it reads (:attr:`kdfed.settings.ModelSettings.reads`): equal of those that are asked
        on the same inputs.
    inputs_of
        Returns sets of inputs as the teacher of that index reads them; the same sets of all.

    Returns
    -------
    list of torch.Tensor
        For each set float32 [K, N, C] on the CPU.

    Raises
    ------
    LogitsError
        If logits are not finite.
    KdfedError
        As :meth:`TeacherStacks.logits`.
    """
    groups: dict[str, list[int]] = {}
    for index, read in enumerate(reads):
        groups.setdefault(read, []).append(index)
    found: list[list[torch.Tensor]] = [[] for _ in teachers]
    for indices in groups.values():
        stacks = TeacherStacks([teachers[index] for index in indices])
        device = device_of(teachers[indices[0]])
        try:
            sets = [stacks.own_logits(inputs.to(device)) for inputs in inputs_of(indices[0])]
        except LogitsError as error:
            broken = [indices[index] for index in error.teachers]
            raise LogitsError(broken, len(teachers)) from error
        for place, index in enumerate(indices):
            found[index] = [logits_KNC[place] for logits_KNC in sets]
    knows_KC = known_classes(teachers)
    stacked = [torch.stack(logits) for logits in zip(*found, strict=True)]
    return stacked if knows_KC is None else [completed(logits, knows_KC) for logits in stacked]


def uploaded_logits(logits_KNC: torch.Tensor, count: int) -> torch.Tensor:
    """Return uploaded logits [K, N, C] as float32 on the CPU.

    Raises
    ------
    KdfedError
        If they are not those of ``count`` examples, or not finite.
    """
    shape = tuple(logits_KNC.shape)
    if len(shape) != 3 or shape[0] == 0 or shape[1] != count:
        raise KdfedError(f"expected teachers' logits of shape (teachers, {count}, classes), got {shape}")
    return _finite(logits_KNC.detach().cpu().float())


def _finite(logits_KNC: torch.Tensor) -> torch.Tensor:
    broken = [k for k, logits_NC in enumerate(logits_KNC) if not torch.isfinite(logits_NC).all()]
    if broken:
        raise LogitsError(broken, len(logits_KNC))
    return logits_KNC
