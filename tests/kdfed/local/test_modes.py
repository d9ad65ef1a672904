"""What all local modes have in common."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
from kdfed.models import state_of
from kdfed.settings import TeacherSettings
from kdfed.task import CLASSIFICATION
from kdfed.train import fit
from tests.kdfed.local.training import some_examples, some_model, train_local


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
