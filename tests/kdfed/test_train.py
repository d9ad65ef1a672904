from __future__ import annotations

import copy
import math
from typing import Any, get_args

import pytest
import torch
from torch import nn

from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.local import (
    LOCAL_MODES,
    PLAIN,
    KDLocal,
    LocalMode,
    MutualLocal,
    NTDLocal,
    PlainLocal,
    ProximalLocal,
)
from kdfed.local.pairs import Pair
from kdfed.losses import kd_loss
from kdfed.models import build_model, state_of
from kdfed.seeding import shuffled
from kdfed.settings import ModelSettings, OptimiserSettings, TeacherSettings
from kdfed.train import (
    LOCAL_LOSSES,
    TrainResult,
    batch_sizes,
    evaluate,
    fit,
    kd_local_loss,
    local_loss,
    mutual_local_loss,
    ntd_local_loss,
    predict,
    proximal_loss,
)

SHAPE = (1, 8, 8)


def some_examples(count: int = 23, classes: int = 3, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    inputs = torch.randn(count, *SHAPE, generator=generator) + labels.view(-1, 1, 1, 1)
    return Examples(inputs, labels)


def some_model(norm: str = "none", seed: int = 0) -> nn.Module:
    return build_model(ModelSettings(options={"width": 4, "norm": norm}), SHAPE, 3, seed)


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


def train_local(model: nn.Module, examples: Examples, settings: LocalMode, seed: int) -> TrainResult:
    return fit(model, examples, settings, local_loss(lambda: model, settings), seed)


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


def test_the_lists_of_local_modes_agree_with_the_experiment() -> None:
    modes = {variant.model_fields["mode"].annotation for variant in get_args(get_args(LocalMode)[0])}
    assert {get_args(mode)[0] for mode in modes} == set(LOCAL_LOSSES) == set(LOCAL_MODES)


def test_a_teacher_is_trained_like_a_plain_participant() -> None:
    teacher, plain = some_model(), some_model()
    fit(teacher, some_examples(), TeacherSettings(epochs=2), PLAIN, seed=3)
    train_local(plain, some_examples(), PlainLocal(epochs=2), seed=3)
    assert equal_states(teacher, plain)


@pytest.mark.parametrize(
    "settings",
    [
        ProximalLocal(mode="proximal", mu=0.0),
        KDLocal(mode="kd", weight=0.0, temperature=4.0),
        NTDLocal(mode="ntd", beta=0.0),
    ],
)
def test_mu_0_and_weight_0_are_plain_training_to_the_bit(settings: LocalMode) -> None:
    other, plain = some_model(), some_model()
    train_local(other, some_examples(), settings, seed=3)
    train_local(plain, some_examples(), PlainLocal(), seed=3)
    assert equal_states(other, plain)


def test_a_worked_proximal_term() -> None:
    """Received weights (1, 2) and biases (0, 0); now (4, 6) and (1, 0): squared distance 9 + 16 + 1 = 26,
    times mu / 2 = 0.05.
    """
    model = nn.Linear(1, 2)
    model.load_state_dict({"weight": torch.tensor([[1.0], [2.0]]), "bias": torch.zeros(2)})
    loss = proximal_loss(model, ProximalLocal(mode="proximal", mu=0.1))
    model.load_state_dict({"weight": torch.tensor([[4.0], [6.0]]), "bias": torch.tensor([1.0, 0.0])})
    inputs, labels = torch.tensor([[1.0]]), torch.tensor([0])
    difference = loss.mean(model, inputs, labels) - PLAIN.mean(model, inputs, labels)
    assert difference.item() == pytest.approx(1.3, rel=1e-5)


def test_the_proximal_gradient_is_mu_times_the_way_from_the_received_weights() -> None:
    model = some_model()
    loss = proximal_loss(model, ProximalLocal(mode="proximal", mu=0.3))
    moved = some_model(seed=1)
    examples = some_examples()
    gradients = []
    for function in (loss, PLAIN):
        moved.zero_grad()
        function.mean(moved, examples.inputs, examples.labels).backward()
        gradients.append(
            [parameter.grad.clone() for parameter in moved.parameters() if parameter.grad is not None]
        )
    for pulled, plain, now, received in zip(*gradients, moved.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(pulled - plain, 0.3 * (now - received).detach(), rtol=1e-3, atol=1e-6)


def test_a_larger_mu_stays_nearer_to_the_received_weights() -> None:
    def distance(mu: float) -> float:
        model = some_model()
        train_local(model, some_examples(), ProximalLocal(mode="proximal", mu=mu, epochs=3), seed=0)
        pairs = zip(model.parameters(), some_model().parameters(), strict=True)
        return sum(float((now - before).detach().square().sum()) for now, before in pairs)

    assert distance(5.0) < distance(0.1) < distance(0.0)


def test_local_distillation_is_the_kd_loss_from_the_received_model() -> None:
    received, model, examples = some_model(), some_model(seed=1), some_examples()
    loss = kd_local_loss(received, KDLocal(mode="kd", temperature=4.0, weight=0.3))
    target = torch.softmax(predict(received, examples.inputs) / 4.0, 1)
    with torch.no_grad():
        found = loss.mean(model, examples.inputs, examples.labels)
        expected = kd_loss(model(examples.inputs), target, examples.labels, 4.0, 0.3)
    torch.testing.assert_close(found, expected)


def test_the_received_model_stays_frozen_while_its_copy_trains() -> None:
    """With w = 1 and no dropout the received model is the optimum of its own distillation: nothing moves."""
    model = some_model()
    result = train_local(model, some_examples(), KDLocal(mode="kd", weight=1.0, epochs=3), seed=0)
    assert result.loss == pytest.approx(0.0, abs=1e-5)
    for now, received in zip(model.parameters(), some_model().parameters(), strict=True):
        torch.testing.assert_close(now, received, rtol=0, atol=1e-5)


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
    found = evaluate(model, Examples(torch.ones(2, 1), torch.tensor([0, 1])))
    assert found == (0.5, pytest.approx((math.log(4 / 3) + math.log(4)) / 2))


def test_evaluating_on_nothing_is_refused() -> None:
    with pytest.raises(KdfedError, match="at least one example to evaluate"):
        evaluate(some_model(), some_examples(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_agrees_with_the_cpu() -> None:
    near, far = some_model(), some_model().cuda()
    here = train_local(near, some_examples(), KDLocal(mode="kd", epochs=2), seed=0)
    there = train_local(far, some_examples(), KDLocal(mode="kd", epochs=2), seed=0)
    assert there.loss == pytest.approx(here.loss, rel=1e-2)
    assert next(far.parameters()).is_cuda
    assert not predict(far, some_examples().inputs).is_cuda


def test_not_true_distillation_is_a_divergence_over_the_other_classes() -> None:
    """Worked: label 1 of 3, so classes 0 and 2 remain, with probabilities (1/2, 1/2) and (3/4, 1/4)."""
    fixed = nn.Linear(1, 3)
    with torch.no_grad():
        fixed.weight.zero_()
        fixed.bias.copy_(torch.tensor([math.log(3), 7.0, 0.0]))
    loss = ntd_local_loss(fixed, NTDLocal(mode="ntd", beta=0.5))
    logits, labels = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([1])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    entropy = -2 + math.log(2 + math.exp(2))
    assert loss.examples(torch.zeros(1, 1), logits, labels).item() == pytest.approx(
        entropy + 0.5 * divergence
    )


def test_not_true_distillation_does_not_look_at_the_received_models_logit_of_the_label() -> None:
    received, changed = nn.Linear(4, 3), nn.Linear(4, 3)
    inputs, logits = torch.randn(6, 4), torch.randn(6, 3)
    changed.load_state_dict(received.state_dict())
    with torch.no_grad():
        changed.bias[2] += 5.0
    settings = NTDLocal(mode="ntd", temperature=3.0)
    same, other = torch.full((6,), 2), torch.full((6,), 0)
    one, two = (ntd_local_loss(model, settings) for model in (received, changed))
    torch.testing.assert_close(one.examples(inputs, logits, same), two.examples(inputs, logits, same))
    assert not torch.allclose(one.examples(inputs, logits, other), two.examples(inputs, logits, other))


def test_with_two_classes_not_true_distillation_is_plain() -> None:
    loss = ntd_local_loss(nn.Linear(4, 2), NTDLocal(mode="ntd"))
    inputs, logits, labels = torch.randn(6, 4), torch.randn(6, 2), torch.randint(2, (6,))
    torch.testing.assert_close(loss.examples(inputs, logits, labels), PLAIN.examples(inputs, logits, labels))


# ----------------------------------------------------------------------------- mutual


def some_pair(options: dict[str, Any] | None = None) -> Pair:
    settings = ModelSettings(name="mlp", options=options or {"hidden": (8,)})
    return Pair(some_model("group"), build_model(settings, SHAPE, 3, seed=1))


def test_a_worked_pair() -> None:
    """Received probabilities (3/4, 1/4), personal (1/2, 1/2), label 0, alpha = 0.2, beta = 0.7:

    received 0.7 ln(4/3) + 0.3 KL(personal || received), with KL = 1/2 ln(2/3) + 1/2 ln 2;
    personal 0.2 ln 2 + 0.8 KL(received || personal), with KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    """
    loss = mutual_local_loss(MutualLocal(mode="mutual", alpha=0.2, beta=0.7))
    logits = torch.tensor([[math.log(3), 0.0, 5.0, 5.0]])
    received = 0.7 * math.log(4 / 3) + 0.3 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    personal = 0.2 * math.log(2) + 0.8 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    found = loss.examples(torch.zeros(1, 1), logits, torch.tensor([0])).item()
    assert found == pytest.approx(received + personal)


def slow_mutual_fit(
    received: nn.Module, personal: nn.Module, examples: Examples, settings: MutualLocal, seed: int
) -> None:
    """Two models, two losses, two optimisers."""
    optimisers = [
        torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
        for model in (received, personal)
    ]
    for epoch in range(settings.epochs):
        order = shuffled([seed], epoch, [len(examples)])[0].tolist()
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            outputs = [model(examples.inputs[batch]) for model in (received, personal)]
            losses = []
            for own, peer, weight in zip(
                outputs, outputs[::-1], (settings.beta, settings.alpha), strict=True
            ):
                p, q = torch.softmax(own, 1), torch.softmax(peer, 1).detach()
                entropy = -torch.stack([p[n, k].log() for n, k in enumerate(examples.labels[batch])]).mean()
                divergence = (q * (q / p).log()).sum() / len(batch)
                losses.append(weight * entropy + (1 - weight) * divergence)
            for optimiser, loss in zip(optimisers, losses, strict=True):
                optimiser.zero_grad()
                loss.backward(retain_graph=True)
            for optimiser in optimisers:
                optimiser.step()


def test_training_a_pair_agrees_with_two_models_and_two_optimisers() -> None:
    settings = MutualLocal(mode="mutual", alpha=0.3, beta=0.8, epochs=3, batch_size=5, lr=0.1, momentum=0.9)
    fast, slow, examples = some_pair(), some_pair(), some_examples()
    train_local(fast, examples, settings, seed=4)
    slow_mutual_fit(slow.received, slow.personal, examples, settings, seed=4)
    for one, two in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_with_alpha_and_beta_1_both_models_are_trained_alone_to_the_bit(optimizer: str) -> None:
    pair, apart, examples = some_pair(), some_pair(), some_examples()
    own = {"optimizer": optimizer, "epochs": 2, "batch_size": 5, "lr": 0.01, "weight_decay": 0.01}
    train_local(pair, examples, MutualLocal(mode="mutual", alpha=1, beta=1, **own), seed=3)
    for model in (apart.received, apart.personal):
        train_local(model, examples, PlainLocal(**own), seed=3)
    assert equal_states(pair, apart)


def test_what_the_personal_model_knows_reaches_the_received_one_through_distillation_alone() -> None:
    """With beta = 0 labels do not reach the received model, and it still learns them from its peer."""
    pair, examples = some_pair(), some_examples(60)
    settings = MutualLocal(mode="mutual", alpha=1, beta=0, epochs=40, lr=0.1)
    before, _ = evaluate(pair.received, examples)
    train_local(pair, examples, settings, seed=0)
    assert evaluate(pair.received, examples)[0] > max(before, 0.8)


def test_identical_models_have_nothing_to_teach_each_other() -> None:
    """With alpha = beta = 0 there are no labels either: nothing moves."""
    pair = Pair(some_model(), some_model())
    before = copy.deepcopy(pair)
    result = train_local(pair, some_examples(), MutualLocal(mode="mutual", alpha=0, beta=0), seed=0)
    assert result.loss == pytest.approx(0.0, abs=1e-6)
    for now, then in zip(pair.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)


def test_the_received_model_is_made_only_where_it_is_needed() -> None:
    def unneeded() -> nn.Module:
        raise AssertionError

    for settings in (PlainLocal(), MutualLocal(mode="mutual")):
        local_loss(unneeded, settings)


def test_an_unknown_local_mode_and_optimiser_are_refused() -> None:
    from kdfed.train import make_optimizer

    model = build_model(ModelSettings(name="mlp"), (4,), 2, 0)
    with pytest.raises(KdfedError, match=r"expected one of plain, .*, got 'own'"):
        local_loss(lambda: model, PlainLocal().model_copy(update={"mode": "own"}))
    with pytest.raises(KdfedError, match="expected one of sgd, adam, adamw, got 'own'"):
        make_optimizer(model, OptimiserSettings().model_copy(update={"optimizer": "own"}))
