"""The server's own model: trained like anybody's, on the server's labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kdfed.augmentation import augment
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.models import build_model, state_of
from kdfed.seeding import shuffled, torch_generator
from kdfed.server_model import augmentation_of, fit_server_model, labelled_examples
from kdfed.settings import ModelSettings, ServerFitSettings
from kdfed.task import CLASSIFICATION, REGRESSION, Task
from tests.kdfed.local.training import some_examples, some_model
from tests.setups import CPU, CPU_REGRESSION

SEED = 5


def numbers(count: int = 40, seed: int = 0) -> Examples:
    """Three features; the label is their sum, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator)
    return Examples(inputs, inputs.sum(1) / 3**0.5 + 0.1 * torch.randn(count, generator=generator))


def number_model() -> nn.Module:
    return build_model(ModelSettings(name="mlp", options={"hidden": (8,)}), (3,), 1, 0)


def settings(**changes: object) -> ServerFitSettings:
    return ServerFitSettings(**{"epochs": 6, "batch_size": 8, **changes})


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = state_of(first), state_of(second)
    return all(torch.equal(one[key], two[key]) for key in one)


def slow_fit(model: nn.Module, examples: Examples, chosen: ServerFitSettings, task: Task) -> None:
    """The training spelt out, for 8 examples a step."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p, **more: torch.optim.SGD(p, momentum=chosen.momentum, **more),
        "adamw": torch.optim.AdamW,
    }
    optimizer = kinds[chosen.optimizer](model.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay)
    draw = torch_generator(SEED, "augmentation")
    step, steps = 0, chosen.epochs * math.ceil(len(examples) / 8)
    for epoch in range(chosen.epochs):
        order = shuffled([SEED], epoch, [len(examples)])[0].tolist()
        for start in range(0, len(order), 8):
            batch = order[start : start + 8]
            if chosen.schedule == "cosine":
                optimizer.param_groups[0]["lr"] = chosen.lr / 2 * (1 + math.cos(math.pi * step / steps))
            inputs = examples.inputs[batch]
            if chosen.augmentation == ("crop",):
                inputs = augment(inputs, ["crop"], draw)
            outputs = model(inputs)
            optimizer.zero_grad()
            if task is REGRESSION:
                ((outputs[:, 0] - examples.labels[batch]) ** 2).mean().backward()
            else:
                nn.functional.cross_entropy(outputs, examples.labels[batch]).backward()
            optimizer.step()
            step += 1


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": ()},
        {"augmentation": ("crop",), "schedule": "constant"},
        {"augmentation": (), "optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "weight_decay": 5e-4},
    ],
)
def test_it_agrees_with_the_slow_twin(changes: dict[str, object]) -> None:
    fast, slow, examples, chosen = some_model(), some_model(), some_examples(20), settings(**changes)
    steps = fit_server_model(fast, examples, chosen, SEED, setup=CPU)
    slow_fit(slow, examples, chosen, CLASSIFICATION)
    assert steps == 18
    for key, value in state_of(slow).items():
        torch.testing.assert_close(state_of(fast)[key], value, rtol=1e-4, atol=1e-5)


def test_a_regression_agrees_with_the_slow_twin_and_learns() -> None:
    fast, slow, examples, chosen = number_model(), number_model(), numbers(), settings(epochs=60)
    fit_server_model(fast, examples, chosen, SEED, setup=CPU_REGRESSION)
    slow_fit(slow, examples, settings(epochs=60), REGRESSION)
    for key, value in state_of(slow).items():
        torch.testing.assert_close(state_of(fast)[key], value, rtol=1e-4, atol=1e-5)
    others = numbers(seed=1)
    with torch.no_grad():
        assert REGRESSION.score(fast.eval()(others.inputs), others.labels) > 0.8


def test_the_seed_draws_order_and_changes_of_images() -> None:
    """With all examples in one step their order does not matter: only the crops are left to differ."""
    first, again, other = (some_model() for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        chosen = settings(batch_size=1000, augmentation=("crop",))
        fit_server_model(model, some_examples(), chosen, seed, setup=CPU)
    assert same(first, again)
    assert not same(first, other)


def test_it_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    fit_server_model(some_model(), some_examples(), settings(), SEED, setup=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_on_its_own_it_crops_all_but_small_images() -> None:
    images = Examples(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))
    assert augmentation_of(settings(), images) == ("crop",)
    assert augmentation_of(settings(), some_examples()) == (), "of 8 by 8 pixels"
    assert augmentation_of(settings(), numbers()) == ()
    assert augmentation_of(settings(augmentation=("flip",)), some_examples()) == ("flip",)
    with pytest.raises(KdfedError, match=r"augmentation \['flip'\] needs images"):
        fit_server_model(number_model(), numbers(), settings(augmentation=("flip",)), SEED, setup=CPU)


def test_every_epoch_is_told() -> None:
    told: list[tuple[int, int]] = []
    fit_server_model(
        some_model(),
        some_examples(),
        settings(epochs=3),
        SEED,
        setup=CPU,
        on_epoch=lambda epoch, epochs: told.append((epoch, epochs)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_labels_of_the_transfer_split_are_used_only_where_the_settings_say_so() -> None:
    validation, transfer = some_examples(5, seed=1), some_examples(7, seed=2)
    assert labelled_examples(settings(), validation, transfer) is validation
    both = labelled_examples(settings(labels=True), validation, transfer)
    assert torch.equal(both.inputs, torch.cat([validation.inputs, transfer.inputs]))
    assert torch.equal(both.labels, torch.cat([validation.labels, transfer.labels]))
