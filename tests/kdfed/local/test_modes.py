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
from kdfed.local.mode import ExtraSettings
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


def test_a_round_has_its_own_rate_and_passes() -> None:
    """lr 0.1, decay 0.5 and two passes more in two rounds: 0.1, 0.05, 0.025 and 3, 3, 1 passes."""
    settings = ProximalLocal(mu=0.3, lr=0.1, decay=0.5, extra=ExtraSettings(epochs=2, rounds=2))
    of_rounds = [settings.at_round(number) for number in (1, 2, 3)]
    assert [one.lr for one in of_rounds] == pytest.approx([0.1, 0.05, 0.025])
    assert [one.epochs for one in of_rounds] == [3, 3, 1]
    assert of_rounds[2] == ProximalLocal(mu=0.3, lr=0.025)
    assert all(one.at_round(7) == one for one in of_rounds), "nothing is applied twice"


@pytest.mark.parametrize("number", [1, 2, 1000])
def test_without_decay_and_extra_every_round_is_the_same_to_the_bit(number: int) -> None:
    settings = KDLocal(lr=0.1)
    assert settings.at_round(number) == settings


def test_a_rate_that_has_decayed_to_nothing_is_still_one() -> None:
    late = PlainLocal(lr=0.1, decay=0.5).at_round(10**6)
    assert 0 < late.lr < 1e-300
    assert PlainLocal.model_validate_json(late.model_dump_json()) == late


def test_extra_passes_without_rounds_are_refused() -> None:
    for one in ({"epochs": 2}, {"rounds": 3}):
        with pytest.raises(ValueError, match="one has no effect without the other"):
            ExtraSettings(**one)
