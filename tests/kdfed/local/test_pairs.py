"""A received and a personal model side by side."""

from __future__ import annotations

import torch
from torch import nn

from kdfed.cohort import stack_states
from kdfed.local.pairs import ModelPair, pair_state, split_pair
from kdfed.models import load_state, state_of


def some_pair() -> ModelPair:
    return ModelPair(nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 3)))


def test_a_pairs_logits_are_those_of_the_received_model_and_then_the_personal_ones() -> None:
    pair, inputs = some_pair().eval(), torch.randn(5, 4)
    received, personal = pair(inputs).chunk(2, dim=1)
    torch.testing.assert_close(received, pair.received(inputs))
    torch.testing.assert_close(personal, pair.personal(inputs))


def test_a_state_put_together_is_the_pairs_and_comes_apart_again() -> None:
    pair, other = some_pair(), some_pair()
    received, personal = state_of(pair.received), state_of(pair.personal)
    state = pair_state(received, personal)
    assert list(state) == list(pair.state_dict())
    load_state(other, state)
    for apart in (split_pair(state), split_pair(state_of(other))):
        for found, expected in zip(apart, (received, personal), strict=True):
            assert list(found) == list(expected)
            assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_stack_of_pairs_comes_apart_too() -> None:
    pairs = [some_pair() for _ in range(3)]
    received, personal = split_pair(stack_states([state_of(pair) for pair in pairs]))
    assert torch.equal(received["weight"][2], pairs[2].received.weight)
    assert torch.equal(personal["2.bias"][1], state_of(pairs[1])["personal.2.bias"])


def test_a_model_with_a_layer_called_personal_is_not_mistaken() -> None:
    inner = ModelPair(nn.Linear(4, 3), nn.Linear(4, 3))
    state = state_of(ModelPair(inner, nn.Linear(4, 6)))
    received, personal = split_pair(state)
    assert list(received) == list(inner.state_dict())
    assert list(personal) == ["weight", "bias"]
