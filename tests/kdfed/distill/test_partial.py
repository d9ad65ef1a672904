from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from kdfed.distill import partial
from kdfed.distill.partial import UNKNOWN, AdaptedTeacher, completed, known_classes
from kdfed.distill.stacks import TeacherStacks
from kdfed.ensembles import Confidence, Ensemble, LabelCounts, MeanLogits, MeanProbabilities, Validated

ENSEMBLES = (MeanProbabilities(), MeanLogits(), Confidence(), LabelCounts(), Validated())


def knows(*sets: Sequence[int], classes: int = 5) -> torch.Tensor:
    """Return who knows what: one set of classes a teacher."""
    return torch.tensor([[c in one for c in range(classes)] for one in sets])


def draw(knows_KC: torch.Tensor, count: int = 40, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(len(knows_KC), count, knows_KC.shape[1], generator=torch.manual_seed(seed))


def probabilities(logits_KNC: torch.Tensor, knows_KC: torch.Tensor) -> torch.Tensor:
    return completed(logits_KNC.double(), knows_KC).softmax(2)


def twin(logits_KC: list[list[float]], knows_KC: list[list[bool]]) -> list[list[float]]:
    """Complete teachers of one example slowly: all equal at first, then what the mean of all says."""
    classes = range(len(logits_KC[0]))
    known = [c for c in classes if any(one[c] for one in knows_KC)]
    own = [
        [math.exp(x) * here for x, here in zip(*pair, strict=True)]
        for pair in zip(logits_KC, knows_KC, strict=True)
    ]
    own = [[x / sum(one) for x in one] for one in own]
    mean = [1 / len(known) if c in known else 0.0 for c in classes]
    full: list[list[float]] = []
    for _ in range(5000):
        full = []
        for one, here in zip(own, knows_KC, strict=True):
            together = sum(mean[c] for c in classes if here[c])
            full.append([together * one[c] if here[c] else mean[c] for c in classes])
        mean = [sum(one[c] for one in full) / len(full) for c in classes]
    return full


@pytest.mark.parametrize(
    "sets",
    [
        ((0, 1), (0, 1, 2, 3, 4)),
        ((0, 1), (2, 3, 4)),
        ((0, 1), (1, 2), (2, 3, 4)),
        ((0, 1), (0, 1), (2, 3), (0, 1, 2, 3, 4)),
        ((0, 1), (1, 2)),
        ((0, 1, 2, 3), (1, 2, 3, 4), (4, 0)),
    ],
)
def test_completion_is_what_repeating_the_definition_leads_to(sets: tuple[tuple[int, ...], ...]) -> None:
    who = knows(*sets)
    logits = draw(who, count=2)
    found = probabilities(logits, who)
    for n in range(2):
        slow = twin(logits[:, n].tolist(), who.tolist())
        assert found[:, n].flatten().tolist() == pytest.approx([p for one in slow for p in one], abs=2e-4)


def test_worked_number() -> None:
    """A knows classes 0 and 1 and says 3 to 1; B knows all three and says 1/5, 1/5, 3/5.

    B's 3/5 for class 2 are what A takes over, so A has 2/5 for its own: 3/10 and 1/10.
    """
    logits = torch.tensor([[[3.0, 1.0, 99.0]], [[1.0, 1.0, 3.0]]]).log()
    found = probabilities(logits, knows((0, 1), (0, 1, 2), classes=3))
    assert found[0, 0].tolist() == pytest.approx([0.3, 0.1, 0.6], abs=1e-5)
    assert found[1, 0].tolist() == pytest.approx([0.2, 0.2, 0.6])


def test_sets_that_nothing_joins_have_the_share_of_their_classes() -> None:
    who = knows((0, 1), (2, 3, 4))
    found = probabilities(draw(who), who)
    assert found[0, :, :2].sum(1).tolist() == pytest.approx([0.4] * 40, abs=1e-4)
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_teachers_that_know_everything_are_their_own_completion_to_the_bit() -> None:
    who = knows((0, 1, 2, 3, 4), (0, 1), (0, 1, 2, 3, 4))
    logits = draw(who)
    found = completed(logits, who)
    assert torch.equal(found[[0, 2]], logits[[0, 2]])
    everybody = torch.ones(3, 5, dtype=torch.bool)
    assert torch.equal(completed(logits, everybody), logits)


def test_what_stands_for_unknown_classes_does_not_matter() -> None:
    who = knows((0, 1), (1, 2, 3), (3, 4))
    logits = draw(who)
    other = torch.where(who.unsqueeze(1), logits, torch.tensor(50.0))
    assert torch.equal(completed(logits, who), completed(other, who))


def test_a_class_that_nobody_knows_is_nobodys_answer() -> None:
    who = knows((0, 1), (1, 2))
    found = completed(draw(who), who)
    assert (found[:, :, 3:] == UNKNOWN).all()
    assert found.softmax(2)[:, :, 3:].max() < 1e-30


def test_order_of_teachers_and_of_classes_does_not_matter() -> None:
    who = knows((0, 1), (1, 2, 3), (0, 1, 2, 3, 4), (4, 0))
    logits = draw(who).double()
    found = completed(logits, who)
    turned = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(completed(logits[turned], who[turned]), found[turned], atol=1e-8)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.allclose(completed(logits[:, :, order], who[:, order]), found[:, :, order], atol=1e-8)


def test_answers_that_are_sure_beyond_float_stay_finite() -> None:
    who = knows((0, 1), (1, 2, 3, 4))
    found = completed(draw(who) * 1e4, who)
    assert found.isfinite().all()


def test_examples_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_MOST", 15 * 700)
    who = knows((0, 1), (1, 2, 3), (3, 4))
    logits = draw(who, count=5000)
    assert torch.allclose(completed(logits, who)[:, 4990:], completed(logits[:, 4990:], who), atol=1e-6)


# ----------------------------------------------------------------------------- in ensembles


@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda one: one.ensemble)
def test_no_class_loses_because_of_a_teacher_that_does_not_know_it(ensemble: Ensemble) -> None:
    """A teacher of classes 0 and 1 joins one of all five: 2, 3 and 4 are no less likely than before.

    It may well say which of 0 and 1 it is.
    """
    who = knows(range(5), (0, 1))
    logits = draw(who, count=400)
    scores_KC = who.double()
    for temperature in (1.0, 3.0):
        before = ensemble.target(logits[:1], temperature, scores_KC[:1])
        after = ensemble.target(completed(logits, who), temperature, scores_KC)
        if temperature == 1:
            assert (after[:, 2:] - before[:, 2:]).min() > -1e-4
        assert torch.equal(after[:, 2:].argmax(1), before[:, 2:].argmax(1))
    assert not torch.allclose(after[:, :2], before[:, :2], atol=0.1)


def test_the_mean_of_probabilities_of_an_unknown_class_is_that_of_who_knows_it() -> None:
    everything = range(5)
    who = knows(everything, everything, (0, 1))
    logits = draw(who, count=400).double()
    before = MeanProbabilities().target(logits[:2], 1.0, None)
    after = MeanProbabilities().target(completed(logits, who), 1.0, None)
    assert torch.allclose(after[:, 2:], before[:, 2:], atol=1e-4)


def test_a_zero_in_its_place_would_make_a_class_lose() -> None:
    """What the law is about: with small numbers for unknown classes the answer changes."""
    everything = range(5)
    who = knows(everything, everything, (0, 1))
    logits = draw(who, count=400)
    naive = torch.where(who.unsqueeze(1), logits, torch.tensor(-30.0))
    before = MeanProbabilities().target(logits[:2], 1.0, None).argmax(1)
    after = MeanProbabilities().target(naive, 1.0, None).argmax(1)
    assert bool((after != before)[before > 1].any())


# ----------------------------------------------------------------------------- as models


def adapted(model: nn.Module, outputs: Sequence[int | None], scale: float = 1.0) -> AdaptedTeacher:
    return AdaptedTeacher(model, torch.full((3,), scale), torch.zeros(3), outputs).eval()


def test_outputs_stand_where_the_student_has_the_class() -> None:
    model, inputs = nn.Linear(3, 4), torch.randn(6, 3)
    found = adapted(model, [None, 2, 0, None, 1])(inputs)
    own = model(inputs)
    assert torch.equal(found[:, [1, 2, 4]], own[:, [2, 0, 1]])
    expected = own[:, [2, 0, 1]].exp().mean(1).log()
    assert torch.allclose(found[:, 0], expected, atol=1e-6)
    assert torch.allclose(found[:, 3], expected, atol=1e-6)


def test_inputs_are_normalised_as_the_teacher_was_trained() -> None:
    model, inputs = nn.Linear(3, 2), torch.randn(6, 3)
    scale, shift = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, -1.0])
    found = AdaptedTeacher(model, scale, shift, [0, 1])(inputs)
    assert torch.allclose(found, model(inputs * scale + shift))


def test_it_has_the_weights_of_its_model_alone() -> None:
    assert list(adapted(nn.Linear(3, 2), [0, 1]).state_dict()) == ["model.weight", "model.bias"]


def test_stacks_complete_teachers_and_keep_those_apart_that_differ_in_their_classes() -> None:
    models = [nn.Linear(3, 2) for _ in range(4)]
    teachers: list[nn.Module] = [
        adapted(models[0], [0, 1, None]),
        adapted(models[1], [None, 0, 1]),
        adapted(models[2], [0, 1, None]),
        nn.Linear(3, 3).eval(),
        adapted(models[3], [0, 1, None], scale=2.0),
    ]
    inputs = torch.randn(20, 3)
    who = known_classes(teachers)
    assert who is not None
    assert who.tolist() == [
        [True, True, False],
        [False, True, True],
        [True, True, False],
        [True, True, True],
        [True, True, False],
    ]
    with torch.no_grad():
        alone = torch.stack([teacher(inputs) for teacher in teachers])
    assert torch.allclose(TeacherStacks(teachers).logits(inputs), completed(alone, who), atol=1e-5)


def test_teachers_that_know_everything_are_not_touched() -> None:
    teachers = [adapted(nn.Linear(3, 2), [1, 0]), nn.Linear(3, 2)]
    assert known_classes(teachers) is None
