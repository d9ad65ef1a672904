"""Who follows an arm: the order in which listeners are told, what they may do, and who may be one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kdfed.errors import ConfigError, KdfedError
from kdfed.ledger import Costs
from kdfed.listeners import FlowerLog, Listener, Listeners, Round, build_listener
from kdfed.settings import ListenerSettings


class Telling(Listener):
    """Keeps what it was told."""

    def __init__(self, log: list[Any], *, name: str = "", in_step: bool = False, last: int = 99) -> None:
        self.log, self.name, self.in_step, self.last = log, name, in_step, last
        self.rounds = 0

    def on_start(self, name: str, seed: int, arm: Any) -> None:
        self.log.append((self.name, "start", name, seed))

    def on_phase(self, phase: Any, step: int, steps: int, accuracy: float | None, costs: Costs) -> None:
        self.log.append((self.name, phase, step))

    def on_round_start(self, number: int, rounds: int) -> None:
        self.log.append((self.name, "begins", number))

    def on_round(self, ended: Round) -> None:
        self.rounds += 1
        self.log.append((self.name, "ended", ended.number))

    def should_stop(self) -> str | None:
        return "enough" if self.rounds > self.last else None

    def on_end(self, rounds: int, costs: Costs) -> None:
        self.log.append((self.name, "end", rounds))


def _round(number: int) -> Round:
    return Round(number, 3, {}, 0, (), Costs())


def test_a_round_waits_for_catch_up_where_nobody_must_be_in_step() -> None:
    log: list[Any] = []
    listeners = Listeners([Telling(log, name="a"), Telling(log, name="b")])
    listeners.round(_round(1))
    assert log == []
    listeners.catch_up()
    listeners.catch_up()
    assert log == [("a", "ended", 1), ("b", "ended", 1)]


def test_all_are_told_at_once_where_one_must_be_in_step() -> None:
    log: list[Any] = []
    listeners = Listeners([Telling(log, name="a"), Telling(log, name="b", in_step=True)])
    listeners.round(_round(1))
    assert log == [("a", "ended", 1), ("b", "ended", 1)]


def test_only_those_in_step_are_asked_whether_to_stop() -> None:
    log: list[Any] = []
    late, early = Telling(log, last=-1), Telling(log, in_step=True, last=0)
    assert Listeners([late]).should_stop() is None
    listeners = Listeners([late, early])
    assert listeners.should_stop() is None
    listeners.round(_round(0))
    assert listeners.should_stop() == "enough"


def test_a_listener_that_raises_is_told_no_round_twice() -> None:
    class Raising(Listener):
        def on_round(self, ended: Round) -> None:
            raise KdfedError("no room")

    listeners = Listeners([Raising()])
    listeners.round(_round(1))
    with pytest.raises(KdfedError, match="no room"):
        listeners.catch_up()
    listeners.catch_up()


def test_an_arm_tells_its_listeners_everything_in_order(tiny, run_arm) -> None:
    log: list[Any] = []
    experiment = tiny(**{"rounds.horizon": 2, "consolidation.epochs": 1})
    run_arm(experiment, "consolidated", listeners=(Telling(log),))
    assert log[0] == ("", "start", "consolidated", 3)
    assert log[1:4] == [("", "hello", 0), ("", "teachers", 0), ("", "consolidate", 1)]
    # Nobody must be in step: round 1 begins before the start is told.
    assert log[4:] == [
        ("", "begins", 1),
        ("", "ended", 0),
        ("", "begins", 2),
        ("", "ended", 1),
        ("", "ended", 2),
        ("", "end", 2),
    ]


def test_a_listener_in_step_is_told_before_the_next_round_and_stops_the_arm(tiny, run_arm, caplog) -> None:
    log: list[Any] = []
    result = run_arm(tiny(), listeners=(Telling(log, in_step=True, last=1),))
    assert [entry[1:] for entry in log if entry[1] in ("begins", "ended")] == [
        ("ended", 0),
        ("begins", 1),
        ("ended", 1),
    ]
    assert (result.stopped, len(result.records)) == ("listener", 2)
    assert "a listener stops it: enough" in caplog.text


def test_following_changes_no_weights(tiny, run_arm) -> None:
    plain = run_arm(tiny()).arrays.to_torch_state_dict()
    for in_step in (False, True):
        followed = run_arm(tiny(), listeners=(Telling([], in_step=in_step),)).arrays.to_torch_state_dict()
        assert all(plain[key].equal(value) for key, value in followed.items())


def test_on_end_comes_also_where_an_arm_fails(tiny, run_arm) -> None:
    class Raising(Telling):
        def on_round_start(self, number: int, rounds: int) -> None:
            super().on_round_start(number, rounds)
            if number == 2:
                raise KdfedError("no more")

    log: list[Any] = []
    records: list[Any] = []
    with pytest.raises(KdfedError, match="no more"):
        run_arm(tiny(), listeners=(Raising(log),), on_record=records.append)
    assert log[-2:] == [("", "ended", 1), ("", "end", 1)]
    assert [record.round for record in records] == [0, 1], "what was trained is evaluated and recorded"


THEIRS = """
from kdfed.listeners import Listener

class Mine(Listener):
    def __init__(self, *, limit: int = 1):
        self.limit = limit

def nothing():
    return None

class Other:
    pass

def failing():
    raise ValueError("no such file")

value = 3
"""


@pytest.fixture
def _theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_listeners.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_theirs")
def test_a_name_makes_a_listener_with_its_options() -> None:
    made: Any = build_listener(ListenerSettings(name="their_listeners:Mine", options={"limit": 7}))
    assert (type(made).__name__, made.limit) == ("Mine", 7)
    with pytest.raises(
        KdfedError, match=r"expected 'their_listeners:nothing' to make a .*Listener, got None"
    ):
        build_listener(ListenerSettings(name="their_listeners:nothing"))
    with pytest.raises(KdfedError, match=r"it raised ValueError: no such file \(.*their_listeners.py, line"):
        build_listener(ListenerSettings(name="their_listeners:failing"))


@pytest.mark.usefixtures("_theirs")
def test_wrong_listeners_are_mistakes_of_the_experiment_all_at_once(tiny) -> None:
    wrong = [
        {"name": "their_listeners:Mine", "options": {"most": 3}},
        {"name": "their_listeners:Nobody"},
        {"name": "no_such_module:Mine"},
        {"name": "their_listeners:value"},
        {"name": "their_listeners:Other"},
        {"name": "their_listeners:Mine"},
    ]
    with pytest.raises(ConfigError) as raised:
        tiny(listeners=wrong)
    mistakes = {mistake.key: mistake.message for mistake in raised.value.mistakes}
    assert set(mistakes) == {f"listeners.{index}" for index in range(5)}
    assert "that fit (*, limit: int = 1), got {'most': 3}" in mistakes["listeners.0"]
    assert "has no attribute 'Nobody'" in mistakes["listeners.1"]
    assert "No module named 'no_such_module'" in mistakes["listeners.2"]
    assert "to be callable" in mistakes["listeners.3"]
    assert "a class derived from kdfed.listeners.Listener" in mistakes["listeners.4"]


def test_flowers_log_reads_like_flowers_own(tiny, run_arm, caplog) -> None:
    experiment = tiny(**{"rounds.horizon": 2, "consolidation.epochs": 2})
    logger = logging.getLogger("flwr")
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.INFO, logger="flwr"):
            result = run_arm(experiment, "consolidated", listeners=(FlowerLog(),))
    finally:
        logger.propagate = propagate
    lines = [text for text in caplog.messages if text]
    first, last = lines.index("[ROUND 1/2]"), lines.index("[ROUND 2/2]")
    assert lines.index("[TEACHERS]") < lines.index("[CONSOLIDATION]") < first
    assert any("teachers into one student" in text for text in lines[:first])
    assert any("aggregate_train: Received" in text for text in lines[first:last]), "of Flower's own"
    for number in (1, 2):  # the first is evaluated while the second is trained
        accuracy = f"accuracy {result.records[number].accuracy:.4f}"
        told = [text for text in lines[last:] if f"Round {number}, evaluation" in text]
        assert len(told) == 1
        assert accuracy in told[0]


def test_flowers_log_names_the_servers_own_training_once(tiny, run_arm, caplog) -> None:
    experiment = tiny(arms={"own": {"start": "server", "server-fit.epochs": 3}}, **{"rounds.horizon": 1})
    logger = logging.getLogger("flwr")
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.INFO, logger="flwr"):
            run_arm(experiment, "own", listeners=(FlowerLog(),))
    finally:
        logger.propagate = propagate
    titles = [text for text in caplog.messages if text.startswith("[")]
    assert titles == ["[SERVER]", "[ROUND 1/1]"]


def test_a_listener_that_would_never_be_asked_is_refused(tiny, run_arm) -> None:
    class Deaf(Listener):
        def should_stop(self) -> str | None:
            return "please"

    with pytest.raises(KdfedError, match=r"expected in_step = True of the listener .*Deaf, which has"):
        run_arm(tiny(), listeners=(Deaf(),))


def test_waiting_for_devices_is_not_in_an_arms_seconds(tiny, run_arm, monkeypatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("strategies.arm.number_devices", lambda *arguments: order.append("devices") or fail())

    def fail() -> None:
        raise KdfedError("enough seen")

    class First(Listener):
        def on_start(self, name: str, seed: int, arm: Any) -> None:
            order.append("start")

    with pytest.raises(KdfedError, match="enough seen"):
        run_arm(tiny(), listeners=(First(),), simulation=None)
    assert order == ["devices"]
