"""What a round trains of each participant, what it starts from, and what is uploaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from clients.local_models import PairedModels, ReceivedModel
from clients.store import Store
from kdfed.cohort import stack_states
from kdfed.local.pairs import ModelPair, pair_state, split_pair
from kdfed.models import State

RECEIVED = {"weight": torch.full((3, 2), 7.0), "bias": torch.zeros(3)}


def _personal(value: float) -> State:
    return {"weight": torch.full((3, 2), value), "bias": torch.full((3,), value)}


def _paired(path: Path, server_round: int) -> PairedModels:
    pair = ModelPair(nn.Linear(2, 3), nn.Linear(2, 3))
    return PairedModels(pair, RECEIVED, lambda member: _personal(-member), Store(path), server_round)


def _starts(paired: PairedModels, *members: int) -> list[float]:
    starts = paired.start(members)
    assert all(torch.equal(split_pair(start)[0]["weight"], RECEIVED["weight"]) for start in starts)
    return [float(split_pair(start)[1]["weight"][0, 0]) for start in starts]


def test_the_received_model_alone_starts_as_received_and_is_uploaded_whole() -> None:
    alone = ReceivedModel(nn.Linear(2, 3), RECEIVED)
    stack = stack_states([RECEIVED, RECEIVED])
    assert alone.start([4, 5]) is RECEIVED
    assert alone.upload([4, 5], stack) is stack


def test_a_personal_model_is_drawn_once_and_goes_on_from_its_participants_latest_round(
    tmp_path: Path,
) -> None:
    assert _starts(_paired(tmp_path, 1), 4, 5) == [-4.0, -5.0]
    trained = [
        pair_state({key: v + place for key, v in RECEIVED.items()}, _personal(place)) for place in (8, 9)
    ]
    uploaded = _paired(tmp_path, 1).upload([5, 4], stack_states(trained))

    assert list(uploaded) == list(RECEIVED)
    torch.testing.assert_close(uploaded["weight"][:, 0, 0], torch.tensor([15.0, 16.0]))
    assert _starts(_paired(tmp_path, 1), 4, 5) == [-4.0, -5.0]
    assert _starts(_paired(tmp_path, 2), 4, 5, 6) == [9.0, 8.0, -6.0]
    assert _starts(_paired(tmp_path, 9), 5) == [8.0]


def test_a_personal_model_that_diverged_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _paired(tmp_path, 1).upload([2], stack_states([pair_state(RECEIVED, _personal(3.0))]))
    states = [pair_state(RECEIVED, _personal(value)) for value in (float("nan"), 6.0)]
    _paired(tmp_path, 2).upload([2, 1], stack_states(states))

    assert _starts(_paired(tmp_path, 3), 2, 1) == [3.0, 6.0]
    assert "participant 2 diverged, and its personal model is not kept" in caplog.text
