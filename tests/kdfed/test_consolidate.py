from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from kdfed.augmentation import views_of
from kdfed.consolidate import consolidate
from kdfed.data import Examples
from kdfed.distill import (
    METHODS,
    ConsolidationResult,
    Distillation,
    KDMethod,
    PartitionedConsolidation,
    VanillaConsolidation,
    partitioned,
)
from kdfed.distill.stacks import TeacherStacks, teacher_logits
from kdfed.ensembles import ENSEMBLES
from kdfed.ensembles.stacked import Stacked
from kdfed.ensembles.validated import validated_scores
from kdfed.errors import KdfedError
from kdfed.local import PLAIN
from kdfed.losses import kd_loss, peer_losses
from kdfed.models import build_model, state_of
from kdfed.seeding import shuffled, torch_generator
from kdfed.settings import ModelSettings, TeacherSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import evaluate, fit, predict
from tests.setups import CPU

CLASSES = 3


def some_examples(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return Examples(centres[labels] + 0.7 * torch.randn(count, 1, 8, 8, generator=generator), labels)


TRANSFER, VALIDATION = some_examples(30, 1), some_examples(40, 2)


def some_model(seed: int, name: str = "mlp") -> nn.Module:
    return build_model(ModelSettings(name=name), (1, 8, 8), CLASSES, seed)


@pytest.fixture(scope="module")
def teachers() -> list[nn.Module]:
    """Teacher k has seen all classes but k."""
    found = []
    for k in range(CLASSES):
        model, examples = some_model(k), some_examples(60, 10 + k)
        keep = examples.labels != k
        fit(
            model, Examples(examples.inputs[keep], examples.labels[keep]), TeacherSettings(epochs=5), PLAIN, k
        )
        found.append(model)
    return found


COUNTS = 20 * (1 - np.eye(CLASSES))


def settings(**changes: object) -> VanillaConsolidation:
    return VanillaConsolidation(**{"epochs": 4, "batch_size": 8, **changes})


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = state_of(first), state_of(second)
    return all(torch.equal(one[key], two[key]) for key in one)


def slow_clip(model: nn.Module, most: float) -> None:
    """Divide every gradient by how many times too long all of them together are."""
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    if 0 < most < norm:
        for gradient in gradients:
            gradient *= most / norm


def slow_consolidate(
    student: nn.Module, target: torch.Tensor, chosen: VanillaConsolidation, seed: int, labelled: bool
) -> None:
    """The training spelt out, without augmentation."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        student.parameters(), lr=chosen.lr, momentum=chosen.momentum
    )
    if chosen.optimizer == "adam":
        optimizer = torch.optim.Adam(student.parameters(), lr=chosen.lr)
    step, steps = 0, chosen.epochs * math.ceil(len(TRANSFER) / chosen.batch_size)
    for epoch in range(chosen.epochs):
        order = shuffled([seed], epoch, [len(TRANSFER)])[0].tolist()
        for start in range(0, len(order), chosen.batch_size):
            batch = order[start : start + chosen.batch_size]
            rate = chosen.lr
            if chosen.schedule == "cosine":
                rate *= (1 + math.cos(math.pi * step / steps)) / 2
            if chosen.warm_up * steps > step + 1:
                rate *= (step + 1) / (chosen.warm_up * steps)
            optimizer.param_groups[0]["lr"] = rate
            labels = TRANSFER.labels[batch] if labelled else None
            logits = student(TRANSFER.inputs[batch])
            optimizer.zero_grad()
            kd_loss(logits, target[batch], labels, chosen.temperature, chosen.weight).backward()
            slow_clip(student, chosen.clip)
            optimizer.step()
            step += 1


@pytest.mark.parametrize(
    ("ensemble", "changes"),
    [
        ("mean-logits", {}),
        ("mean-probabilities", {"schedule": "cosine", "momentum": 0.9}),
        ("label-counts", {"labels": True, "weight": 0.6}),
        ("confidence", {"temperature": 1.0}),
        ("validated", {"batch_size": 7}),
        ("mean-logits", {"warm_up": 0.5}),
        ("mean-logits", {"clip": 0.3}),
        ("mean-probabilities", {"warm_up": 0.4, "clip": 0.5, "schedule": "cosine", "momentum": 0.9}),
        ("mean-probabilities", {"warm_up": 0.4, "clip": 0.5, "optimizer": "adam", "lr": 0.01}),
    ],
)
def test_consolidation_agrees_with_the_slow_twin(
    teachers: list[nn.Module], ensemble: str, changes: dict[str, object]
) -> None:
    chosen = settings(ensemble=ensemble, **changes)
    fast, slow = some_model(5), some_model(5)
    counts = COUNTS if ensemble == "label-counts" else None
    result = consolidate(fast, teachers, TRANSFER, VALIDATION, chosen, 3, label_counts=counts, setup=CPU)
    logits = torch.stack([teacher.eval()(TRANSFER.inputs).detach() for teacher in teachers])
    checks = torch.stack([teacher.eval()(VALIDATION.inputs).detach() for teacher in teachers])
    scores = None
    if ensemble == "label-counts":
        scores = torch.as_tensor(COUNTS)
    if ensemble == "validated":
        scores = validated_scores(checks, VALIDATION.labels)
    combine = ENSEMBLES.find(ensemble)().target
    target = combine(logits, chosen.temperature, scores)
    slow_consolidate(slow, target, chosen, 3, labelled=chosen.labels)
    for one, two in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert result.steps == 4 * math.ceil(30 / chosen.batch_size)
    assert result.accuracy == evaluate(fast, VALIDATION, CLASSIFICATION)[0]
    guess = combine(checks, chosen.temperature, scores).argmax(1)
    assert result.ensemble_accuracy == pytest.approx(float((guess == VALIDATION.labels).float().mean()))


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_fitted_ensemble_and_its_student_are_judged_by_what_it_was_not_fitted_on(
    teachers: list[nn.Module], select: str
) -> None:
    """With ``select: best`` no student of the epochs is better on those examples."""
    chosen = settings(ensemble="stacked", select=select, epochs=6, lr=0.02)
    student, measured = some_model(5), []
    result = consolidate(
        student,
        teachers,
        TRANSFER,
        VALIDATION,
        chosen,
        3,
        setup=CPU,
        on_epoch=lambda epoch, epochs, accuracy: measured.append(accuracy),
    )
    unseen = Stacked().unseen_N(VALIDATION.labels)
    judged = Examples(VALIDATION.inputs[unseen], VALIDATION.labels[unseen])
    assert 0 < len(judged) < len(VALIDATION) / 2
    assert result.accuracy == evaluate(student, judged, CLASSIFICATION)[0]
    assert result.accuracy == (max(measured) if select == "best" else measured[-1])
    checks = torch.stack([teacher.eval()(VALIDATION.inputs).detach() for teacher in teachers])
    target = Stacked().target(checks, chosen.temperature, Stacked().scores(checks, VALIDATION.labels, None))
    assert result.ensemble_accuracy == CLASSIFICATION.score(target[unseen], judged.labels)


def other(method: str, **changes: object) -> KDMethod:
    values = {"method": method, "epochs": 4, "batch_size": 8, **changes}
    return METHODS.find(method)(**values)


@pytest.mark.parametrize("changes", [{}, {"labels": True}, {"labels": True, "weight": 0.5}])
def test_partitioned_agrees_with_the_slow_twin(teachers: list[nn.Module], changes: dict[str, object]) -> None:
    chosen = other("partitioned", temperature=2.0, **changes)
    assert isinstance(chosen, PartitionedConsolidation)
    fast, slow = some_model(5), some_model(5)
    consolidate(fast, teachers, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
    logits = torch.stack([teacher.eval()(TRANSFER.inputs).detach() for teacher in teachers])
    frozen = slow.eval()(TRANSFER.inputs).detach()
    target = partitioned.target(logits, frozen, TRANSFER.labels if chosen.labels else None, 2.0)
    plain = settings(temperature=2.0, weight=chosen.weight, labels=chosen.labels)
    slow_consolidate(slow, target, plain, 3, labelled=chosen.labels)
    for one, two in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_partitioned_takes_uploaded_logits_like_the_teachers_themselves(teachers: list[nn.Module]) -> None:
    from_models, from_logits = some_model(5), some_model(5)
    chosen = other("partitioned")
    consolidate(from_models, teachers, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
    uploaded = teacher_logits(teachers, TRANSFER.inputs)
    consolidate(from_logits, uploaded, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
    assert same(from_models, from_logits)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_mutual_agrees_with_the_slow_twin_and_leaves_the_teachers_alone(
    teachers: list[nn.Module], labels: bool, clip: float
) -> None:
    chosen, before = (
        other("mutual", labels=labels, momentum=0.5, warm_up=0, clip=clip),
        [state_of(t) for t in teachers],
    )
    fast = some_model(5)
    result = consolidate(fast, teachers, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
    models = [some_model(5), *(copy.deepcopy(teacher) for teacher in teachers)]
    optimisers = [torch.optim.SGD(m.parameters(), lr=chosen.lr, momentum=0.5) for m in models]
    for epoch in range(4):
        for batch in torch.from_numpy(shuffled([3], epoch, [30])[0]).split(8):
            logits = [model.train()(TRANSFER.inputs[batch]) for model in models]
            every = peer_losses(logits, TRANSFER.labels[batch] if labels else None)
            for model, optimiser, loss in zip(models, optimisers, every, strict=True):
                optimiser.zero_grad()
                loss.backward()
                slow_clip(model, clip)
                optimiser.step()
    for one, two in zip(fast.parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert result.steps == (1 + len(teachers)) * 4 * 4
    for teacher, old in zip(teachers, before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in state_of(teacher).items())


def test_mutual_peers_may_differ_and_follow_the_schedule(teachers: list[nn.Module]) -> None:
    chosen = other("mutual", schedule="cosine", augmentation=("flip",))
    student = some_model(5)
    peers = [*teachers[:1], some_model(7, "cnn")]
    result = consolidate(student, peers, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
    assert not same(student, some_model(5))
    assert result.ensemble_accuracy is None


def test_mutual_needs_weights(teachers: list[nn.Module]) -> None:
    logits = teacher_logits(teachers, TRANSFER.inputs)
    with pytest.raises(KdfedError, match=r"expected the teachers' weights, got their logits; set"):
        consolidate(some_model(5), logits, TRANSFER, VALIDATION, other("mutual"), 3, setup=CPU)
    with pytest.raises(KdfedError, match="at least one teacher"):
        consolidate(some_model(5), [], TRANSFER, VALIDATION, other("mutual"), 3, setup=CPU)


def test_tuned_keeps_the_best_of_its_trials_each_from_the_same_start(teachers: list[nn.Module]) -> None:
    asked = {"temperatures": (1.0, 4.0), "weights": (0.3, 1.0), "labels": True}
    tuned, epochs_told = some_model(5), []
    result = consolidate(
        tuned, teachers, TRANSFER, VALIDATION, other("tuned", **asked), 3,
        on_epoch=lambda epoch, epochs, accuracy: epochs_told.append((epoch, epochs)), setup=CPU,
    )  # fmt: skip
    alone = {}
    for weight in asked["weights"]:
        for temperature in asked["temperatures"]:
            student = some_model(5)
            chosen = settings(temperature=temperature, weight=weight, labels=True)
            one = consolidate(student, teachers, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
            alone[temperature, weight] = (one.accuracy, student)
    assert {(t.temperature, t.weight): t.accuracy for t in result.trials} == {
        pair: accuracy for pair, (accuracy, _) in alone.items()
    }
    accuracy, student = max(alone.values(), key=lambda found: found[0])
    assert result.accuracy == accuracy
    assert same(tuned, student)
    assert result.steps == 4 * 4 * 4
    assert epochs_told == [(epoch, 16) for epoch in range(1, 17)]


@pytest.mark.parametrize("augmentation", [(), ("flip", "crop")])
def test_the_same_seed_gives_the_same_bits(teachers: list[nn.Module], augmentation: tuple[str, ...]) -> None:
    chosen = settings(augmentation=augmentation)
    students = [some_model(5) for _ in range(3)]
    for student, seed in zip(students, (1, 1, 2), strict=True):
        consolidate(student, teachers, TRANSFER, VALIDATION, chosen, seed, setup=CPU)
    assert same(students[0], students[1])
    assert not same(students[0], students[2])


def test_augmentation_changes_the_student(teachers: list[nn.Module]) -> None:
    plain, changed = some_model(5), some_model(5)
    consolidate(plain, teachers, TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    consolidate(changed, teachers, TRANSFER, VALIDATION, settings(augmentation=("flip",)), 1, setup=CPU)
    assert not same(plain, changed)


def test_fixed_views_are_a_larger_transfer_set_that_teachers_answer_once(
    teachers: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(augmentation=("crop",), views=3)
    asked: list[int] = []
    answer = TeacherStacks.logits

    def counted(self: TeacherStacks, inputs: torch.Tensor) -> torch.Tensor:
        asked.append(len(inputs))
        return answer(self, inputs)

    monkeypatch.setattr(TeacherStacks, "logits", counted)
    student, twin = some_model(5), some_model(5)
    result = consolidate(student, teachers, TRANSFER, VALIDATION, chosen, 3, setup=CPU)
    assert asked == [len(VALIDATION), 3 * len(TRANSFER)]
    monkeypatch.undo()
    assert result.steps == chosen.epochs * math.ceil(3 * len(TRANSFER) / chosen.batch_size)
    larger = views_of(TRANSFER, ("crop",), 3, torch_generator(3, "augmentation"))
    consolidate(twin, teachers, larger, VALIDATION, settings(), 3, setup=CPU)
    assert same(student, twin)


def test_uploaded_logits_give_the_student_that_their_teachers_give(teachers: list[nn.Module]) -> None:
    weights, logits = some_model(5), some_model(5)
    uploaded = teacher_logits(teachers, TRANSFER.inputs)
    first = consolidate(weights, teachers, TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    second = consolidate(logits, uploaded, TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    assert same(weights, logits)
    assert (first.accuracy, second.ensemble_accuracy) == (second.accuracy, None)
    half = some_model(5)
    consolidate(half, uploaded.half(), TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    for one, two in zip(half.parameters(), weights.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)


def test_teachers_stay_as_they_are(teachers: list[nn.Module]) -> None:
    before = [state_of(teacher) for teacher in teachers]
    modes = [teacher.training for teacher in teachers]
    consolidate(some_model(5), teachers, TRANSFER, VALIDATION, settings(augmentation=("crop",)), 1, setup=CPU)
    for teacher, state in zip(teachers, before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in state_of(teacher).items())
    assert [teacher.training for teacher in teachers] == modes


def test_labels_of_the_transfer_set_are_touched_only_when_asked_for(teachers: list[nn.Module]) -> None:
    wrong = Examples(TRANSFER.inputs, (TRANSFER.labels + 1) % CLASSES)
    students = [some_model(5) for _ in range(4)]
    for student, transfer in zip(students[:2], (TRANSFER, wrong), strict=True):
        consolidate(student, teachers, transfer, VALIDATION, settings(), 1, setup=CPU)
    for student, transfer in zip(students[2:], (TRANSFER, wrong), strict=True):
        consolidate(student, teachers, transfer, VALIDATION, settings(labels=True, weight=0.5), 1, setup=CPU)
    assert same(students[0], students[1])
    assert not same(students[2], students[3])


def test_a_student_distilled_from_itself_stays_as_it_is() -> None:
    student = some_model(5)
    consolidate(student, [some_model(5)], TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    for now, before in zip(student.parameters(), some_model(5).parameters(), strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=1e-5)


def test_students_and_teachers_may_differ_in_architecture(teachers: list[nn.Module]) -> None:
    student = some_model(5, "cnn")
    start = evaluate(student, VALIDATION, CLASSIFICATION)[0]
    result = consolidate(
        student, [*teachers, some_model(1, "cnn")], TRANSFER, VALIDATION, settings(epochs=20), 1, setup=CPU
    )
    assert result.accuracy > start


def test_the_last_student_is_evaluated_once(teachers: list[nn.Module]) -> None:
    seen: list[tuple[int, int, float | None]] = []
    result = consolidate(
        some_model(5),
        teachers,
        TRANSFER,
        VALIDATION,
        settings(),
        1,
        on_epoch=lambda *told: seen.append(told),
        setup=CPU,
    )
    assert seen == [(1, 4, None), (2, 4, None), (3, 4, None), (4, 4, result.accuracy)]
    assert (result.epochs, result.best_epoch) == (4, 4)


def test_the_best_student_is_kept(teachers: list[nn.Module]) -> None:
    """With this learning rate the student jumps about, so the best epoch is not the last."""
    chosen, seen = settings(select="best", lr=3.0, epochs=8), []
    student = some_model(5)
    result = consolidate(
        student,
        teachers,
        TRANSFER,
        VALIDATION,
        chosen,
        1,
        on_epoch=lambda *told: seen.append(told[2]),
        setup=CPU,
    )
    assert result.accuracy == max(seen) > seen[-1]
    assert result.best_epoch == seen.index(max(seen)) + 1
    assert evaluate(student, VALIDATION, CLASSIFICATION)[0] == result.accuracy
    again = some_model(5)
    last = settings(lr=3.0, epochs=8)
    assert consolidate(again, teachers, TRANSFER, VALIDATION, last, 1, setup=CPU).accuracy == seen[-1]


def test_batch_norm_students_survive_a_trailing_example(teachers: list[nn.Module]) -> None:
    student = build_model(ModelSettings(options={"norm": "batch"}), (1, 8, 8), CLASSES, 0)
    result = consolidate(student, teachers, TRANSFER, VALIDATION, settings(batch_size=29), 1, setup=CPU)
    assert result.steps == 4
    assert torch.isfinite(predict(student, VALIDATION.inputs)).all()


def test_a_teacher_that_is_not_finite_is_named(teachers: list[nn.Module]) -> None:
    broken = some_model(0)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    with pytest.raises(KdfedError, match="got infinity or NaN from teacher 1 of 3"):
        consolidate(
            some_model(5), [teachers[0], broken, teachers[2]], TRANSFER, VALIDATION, settings(), 1, setup=CPU
        )
    logits = torch.zeros(4, 30, CLASSES, dtype=torch.float16)
    logits[3, 7, 0] = math.inf
    with pytest.raises(KdfedError, match="from teacher 3 of 4"):
        consolidate(some_model(5), logits, TRANSFER, VALIDATION, settings(), 1, setup=CPU)


def test_student_and_examples_are_put_on_the_device_of_the_setup(teachers: list[nn.Module]) -> None:
    found = []

    class Looking(VanillaConsolidation):
        uses_validation_labels: ClassVar[bool | None] = True

        def distil(self, work: Distillation) -> ConsolidationResult:
            parameters = next(work.student.parameters())
            tensors = (parameters, work.transfer.inputs, work.validation.labels, work.inputs)
            found.extend(tensor.device.type for tensor in tensors)
            return ConsolidationResult(0, 1, 1, 0.0, None)

    elsewhere = replace(CPU, device=torch.device("meta"))
    consolidate(some_model(5), teachers, TRANSFER, VALIDATION, Looking(), 1, setup=elsewhere)
    assert found == ["meta"] * 4


def test_what_does_not_go_together_is_refused(teachers: list[nn.Module]) -> None:
    student = some_model(5)
    with pytest.raises(KdfedError, match="at least one teacher"):
        consolidate(student, [], TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    with pytest.raises(KdfedError, match=r"logits of shape \(teachers, 30, classes\), got \(2, 29, 3\)"):
        consolidate(student, torch.zeros(2, 29, 3), TRANSFER, VALIDATION, settings(), 1, setup=CPU)
    with pytest.raises(KdfedError, match="uploaded logits belong to the images as they are"):
        consolidate(
            student,
            torch.zeros(2, 30, 3),
            TRANSFER,
            VALIDATION,
            settings(augmentation=("flip",)),
            1,
            setup=CPU,
        )
    with pytest.raises(KdfedError, match="expected one score per teacher and class"):
        consolidate(student, teachers, TRANSFER, VALIDATION, settings(ensemble="label-counts"), 1, setup=CPU)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(KdfedError, match=r"teachers with the same classes, got \[3, 4\]"):
        consolidate(student, [teachers[0], wide], TRANSFER, VALIDATION, settings(), 1, setup=CPU)


def test_features_cannot_be_augmented(teachers: list[nn.Module]) -> None:
    flat = Examples(TRANSFER.inputs.flatten(1), TRANSFER.labels)
    with pytest.raises(KdfedError, match="needs images"):
        consolidate(some_model(5), teachers, flat, VALIDATION, settings(augmentation=("crop",)), 1, setup=CPU)


# ----------------------------------------------------------------------------- batches of one, inputs of all


@pytest.mark.parametrize("batch_size", [29, 1])
def test_the_batch_norm_rule_protects_peers_as_it_does_the_student(batch_size: int) -> None:
    """30 examples in batches of 29: the last one joins. In batches of one, statistics stay."""
    student, teacher = (
        some_model(0),
        nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.BatchNorm1d(CLASSES)),
    )
    chosen = other("mutual", batch_size=batch_size, epochs=2)
    result = consolidate(student, [teacher], TRANSFER, VALIDATION, chosen, 1, setup=CPU)
    assert result.steps == 2 * 2 * (1 if batch_size == 29 else 30)


class Halving(nn.Module):
    """Writes into its inputs, where its twin does not."""

    def __init__(self, own: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.own, self.in_place = own, in_place

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.own(inputs.mul_(0.5) if self.in_place else inputs * 0.5)


@pytest.mark.parametrize("name", ["vanilla", "mutual", "partitioned", "tuned"])
@pytest.mark.parametrize("augmentation", [(), ("flip",)])
def test_models_that_write_into_their_inputs_distil_like_their_twins(
    name: str, augmentation: tuple[str, ...]
) -> None:
    inputs = [part.inputs.clone() for part in (TRANSFER, VALIDATION)]
    students = []
    for in_place in (True, False):
        student, *peers = (Halving(some_model(seed), in_place=in_place) for seed in range(3))
        chosen = other(name, epochs=2, augmentation=augmentation)
        consolidate(student, peers, TRANSFER, VALIDATION, chosen, 1, setup=CPU)
        students.append(student)
    assert same(*students)
    assert all(map(torch.equal, inputs, [TRANSFER.inputs, VALIDATION.inputs]))


# ----------------------------------------------------------------------------- labels of the server

POISONED = Examples(VALIDATION.inputs, (VALIDATION.labels + 1) % CLASSES)
POISONED_TRANSFER = Examples(TRANSFER.inputs, (TRANSFER.labels + 1) % CLASSES)


@pytest.mark.parametrize(
    ("method", "changes", "used"),
    [
        ("vanilla", {}, set()),
        ("vanilla", {"ensemble": "mean-logits"}, set()),
        ("vanilla", {"ensemble": "confidence"}, set()),
        ("vanilla", {"ensemble": "label-counts"}, set()),
        ("vanilla", {"ensemble": "validated"}, {"validation"}),
        ("vanilla", {"ensemble": "stacked"}, {"validation"}),
        ("vanilla", {"select": "best", "epochs": 12, "lr": 0.02}, {"validation"}),
        ("vanilla", {"labels": True, "weight": 0.5}, {"transfer"}),
        ("vanilla", {"labels": True, "weight": 0.5, "ensemble": "validated"}, {"validation", "transfer"}),
        ("tuned", {"temperatures": (1.0, 16.0), "lr": 0.01, "warm_up": 0, "clip": 0}, {"validation"}),
        ("tuned", {"temperatures": (4.0,)}, set()),
        ("partitioned", {}, set()),
        ("partitioned", {"labels": True}, {"transfer"}),
        ("partitioned", {"select": "best", "epochs": 12, "lr": 0.02}, {"validation"}),
        ("mutual", {}, set()),
        ("mutual", {"labels": True}, {"transfer"}),
        ("mutual", {"select": "best", "epochs": 12, "lr": 0.02}, {"validation"}),
    ],
)
def test_a_method_learns_from_no_other_labels_than_it_says(
    teachers: list[nn.Module], method: str, changes: dict[str, object], used: set[str]
) -> None:
    chosen = other(method, **changes)
    counts = COUNTS if changes.get("ensemble") == "label-counts" else None
    assert chosen.server_labels() == used

    def student(transfer: Examples, validation: Examples) -> nn.Module:
        found = some_model(5)
        consolidate(found, teachers, transfer, validation, chosen, 3, label_counts=counts, setup=CPU)
        return found

    honest = student(TRANSFER, VALIDATION)
    assert same(honest, student(TRANSFER, POISONED)) == ("validation" not in used)
    assert same(honest, student(POISONED_TRANSFER, VALIDATION)) == ("transfer" not in used)


class Peeking(VanillaConsolidation):
    """Looks at the labels of both splits."""

    def distil(self, work: Distillation) -> ConsolidationResult:
        self.seen.append((work.validation.labels.clone(), work.transfer.labels.clone()))
        return super().distil(work)

    seen: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []


class Silent(Peeking):
    """Says nothing of what it looks at."""

    uses_validation_labels: ClassVar[bool | None] = None


@pytest.mark.parametrize("kind", [Peeking, Silent])
def test_labels_that_are_not_counted_as_used_are_not_shown(
    teachers: list[nn.Module], kind: type[Peeking]
) -> None:
    chosen, told = kind(epochs=2, batch_size=8), []
    student = some_model(5)
    result = consolidate(
        student,
        teachers,
        TRANSFER,
        VALIDATION,
        chosen,
        3,
        setup=CPU,
        on_epoch=lambda epoch, epochs, accuracy: told.append(accuracy),
    )
    validation, transfer = Peeking.seen.pop()
    assert transfer.tolist() == [-100] * 30
    if kind is Silent:
        assert chosen.server_labels() == {"validation"}
        assert torch.equal(validation, VALIDATION.labels)
    else:
        assert chosen.server_labels() == set()
        assert validation.tolist() == [-100] * 40
    measured = evaluate(student, VALIDATION, CLASSIFICATION)[0]
    assert result.accuracy == measured, "what is reported has labels all the same"
    assert told == [None, measured]
    assert result.ensemble_accuracy is not None
    assert result.ensemble_accuracy > 0.5


# ----------------------------------------------------------------------------- students that are not well


def test_a_student_that_follows_its_ensemble_gives_no_warning(teachers: list[nn.Module]) -> None:
    result = consolidate(
        some_model(5), teachers, TRANSFER, VALIDATION, settings(epochs=60, lr=0.02), 3, setup=CPU
    )
    assert result.ensemble_accuracy is not None
    assert result.accuracy > result.ensemble_accuracy - 0.1
    assert result.warning == ""
    assert result.dead_units == 0.0


def test_a_rate_that_kills_units_is_said_and_clipping_saves_them(teachers: list[nn.Module]) -> None:
    chosen = settings(epochs=10, lr=2.0, temperature=1.0, warm_up=0, clip=0)
    broken, clipped = (
        consolidate(some_model(5), teachers, TRANSFER, VALIDATION, each, 3, setup=CPU)
        for each in (chosen, chosen.model_copy(update={"clip": 0.01}))
    )
    assert broken.dead_units is not None
    assert broken.dead_units > 0.5
    assert re.fullmatch(
        r"the student is \d+ points behind its ensemble \(\d+ against \d+%\): \d+ of 64 ReLU units are dead; "
        "lower consolidation.lr, or use warm-up and clip",
        broken.warning,
    )
    assert (clipped.dead_units, clipped.warning) == (0.0, "")


def test_a_student_that_was_not_trained_long_enough_is_told_so(teachers: list[nn.Module]) -> None:
    logits = teacher_logits(teachers, TRANSFER.inputs)
    short = settings(epochs=2, lr=0.001)
    result = consolidate(some_model(5), teachers, TRANSFER, VALIDATION, short, 3, setup=CPU)
    assert result.trend == ""
    assert "points behind its ensemble" in result.warning
    assert re.search(r"it follows it on \d+% of the transfer set; raise consolidation.epochs", result.warning)
    unknown = consolidate(some_model(5), logits, TRANSFER, VALIDATION, short, 3, setup=CPU)
    assert unknown.ensemble_accuracy is None
    assert unknown.warning == "", "nobody knows how good the ensemble is"


def test_a_loss_that_was_not_finite_is_said(teachers: list[nn.Module]) -> None:
    result = consolidate(
        some_model(5),
        teachers,
        TRANSFER,
        VALIDATION,
        settings(lr=1e3, epochs=20, momentum=0.99, clip=0),
        3,
        setup=CPU,
    )
    assert result.trend == "not finite"
    assert result.warning.startswith("the student's loss was not finite; lower consolidation.lr")
