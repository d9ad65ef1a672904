"""What participants that exchange logits agree on."""

from __future__ import annotations

import math

import pytest
import torch

from kdfed.consensus import DIGESTS, entropy_reduction, mean_logits, public_indices


def _logits(seed: int = 0, participants: int = 4) -> torch.Tensor:
    return torch.randn(participants, 6, 3, generator=torch.Generator().manual_seed(seed)) * 3


def _entropies(probabilities_NC: torch.Tensor) -> torch.Tensor:
    return -torch.xlogy(probabilities_NC, probabilities_NC).sum(1)


def test_entropy_reduction_of_two_participants_by_hand() -> None:
    """(3/4, 1/4) and (1/4, 3/4) and (1, 0): mean (2/3, 1/3); at T = 1/3 softmax(2, 1), e / (1 + e)."""
    logits = torch.tensor([[[math.log(3), 0.0]], [[0.0, math.log(3)]], [[200.0, 0.0]]])
    consensus = entropy_reduction(logits, temperature=1 / 3)
    assert consensus[0].tolist() == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])


def test_consensuses_agree_with_their_slow_twins() -> None:
    logits = _logits()
    for n in range(6):
        mean = [sum(float(own[n, c]) for own in logits) / 4 for c in range(3)]
        assert mean_logits(logits)[n].tolist() == pytest.approx(mean, abs=1e-6)
        shares = [[math.exp(float(v)) for v in own[n]] for own in logits]
        average = [sum(row[c] / sum(row) for row in shares) / 4 for c in range(3)]
        raised = [math.exp(value / 0.1) for value in average]
        expected = [value / sum(raised) for value in raised]
        assert entropy_reduction(logits, 0.1)[n].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_consensus_of_one_participant_is_its_own_logits() -> None:
    logits = _logits(participants=1)
    assert torch.equal(mean_logits(logits), logits[0])


def test_the_order_of_participants_does_not_matter() -> None:
    logits = _logits()
    for combine in (mean_logits, lambda every: entropy_reduction(every, 0.1)):
        assert torch.allclose(combine(logits), combine(logits.flip(0)), atol=1e-6)


def test_a_lower_temperature_leaves_less_entropy() -> None:
    means = [float(_entropies(entropy_reduction(_logits(), t)).mean()) for t in (0.05, 0.1, 0.5, 2.0)]
    assert means == sorted(means)


def test_a_model_that_agrees_pays_nothing_to_fedmd_and_the_entropy_to_ds_fl() -> None:
    consensus = torch.softmax(_logits()[0], dim=1)
    inputs = torch.zeros(6, 1)
    logits = _logits()[0]
    assert torch.equal(DIGESTS["fedmd"].examples(inputs, logits, logits), torch.zeros(6))
    paid = DIGESTS["ds_fl"].examples(inputs, consensus.log(), consensus)
    assert torch.allclose(paid, _entropies(consensus), atol=1e-5)


def test_digesting_by_hand() -> None:
    """|1 - 0| and |0 - 3| have the mean 2. The cross entropy of (1/2, 1/2) and softmax(ln 3, 0) = (3/4, 1/4)
    is -(ln 3/4 + ln 1/4) / 2."""
    inputs = torch.zeros(1, 1)
    distance = DIGESTS["fedmd"].examples(inputs, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
    assert distance.tolist() == [2.0]
    soft = DIGESTS["ds_fl"].examples(inputs, torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.5, 0.5]]))
    assert soft.tolist() == pytest.approx([-(math.log(3 / 4) + math.log(1 / 4)) / 2])


def test_both_ends_draw_the_same_public_examples_and_others_in_another_round() -> None:
    first, again, other = (public_indices(7, r, 50, 10) for r in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 10
    assert public_indices(7, 1, 5, None).tolist() == [0, 1, 2, 3, 4]
