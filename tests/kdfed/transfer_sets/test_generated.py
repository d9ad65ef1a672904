from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from kdfed.data import Examples, prepare
from kdfed.errors import KdfedError
from kdfed.local import PLAIN
from kdfed.models import build_model, state_of
from kdfed.settings import DataSettings, ModelSettings, OptimiserSettings
from kdfed.train import fit, predict
from kdfed.transfer_sets.generated import (
    GeneratedSet,
    GeneratorSettings,
    generate,
    generator_loss,
    last_linear,
    make_generator,
)

SHAPE, CLASSES = (6,), 3
QUICK = GeneratorSettings(steps=60, batch_size=32, lr=0.01, latent=8, width=8)


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teachers() -> list[nn.Module]:
    """Three teachers of one task: which of the first three features is largest."""
    found = []
    for seed in range(3):
        model = build_model(ModelSettings(name="mlp", options={"hidden": (16,)}), SHAPE, CLASSES, seed)
        inputs = draw(300, *SHAPE, seed=seed)
        examples = Examples(inputs, inputs[:, :3].argmax(1))
        fit(model, examples, OptimiserSettings(epochs=10, lr=0.1), PLAIN, seed)
        found.append(model)
    return found


def probabilities(teachers: Sequence[nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.stack([predict(teacher, inputs) for teacher in teachers]).mean(0), dim=1)


def entropy(shares: torch.Tensor) -> float:
    return float(-torch.xlogy(shares, shares).sum(-1).mean())


def test_the_loss_agrees_with_the_slow_twin() -> None:
    """Example by example, class by class."""
    logits, features = draw(2, 5, 4), [draw(5, 7, seed=1), draw(5, 3, seed=2)]
    settings = GeneratorSettings(one_hot_weight=0.7, entropy_weight=3.0, activation_weight=0.2)
    sure, balance = 0.0, [0.0] * 4
    for n in range(5):
        mean = [(float(logits[0, n, c]) + float(logits[1, n, c])) / 2 for c in range(4)]
        total = sum(math.exp(value) for value in mean)
        shares = [math.exp(value) / total for value in mean]
        sure += -math.log(max(shares)) / 5
        balance = [old + share / 5 for old, share in zip(balance, shares, strict=True)]
    large = sum(sum(abs(float(v)) for v in one.flatten()) / one.numel() for one in features) / 2
    expected = 0.7 * sure + 3.0 * sum(share * math.log(share) for share in balance) - 0.2 * large
    assert float(generator_loss(logits, features, settings)) == pytest.approx(expected, rel=1e-5)


def test_sure_teachers_and_balanced_classes_cost_minus_the_entropy_of_the_classes() -> None:
    """One-hot 0, and 5 x -ln 3: one example of each class, of which the teachers are certain."""
    logits = 1e3 * torch.eye(3).unsqueeze(0)
    settings = GeneratorSettings(activation_weight=0.0)
    assert float(generator_loss(logits, [], settings)) == pytest.approx(-5 * math.log(3))


@pytest.mark.slow
def test_generated_examples_are_surer_than_noise_and_more_balanced() -> None:
    """Teachers of digits, to whom noise looks like some classes more than like others."""
    data = prepare(DataSettings(source="digits", limit=600))
    parts = np.array_split(data.splits.train, 3)
    teachers = []
    for seed, part in enumerate(parts):
        model = build_model(ModelSettings(name="cnn"), data.input_shape, data.classes, seed)
        fit(model, data.examples(part), OptimiserSettings(epochs=10, lr=0.05), PLAIN, seed)
        teachers.append(model)
    examples = generate(teachers, data.input_shape, 300, QUICK, seed=1)
    noise = draw(300, *data.input_shape, seed=9)
    drawn, random = probabilities(teachers, examples), probabilities(teachers, noise)
    assert entropy(drawn) < entropy(random)
    assert entropy(drawn.mean(0)) > entropy(random.mean(0))
    assert entropy(drawn.mean(0)) > 0.95 * math.log(data.classes)


def test_the_same_seed_gives_the_same_bits_and_leaves_global_draws_alone(teachers: list[nn.Module]) -> None:
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    one = generate(teachers, SHAPE, 40, QUICK, seed=1)
    assert torch.equal(torch.rand(3), undisturbed)
    assert torch.equal(generate(teachers, SHAPE, 40, QUICK, seed=1), one)
    assert not torch.equal(generate(teachers, SHAPE, 40, QUICK, seed=2), one)


def test_teachers_are_left_as_they_were(teachers: list[nn.Module]) -> None:
    own = [copy.deepcopy(teacher).train() for teacher in teachers]
    before = [state_of(teacher) for teacher in own]
    generate(own, SHAPE, 10, QUICK, seed=1)
    for teacher, state in zip(own, before, strict=True):
        assert teacher.training
        assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
        assert all(torch.equal(value, state[key]) for key, value in state_of(teacher).items())
        layer = last_linear(teacher)
        assert layer is not None
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 7, 13), (1, 1, 3), (5,), (1,)])
def test_inputs_of_every_shape_are_drawn_with_mean_0_and_variance_1(shape: tuple[int, ...]) -> None:
    settings = GeneratorSettings(latent=4, width=4)
    drawn = make_generator(shape, settings)(draw(64, 4))
    assert drawn.shape == (64, *shape)
    rest = [0, *range(2, drawn.ndim)]
    assert torch.allclose(drawn.mean(rest), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(drawn.var(rest, correction=0), torch.ones(shape[0]), atol=0.05)


def test_as_many_as_asked_for_are_drawn(teachers: list[nn.Module]) -> None:
    quick = QUICK.model_copy(update={"steps": 1})
    for count in (1, 32, 33):
        assert generate(teachers, SHAPE, count, quick, seed=1).shape == (count, *SHAPE)


def test_teachers_of_different_architectures_teach_one_generator(teachers: list[nn.Module]) -> None:
    wide = build_model(ModelSettings(name="mlp", options={"hidden": (5, 4)}), SHAPE, CLASSES, 0)
    assert generate([wide, *teachers], SHAPE, 10, QUICK, seed=1).isfinite().all()


def test_what_cannot_teach_is_refused() -> None:
    with pytest.raises(KdfedError, match="at least one teacher"):
        generate([], SHAPE, 10, QUICK, seed=1)
    convolution = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(KdfedError, match="loss needs a linear layer, and Sequential has none"):
        generate([convolution], (1, 8, 8), 10, QUICK, seed=1)
    without = QUICK.model_copy(update={"activation_weight": 0.0})
    assert generate([convolution], (1, 8, 8), 10, without, seed=1).shape == (10, 1, 8, 8)


def test_the_set_is_what_its_generator_draws(teachers: list[nn.Module]) -> None:
    public = Examples(torch.zeros(30, *SHAPE), torch.zeros(30, dtype=torch.int64))
    quick = GeneratorSettings(steps=2, width=2)
    for images in (None, 12):
        drawn = GeneratedSet(generator=quick, images=images).examples(public, teachers, 5).inputs
        assert torch.equal(drawn, generate(teachers, SHAPE, images or 30, quick, 5))
