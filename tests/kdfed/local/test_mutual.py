from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from kdfed.data import Examples
from kdfed.local import MutualLocal, PlainLocal
from kdfed.local.pairs import ModelPair
from kdfed.models import build_model, state_of
from kdfed.seeding import shuffled
from kdfed.settings import ModelSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import evaluate
from tests.kdfed.local.training import SHAPE, some_examples, some_model, train_local


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    one, two = state_of(first), state_of(second)
    return all(torch.equal(one[key], two[key]) for key in one)


def unneeded() -> nn.Module:
    raise AssertionError


def some_pair(options: dict[str, Any] | None = None) -> ModelPair:
    settings = ModelSettings(name="mlp", options=options or {"hidden": (8,)})
    return ModelPair(some_model("group"), build_model(settings, SHAPE, 3, seed=1))


def test_a_worked_pair() -> None:
    """Received probabilities (3/4, 1/4), personal (1/2, 1/2), label 0, alpha = 0.2, beta = 0.7:

    received 0.7 ln(4/3) + 0.3 KL(personal || received), with KL = 1/2 ln(2/3) + 1/2 ln 2;
    personal 0.2 ln 2 + 0.8 KL(received || personal), with KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    """
    loss = MutualLocal(alpha=0.2, beta=0.7).loss(unneeded, CLASSIFICATION)
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
    settings = MutualLocal(alpha=0.3, beta=0.8, epochs=3, batch_size=5, lr=0.1, momentum=0.9)
    fast, slow, examples = some_pair(), some_pair(), some_examples()
    train_local(fast, examples, settings, seed=4)
    slow_mutual_fit(slow.received, slow.personal, examples, settings, seed=4)
    for one, two in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_with_alpha_and_beta_1_both_models_are_trained_alone_to_the_bit(optimizer: str) -> None:
    pair, apart, examples = some_pair(), some_pair(), some_examples()
    own = {"optimizer": optimizer, "epochs": 2, "batch_size": 5, "lr": 0.01, "weight_decay": 0.01}
    train_local(pair, examples, MutualLocal(alpha=1, beta=1, **own), seed=3)
    for model in (apart.received, apart.personal):
        train_local(model, examples, PlainLocal(**own), seed=3)
    assert equal_states(pair, apart)


def test_what_the_personal_model_knows_reaches_the_received_one_through_distillation_alone() -> None:
    """With beta = 0 labels do not reach the received model, and it still learns them from its peer."""
    pair, examples = some_pair(), some_examples(60)
    settings = MutualLocal(alpha=1, beta=0, epochs=40, lr=0.1)
    before, _ = evaluate(pair.received, examples, CLASSIFICATION)
    train_local(pair, examples, settings, seed=0)
    assert evaluate(pair.received, examples, CLASSIFICATION)[0] > max(before, 0.8)


def test_identical_models_have_nothing_to_teach_each_other() -> None:
    """With alpha = beta = 0 there are no labels either: nothing moves."""
    pair = ModelPair(some_model(), some_model())
    before = copy.deepcopy(pair)
    result = train_local(pair, some_examples(), MutualLocal(alpha=0, beta=0), seed=0)
    assert result.loss == pytest.approx(0.0, abs=1e-6)
    for now, then in zip(pair.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)
