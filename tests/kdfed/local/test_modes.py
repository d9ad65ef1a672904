"""What all local modes have in common."""

from __future__ import annotations

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
from kdfed.models import build_model, state_of
from kdfed.settings import ModelSettings, TeacherSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import TrainResult, fit

SHAPE = (1, 8, 8)


def some_examples(count: int = 23, classes: int = 3, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    inputs = torch.randn(count, *SHAPE, generator=generator) + labels.view(-1, 1, 1, 1)
    return Examples(inputs, labels)


def some_model(norm: str = "none", seed: int = 0) -> nn.Module:
    return build_model(ModelSettings(options={"width": 4, "norm": norm}), SHAPE, 3, seed)


def train_local(model: nn.Module, examples: Examples, settings: LocalMode, seed: int) -> TrainResult:
    return fit(model, examples, settings, settings.loss(lambda: model, CLASSIFICATION), seed)


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    one, two = state_of(first), state_of(second)
    return all(torch.equal(one[key], two[key]) for key in one)


def unneeded() -> nn.Module:
    raise AssertionError


def test_a_teacher_is_trained_like_a_plain_participant() -> None:
    teacher, plain = some_model(), some_model()
    fit(teacher, some_examples(), TeacherSettings(epochs=2), PLAIN, seed=3)
    train_local(plain, some_examples(), PlainLocal(epochs=2), seed=3)
    assert equal_states(teacher, plain)


@pytest.mark.parametrize(
    "settings",
    [
        ProximalLocal(mu=0.0),
        KDLocal(weight=0.0, temperature=4.0),
        NTDLocal(beta=0.0),
    ],
)
def test_mu_0_and_weight_0_are_plain_training_to_the_bit(settings: LocalMode) -> None:
    other, plain = some_model(), some_model()
    train_local(other, some_examples(), settings, seed=3)
    train_local(plain, some_examples(), PlainLocal(), seed=3)
    assert equal_states(other, plain)


def test_the_received_model_is_made_only_where_it_is_needed() -> None:
    for settings in (PlainLocal(), ProximalLocal(mu=0), KDLocal(weight=0), NTDLocal(beta=0), MutualLocal()):
        settings.loss(unneeded, CLASSIFICATION)


def test_the_registry_names_each_mode_as_its_settings_do() -> None:
    assert {name: kind.model_fields["mode"].default for name, kind in LOCAL_MODES.members.items()} == {
        name: name for name in ("plain", "proximal", "kd", "ntd", "mutual")
    }


def test_an_unknown_local_mode_is_refused() -> None:
    with pytest.raises(KdfedError, match=r"expected one of plain, .*, got 'own'"):
        LOCAL_MODES.find("own")
