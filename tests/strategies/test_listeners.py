"""Whoever follows an arm beside its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdfed.config import Experiment
from kdfed.data import Examples
from kdfed.events import Event
from kdfed.ledger import Costs
from kdfed.listeners import Round
from kdfed.records import Absent, RoundRecord
from kdfed.task import CLASSIFICATION, REGRESSION
from strategies.arm_config import ArmConfig, ServerData
from strategies.listeners import Announcing, Falling

SOLVED = {"closed-form": {"head": "ridge"}}


def told(
    tiny: Callable[..., Experiment],
    scores: tuple[float, float],
    examples: int,
    arm: str = "cold",
    task: Any = CLASSIFICATION,
    **changes: Any,
) -> list[str]:
    """Return what is warned of, where the start and the first round have these scores on so many examples."""
    held = Examples(torch.zeros(examples, 2), torch.zeros(examples, dtype=torch.int64))
    data = ServerData(held, held, held.inputs.numpy(), 2, task)
    warnings: list[str] = []
    falling = Falling(
        ArmConfig(arm=tiny(**changes).arm(arm), data=data),
        lambda what, why: warnings.append(f"{what}: {why}"),
    )
    for number, score in enumerate(scores):
        costs = (number, "rounds" if number else "start", 0.0, None, 1.0, 0, 0, 0, 0, 5, (), 0.0, score)
        record = RoundRecord("arm", 0, number, *costs)
        falling.on_round(Round(number, 3, {}, 5, (), Costs(), record=record))
    return warnings


@pytest.mark.parametrize(
    ("scores", "examples", "warned"),
    [
        ((0.49, 0.10), 300, True),  # a head on an untrained network, fine-tuned at the rate of a cold start
        ((0.49, 0.44), 300, False),  # two standard errors are 8 points
        ((0.49, 0.40), 300, True),
        ((0.49, 0.46), 10_000, True),
        ((0.49, 0.475), 10_000, False),  # two points in any case
        ((0.90, 0.87), 300, False),  # here they are 5
        ((0.90, 0.83), 300, True),
        ((0.49, 0.55), 300, False),
    ],
)
def test_a_loss_is_told_where_it_is_more_than_noise(tiny, scores, examples, warned):
    """Of accuracies a and b on N examples the squared error of a - b is (a (1 - a) + b (1 - b)) / N."""
    found = told(tiny, scores, examples, **SOLVED)
    assert len(found) == warned
    lost = 100 * (scores[0] - scores[1])
    assert all(f"the first round lost {lost:.1f} points of the start: lower local.lr" in one for one in found)
    assert len(told(tiny, scores, examples, "consolidated")) == warned
    assert told(tiny, scores, examples) == []  # a random start has nothing to lose


@pytest.mark.parametrize(
    ("scores", "examples", "warned"),
    [((0.45, 0.30), 22, False), ((0.45, -5.0), 22, True), ((0.45, 0.40), 10_000, True)],
)
def test_the_noise_of_a_regression_is_that_of_its_r2(tiny, scores, examples, warned):
    """About 4 R^2 (1 - R^2)^2 / N: of 0.45 on 22 examples an error of 0.16."""
    assert len(told(tiny, scores, examples, task=REGRESSION, **SOLVED)) == warned


def test_a_head_that_is_solved_later_is_no_start(tiny):
    assert told(tiny, (0.9, 0.1), 300, **{"closed-form": {"at": [2]}}) == []


# ----------------------------------------------------------------------------- who answered


@pytest.mark.parametrize(
    ("who", "absent", "said"),
    [
        ((), (), ""),
        ((0, 2), (), "2 answered (p0, p2)"),
        ((), (Absent(1, "late"),), "0 answered, without p1 (late)"),
        (
            (0,),
            (Absent(1, "error\nreply"), Absent(2, "late")),
            "1 answered (p0), without p1 (error reply), p2 (late)",
        ),
        (tuple(range(11)), (), "11 answered"),
        (
            (0,),
            tuple(Absent(number, "late") for number in range(1, 13)),
            f"1 answered (p0), without {', '.join(f'p{n} (late)' for n in range(1, 11))} and 2 more",
        ),
    ],
)
def test_a_round_says_who_answered_and_who_did_not_and_why(tiny, who, absent, said):
    held = Examples(torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64))
    data = ServerData(held, held, held.inputs.numpy(), 2, CLASSIFICATION)
    events: list[Event] = []
    config = ArmConfig(arm=tiny().arm("cold"), data=data, on_event=events.append)
    record = RoundRecord("arm", 0, 1, 1, "rounds", 0.5, None, 1.0, 0, 0, 0, 0, len(who), absent, 0.0, 0.5)
    ended = Round(1, 3, {}, len(who), absent, Costs(bytes_up=3, bytes_down=4), record=record, who=who)
    Announcing(config, lambda participant: f"p{participant}").on_round(ended)
    (event,) = events
    assert (event.who, event.bytes, event.step, event.steps) == (said, 7, 1, 3)
    assert Event(**event.to_json()) == event
