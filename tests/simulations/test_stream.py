"""What a SuperLink's log shows of a run."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from clients.client_app import app
from kdfed.errors import ConfigError
from kdfed.events import Event
from simulations import server_app
from simulations.engines.inprocess import InProcessGrid
from simulations.stream import Stream


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that tells what Flower's logger was told."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO, "flwr")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "flwr"]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("cold", 0, "hello"), "cold, seed 0: meeting the nodes"),
        (Event("warm", 3, "teachers"), "warm, seed 3: training teachers"),
        (Event("warm", 3, "consolidate", 1, 60), "warm, seed 3: distilling"),
        (Event("warm", 3, "statistics", message="a head"), "warm, seed 3: a head"),
        (Event("cold", 0, "rounds", 0, 9, accuracy=0.25), "cold, seed 0: the start, accuracy 0.250"),
        (
            Event("cold", 0, "rounds", 2, 9, accuracy=0.5, bytes=1_200_000, who="2 answered (0, 1)"),
            "cold, seed 0: round 2 of 9, accuracy 0.500, 2 answered (0, 1), 1.2 MB so far",
        ),
        (Event("cold", 0, "done"), "cold, seed 0: finished by an earlier run"),
        (Event("cold", 0, "failed", message="nobody came"), "cold, seed 0: nobody came"),
        (Event("", 0, "failed", message="no disk"), "no disk"),
    ],
)
def test_a_phase_and_an_evaluation_are_a_line_each(tiny: Any, lines: Any, event: Event, line: str) -> None:
    Stream(tiny())(event)
    assert lines() == [line]


@pytest.mark.parametrize("event", [Event("warm", 3, "consolidate", 2, 60), Event("", 0, "done")])
def test_what_is_one_of_many_steps_or_says_nothing_is_no_line(tiny: Any, lines: Any, event: Event) -> None:
    Stream(tiny())(event)
    assert lines() == []


def test_a_score_is_called_as_it_is(lines: Any) -> None:
    experiment: Any = SimpleNamespace(data=SimpleNamespace(task="regression"))
    Stream(experiment)(Event("cold", 0, "rounds", 1, 2, accuracy=-0.5))
    assert lines() == ["cold, seed 0: round 1 of 2, R² -0.500"]


# ----------------------------------------------------------------------------- a bare flwr run


def run(tiny: Any, tmp_path: Any, grid: Any, **changes: Any) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny(**changes).to_yaml())
    config = {"experiment": str(file), "set": "", "seeds": "", "out": str(tmp_path / "run")}
    server_app.main(grid, SimpleNamespace(run_config=config))


def test_a_bare_flwr_run_says_who_answered_and_who_did_not(tiny: Any, tmp_path: Any, lines: Any) -> None:
    from kdfed.messages import Train
    from kdfed.private.flwr import error_reply

    class Losing(InProcessGrid):
        """The node of the last participant is gone."""

        def _handle(self, message: Any) -> Any:
            if message.metadata.message_type == Train.type and message.metadata.dst_node_id == 1003:
                return error_reply(message, "Node Unavailable\nmore of it")
            return super()._handle(message)

    run(tiny, tmp_path, Losing(app, 3), **{"rounds.horizon": 1})
    told = "\n".join(lines())
    order = [
        "cold, seed 3: meeting the nodes",
        "cold, seed 3: the start, accuracy 0.",
        "cold, seed 3: round 1 of 1, accuracy 0.",
        ", 4 answered (0, 1, 2, 3), without 4 (error reply: Node Unavailable more of it), ",
        " kB so far",
        "consolidated, seed 3: training teachers",
        "consolidated, seed 3: distilling",
        "consolidated, seed 3: the start, accuracy 0.",
        ", 5 answered (0, 1, 2, 3, 4), ",
        "consolidated, seed 3: round 1 of 1, accuracy 0.",
        "records and report: ",
    ]
    place = 0
    for text in order:
        place = told.find(text, place)
        assert place >= 0, (text, told)


# ----------------------------------------------------------------------------- what cannot work


class HttpGrid(InProcessGrid):
    """Called as Flower calls the grid of a SuperLink with real nodes; nothing may be asked of it."""

    def push_messages(self, messages: Any) -> Any:
        raise AssertionError("nothing may be sent")

    def get_node_ids(self) -> Any:
        raise AssertionError("nobody may be asked for")


def test_a_simulation_on_real_nodes_is_refused_before_anything_is_sent_or_written(
    tiny: Any, tmp_path: Any, lines: Any
) -> None:
    with pytest.raises(ConfigError, match=r"data\.source: expected 'devices', because this SuperLink has"):
        run(tiny, tmp_path, HttpGrid(app, 2))
    (line,) = lines()
    assert "got 'digits'" in line
    assert 'address = ":local:"' in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["quikstart.yaml", "quickstart", "study-digits", ""])
def test_a_wrong_name_lists_the_shipped_experiments(name: str, tmp_path: Any) -> None:
    config = {"experiment": name, "set": "", "seeds": "", "out": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"experiment: expected a path, or one of cifar10\.yaml, ") as error:
        server_app._from_run_config(config)
    assert "quickstart.yaml" in str(error.value)
    assert "study-digits.yaml" not in str(error.value)
    assert repr(name) in str(error.value)


def test_a_file_of_the_app_is_found_where_flower_unpacked_it(
    tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(tiny().to_yaml())
    monkeypatch.syspath_prepend(tmp_path)
    config = {"experiment": "mine.yaml", "set": "", "seeds": "", "out": str(tmp_path / "run")}
    assert server_app._from_run_config(config)[0].name == "tiny"
