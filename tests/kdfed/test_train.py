from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.local import (
    PLAIN,
)
from kdfed.models import build_model, state_of
from kdfed.seeding import shuffled
from kdfed.settings import ModelSettings, OptimiserSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import (
    batch_sizes,
    clip_gradient,
    evaluate,
    fit,
    make_optimizer,
    predict,
)
from tests.kdfed.local.training import some_examples, some_model


def slow_fit(model: nn.Module, examples: Examples, settings: OptimiserSettings, seed: int) -> float:
    """Plain training, spelt out with torch's unfused optimisers."""
    if settings.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        optimizer = kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    model.train()
    for epoch in range(settings.epochs):
        order = shuffled([seed], epoch, [len(examples)])[0].tolist()
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            logits = model(torch.stack([examples.inputs[i] for i in batch]))
            labels = torch.stack([examples.labels[i] for i in batch])
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
    return total / len(examples)


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    one, two = state_of(first), state_of(second)
    return all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    "settings",
    [
        OptimiserSettings(epochs=3, batch_size=5, momentum=0.9, weight_decay=0.01),
        OptimiserSettings(epochs=2, batch_size=10),
        OptimiserSettings(epochs=2, batch_size=64, optimizer="adam", lr=0.01, weight_decay=0.01),
        OptimiserSettings(epochs=2, batch_size=4, optimizer="adamw", lr=0.01, weight_decay=0.01),
    ],
)
def test_fit_agrees_with_the_slow_twin(settings: OptimiserSettings) -> None:
    fast, slow, examples = some_model(), some_model(), some_examples()
    result = fit(fast, examples, settings, PLAIN, seed=7)
    loss = slow_fit(slow, examples, settings, seed=7)
    for one, two in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert result.loss == pytest.approx(loss, rel=1e-4)
    assert result.steps == settings.epochs * math.ceil(23 / settings.batch_size)
    assert result.examples == 23


def test_one_worked_step() -> None:
    """Logits (0, 0) for input 2 with label 0: gradient of w is (1/2 - 1, 1/2) * 2 = (-1, 1); lr 0.1 gives
    (0.1, -0.1). The loss before the step is ln 2.
    """
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    examples = Examples(torch.tensor([[2.0]]), torch.tensor([0]))
    result = fit(model, examples, OptimiserSettings(lr=0.1), PLAIN, seed=0)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.1], [-0.1]]))
    assert result.loss == pytest.approx(math.log(2))
    assert result.steps == 1


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order() -> None:
    models = [some_model() for _ in range(3)]
    before = torch.random.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, some_examples(), OptimiserSettings(), PLAIN, seed)
    assert equal_states(models[0], models[1])
    assert not equal_states(models[0], models[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_repeats_with_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.rand(3)  # whatever was drawn before does not matter
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        fit(model, some_examples(), OptimiserSettings(), PLAIN, seed=5)
        states.append(model[2].weight.detach().clone())
    assert torch.equal(*states)


def test_a_participant_without_examples_is_refused() -> None:
    with pytest.raises(KdfedError, match="at least one example to train on, got none"):
        fit(some_model(), some_examples(0), OptimiserSettings(), PLAIN, seed=0)


@pytest.mark.parametrize(
    ("count", "batch", "merge", "sizes"),
    [
        (10, 5, False, [5, 5]),
        (11, 5, False, [5, 5, 1]),
        (11, 5, True, [5, 6]),
        (12, 5, True, [5, 5, 2]),
        (3, 5, True, [3]),
        (1, 5, True, [1]),
    ],
)
def test_a_trailing_batch_of_one_joins_the_one_before(
    count: int, batch: int, merge: bool, sizes: list[int]
) -> None:
    assert batch_sizes(count, batch, merge_single=merge) == sizes
    assert sum(sizes) == count


@pytest.mark.parametrize(("count", "batch"), [(11, 5), (1, 5), (3, 1), (2, 1), (5, 4)])
def test_batch_norm_survives_batches_of_one(count: int, batch: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    result = fit(model, some_examples(count), OptimiserSettings(batch_size=batch), PLAIN, seed=0)
    assert math.isfinite(result.loss)
    assert all(torch.isfinite(value).all() for value in state_of(model).values())


def test_batch_norm_statistics_stay_where_every_batch_holds_one_example() -> None:
    model = some_model("batch")
    fit(model, some_examples(3), OptimiserSettings(batch_size=1), PLAIN, seed=0)
    assert int(model.norm1.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]
    fit(model, some_examples(3), OptimiserSettings(batch_size=3), PLAIN, seed=0)
    assert int(model.norm1.num_batches_tracked) == 1  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_predicting_changes_nothing_and_restores_the_mode(training: bool) -> None:
    model = some_model("batch").train(training)
    before = copy.deepcopy(model)
    logits = predict(model, some_examples().inputs, batch_size=4)
    assert model.training is training
    assert equal_states(model, before)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model.eval()(some_examples().inputs).detach())


def test_worked_accuracy_and_cross_entropy() -> None:
    """Logits (ln 3, 0) for both inputs, labels 0 and 1: one right, cross entropy (ln(4/3) + ln 4) / 2."""
    model = nn.Linear(1, 2)
    model.load_state_dict({"weight": torch.zeros(2, 1), "bias": torch.tensor([math.log(3), 0.0])})
    found = evaluate(model, Examples(torch.ones(2, 1), torch.tensor([0, 1])), CLASSIFICATION)
    assert found == (0.5, pytest.approx((math.log(4 / 3) + math.log(4)) / 2))


def test_evaluating_on_nothing_is_refused() -> None:
    with pytest.raises(KdfedError, match="at least one example to evaluate"):
        evaluate(some_model(), some_examples(0), CLASSIFICATION)


# ----------------------------------------------------------------------------- mutual


def test_an_unknown_optimiser_is_refused() -> None:
    model = build_model(ModelSettings(name="mlp"), (4,), 2, 0)
    with pytest.raises(KdfedError, match="expected one of sgd, adam, adamw, got 'own'"):
        make_optimizer(model, OptimiserSettings().model_copy(update={"optimizer": "own"}))


def test_a_gradient_is_scaled_down_to_the_norm_and_never_up() -> None:
    """(3, 4) has the norm 5: of norm 1 it is (0.6, 0.8)."""
    model = nn.Linear(2, 1, bias=False)
    for norm, expected in ((1.0, [0.6, 0.8]), (6.0, [3.0, 4.0]), (0.0, [3.0, 4.0])):
        model.weight.grad = torch.tensor([[3.0, 4.0]])
        clip_gradient(model, norm)
        assert model.weight.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)
