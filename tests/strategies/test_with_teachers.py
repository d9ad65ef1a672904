"""Statistics of the common initial weights that come with the teachers: what it gives, costs, and refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Message

from clients.client_app import app
from kdfed.errors import ConfigError, RunError
from kdfed.messages import ARRAYS, COHORTS, Cohorts, TrainTeacher
from simulations.engines.inprocess import InProcessGrid

HEAD = {"head": "ridge", "penalty": 0.1}
TOGETHER = {"closed-form": {**HEAD, "at": ["with-teachers"]}}
STILL = {"local.lr": 1e-9}
START = {"arms.consolidated.start": "averaged"}


def weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def assert_same(one: Any, other: Any) -> None:
    for key, value in weights(one).items():
        assert torch.equal(value, weights(other)[key]), key


@pytest.mark.parametrize("upload", ["weights", "logits"])
def test_one_exchange_gives_the_solved_common_weights_and_the_next_one_the_solved_student(
    tiny: Any, run_arm: Any, upload: str
) -> None:
    changes = {"teachers.upload": upload}
    result = run_arm(
        tiny(only="consolidated", **TOGETHER, **changes, **{"rounds.horizon": 1}), "consolidated"
    )
    start, first = result.records
    cold = run_arm(tiny(only="cold", **{"closed-form": HEAD, "rounds.horizon": 0}))
    student = run_arm(
        tiny(only="consolidated", **changes, **{"closed-form": HEAD, "rounds.horizon": 0}), "consolidated"
    )
    assert start.accuracy == cold.records[0].accuracy
    assert start.accuracy > 0.3  # chance is 0.1
    assert first.accuracy == student.records[0].accuracy
    assert_same(result, student)
    assert [(one.exchanges, one.participant_uploads, one.answered) for one in result.records] == [
        (1, 5, 5),
        (2, 10, 5),
    ]
    assert start.local_steps == first.local_steps  # nobody trains in round 1
    assert [refit.at for refit in result.refits] == ["with-teachers", 1]


def test_statistics_are_counted_beside_the_teachers(tiny: Any, run_arm: Any) -> None:
    changes = {"rounds.horizon": 1}
    without = run_arm(tiny(only="consolidated", **changes), "consolidated").records[0]
    beside = run_arm(tiny(only="consolidated", **changes, **TOGETHER), "consolidated").records[0]
    more = (beside.bytes_up - without.bytes_up) / 5
    arrays = 8 * 10 + 4 * (10 * 16 + 16 * 17 // 2)  # counts, class sums, Gram matrix of 16 features
    assert arrays < more < arrays + 1000


def test_the_next_round_trains_the_solved_student(tiny: Any, run_arm: Any) -> None:
    result = run_arm(tiny(only="consolidated", **TOGETHER, **STILL, **{"rounds.horizon": 3}), "consolidated")
    accuracies = [one.accuracy for one in result.records]
    assert accuracies[1] == accuracies[2] == accuracies[3]
    assert [one.exchanges for one in result.records] == [1, 2, 3, 4]
    assert [one.round for one in result.records] == [0, 1, 2, 3]


def test_averaged_teachers_get_a_head_as_a_student_does(tiny: Any, run_arm: Any) -> None:
    run = [
        run_arm(
            tiny(only="consolidated", **section, **{"rounds.horizon": rounds}, **START),
            "consolidated",
        )
        for section, rounds in ((TOGETHER, 1), ({"closed-form": HEAD}, 0))
    ]
    assert_same(*run)


def test_the_bits_are_the_same_whatever_nodes_cohorts_and_order(tiny: Any, run_arm: Any) -> None:
    def ran(cohort: int = 2, **more: Any) -> Any:
        changes = {"rounds.horizon": 1, "server.cohort-size": cohort}
        return run_arm(tiny(only="consolidated", **TOGETHER, **changes), "consolidated", **more)

    usual = ran()
    for other in (ran(nodes=1), ran(nodes=5, order=random.Random(1))):
        assert_same(usual, other)
        assert usual.refits == other.refits
    one_by_one = ran(1, nodes=3)
    assert one_by_one.refits[0] == usual.refits[0]


def test_a_round_that_nothing_was_sent_in_since_is_evaluated_all_the_same(tiny: Any, run_arm: Any) -> None:
    """The start's evaluation waits until something is sent; the statistics of round 1 do not."""
    result = run_arm(tiny(only="consolidated", **TOGETHER, **{"rounds.horizon": 2}), "consolidated")
    assert [one.round for one in result.records] == [0, 1, 2]


# ----------------------------------------------------------------------------- liars


class Lying(InProcessGrid):
    """Some participants' statistics are changed; each has a node of its own."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray], liars: Collection[int]) -> None:
        super().__init__(app, 5)
        self.change, self.liars = change, liars

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == TrainTeacher.type:
            (participant,) = Cohorts.from_record(message.content[COHORTS]).participants
            if participant in self.liars:
                arrays = reply.content[ARRAYS]
                arrays["statistics.gram"] = Array(self.change(arrays["statistics.gram"].numpy()))
        return reply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v * np.nan, "not finite"),
        (lambda v: -v, "its statistics: "),
        (lambda v: v * 1e9, "its statistics: "),
        (lambda v: v[:-1], "statistics.gram"),
    ],
    ids=["nan", "negative", "huge", "cut short"],
)
def test_who_sends_no_sums_is_left_out_as_a_teacher_too(
    tiny: Any, run_arm: Any, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    changes = {"rounds.horizon": 1, "server.cohort-size": 1}
    result = run_arm(
        tiny(only="consolidated", **TOGETHER, **changes), "consolidated", grid=Lying(change, [3])
    )
    (absent,) = result.records[0].absent
    assert (absent.participant, result.records[0].answered) == (3, 4)
    assert reason in absent.reason
    assert result.refits[0].participants == 4


def test_where_too_few_are_left_the_run_ends_as_without_their_teachers(tiny: Any, run_arm: Any) -> None:
    changes = {"rounds.horizon": 1, "server.cohort-size": 1, "server.minimum": 5}
    with pytest.raises(RunError, match=r"teacher phase: expected at least 5 .* its statistics"):
        run_arm(
            tiny(only="consolidated", **TOGETHER, **changes), "consolidated", grid=Lying(lambda v: -v, [3])
        )


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms.consolidated.start": "random"}, "needs teachers, start: consolidated or averaged"),
        ({"teachers.init": "own"}, "trained from the common initial weights"),
        ({"teachers.model": {"name": "cnn"}}, "trained from the common initial weights"),
        ({"closed-form.at": ["with-teachers", 0]}, "remove 0"),
        ({"closed-form.at": ["with-teachers", 1]}, "remove 1"),
        ({"closed-form.at": ["with-teachers", "before-teachers"]}, "remove 'before-teachers'"),
        ({"rounds.horizon": 0}, "needs round 1"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tiny: Any, changes: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(only="consolidated", **{**TOGETHER, **changes})
    found = [one.message for one in caught.value.mistakes if one.key.endswith("closed-form.at")]
    assert any(words in message for message in found), caught.value.mistakes
