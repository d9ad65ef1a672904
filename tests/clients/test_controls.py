"""What participants keep for SCAFFOLD: where they went less the pull, unless they diverged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clients.controls import Controls
from clients.store import Store
from kdfed.cohort.training import Trained
from kdfed.local import PlainLocal
from kdfed.messages import Train
from kdfed.settings import ModelSettings
from kdfed.train import TrainResult


def at_round(number: int, store: Path, control: float) -> Controls:
    asked = Train(
        seed=0,
        model=ModelSettings(),
        arrays={"w": torch.tensor([1.0]), "mean": torch.zeros(1)},
        control={"w": torch.tensor([control])},
        server_round=number,
        local=PlainLocal(lr=0.1),
    )
    return Controls(asked, Store(store))


def trained(*ends: float) -> Trained:
    states = {"w": torch.tensor([[end] for end in ends]), "mean": torch.ones(len(ends), 1)}
    return Trained(states, list(range(len(ends))), [TrainResult(0.0, 2, 8) for _ in ends])


def test_a_worked_number(tmp_path: Path) -> None:
    """Two steps of rate 0.1 from 1 to 0.8 are 0.2 / 0.2 = 1; then, pulled by 5 - 1 = 4, to 0: 5 - 4 = 1."""
    first = at_round(1, tmp_path, 0.0)
    pulls = first.pulls([7])
    assert pulls[0]["w"].item() == 0.0
    first.keep([7], trained(0.8), pulls)
    second = at_round(2, tmp_path, 5.0)
    pulls = second.pulls([7, 8])
    assert [pull["w"].item() for pull in pulls] == pytest.approx([4.0, 5.0])
    second.keep([7, 8], trained(0.0, 1.0), pulls)
    assert Store(tmp_path).load(7, before=3)["w"].item() == pytest.approx(1.0)
    assert Store(tmp_path).load(8, before=3)["w"].item() == pytest.approx(-5.0)


def test_who_diverged_keeps_what_it_had(tmp_path: Path) -> None:
    control = at_round(1, tmp_path, 0.0)
    control.keep([0, 1], trained(float("nan"), 0.5), control.pulls([0, 1]))
    assert Store(tmp_path).load(0, before=2) is None
    assert Store(tmp_path).load(1, before=2) is not None


def test_a_round_that_is_run_again_reads_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        control = at_round(3, tmp_path, 2.0)
        pulls = control.pulls([4])
        assert pulls[0]["w"].item() == 2.0
        control.keep([4], trained(0.0), pulls)
