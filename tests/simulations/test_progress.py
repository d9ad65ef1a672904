from __future__ import annotations

import io

import pytest
from rich.console import Console

from kdfed.events import Event
from simulations.experiments import build_experiment
from simulations.progress import Progress, format_seconds

EXPERIMENT = build_experiment({"name": "tiny", "seeds": [0, 1], "arms": {"cold": {}, "warm": {}}})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(events, *, terminal, experiment=EXPERIMENT):
    """What a console of 120 columns shows after these (time, event) pairs."""
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, height=30, color_system=None)
    with Progress(experiment, console, clock) as progress:
        for now, event in events:
            clock.now = now
            progress(event)
    return console.file.getvalue()


def rounds(arm, seed, step, steps=40):
    return Event(arm, seed, "rounds", step, steps, accuracy=0.5, bytes=1_234_567)


def test_without_a_terminal_forty_rounds_print_about_ten_lines():
    text = shown([(step, rounds("cold", 0, step)) for step in range(41)], terminal=False)
    assert 10 <= len(text.splitlines()) <= 12
    assert "cold, seed 0: rounds 40/40, accuracy 0.500, 1.2 MB" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_score_of_a_regression_is_no_accuracy(terminal):
    data = {"source": "diabetes", "task": "regression"}
    experiment = build_experiment({"name": "tiny", "data": data, "arms": {"cold": {}}})
    text = shown([(0, rounds("cold", 0, 40))], terminal=terminal, experiment=experiment)
    assert "R²" in text
    assert "accuracy" not in text


def test_without_a_terminal_every_phase_is_told_once():
    events = [Event("warm", 0, "hello"), Event("warm", 0, "teachers")]
    events += [Event("warm", 0, "consolidate", epoch, 60) for epoch in range(1, 61)]
    text = shown([(0, event) for event in events], terminal=False)
    assert text.count("training teachers") == 1
    assert text.count("distilling") <= 12


def test_without_a_terminal_the_servers_own_training_is_told_when_it_begins_and_ends():
    events = [Event("own", 0, "start", epoch, 200) for epoch in range(201)]
    lines = shown([(0, event) for event in events], terminal=False).splitlines()
    assert len(lines) == 2
    assert all("training on the server's labels" in line for line in lines)


def test_time_left_is_the_pace_of_this_run_and_the_length_of_the_runs_to_come():
    """One of four runs is at round 12 of 40 after 12 s: 28 s remain, and three more of 40 s each."""
    text = shown([(step, rounds("cold", 0, step)) for step in range(13)], terminal=False)
    assert text.splitlines()[-1].endswith("MB, about 2 min 28 s left")


def test_an_arm_alone_may_stop_before_its_horizon():
    experiment = build_experiment({"name": "tiny", "arms": {"cold": {}}})
    text = shown(
        [(step, rounds("cold", 0, step)) for step in range(13)], terminal=False, experiment=experiment
    )
    assert text.splitlines()[-1].endswith("at most about 28 s left")


def test_a_run_is_over_when_the_next_one_starts():
    text = shown([(0, rounds("cold", 0, 3)), (1, Event("warm", 0, "hello"))], terminal=True)
    last = text[text.rindex("phase") :]
    assert "done" in last
    assert "meeting the nodes" in last
    assert "run 2 of 4" in last


def test_a_terminal_shows_phase_round_accuracy_and_bytes():
    text = shown([(0, rounds("cold", 0, 3))], terminal=True)
    for word in ("cold", "rounds", "3/40", "0.500", "1.2 MB"):
        assert word in text


def test_a_failed_run_says_why():
    events = [(0, rounds("cold", 0, 3)), (1, Event("cold", 0, "failed", message="only 1 answered"))]
    assert "only 1 answered" in shown(events, terminal=False)


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")])
def test_durations_are_written_for_people(seconds, text):
    assert format_seconds(seconds) == text
