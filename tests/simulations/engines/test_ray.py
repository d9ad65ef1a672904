"""The ray engine: the bits of the in-process engine, whoever trains what and whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.client_app import app as client_app
from kdfed.errors import ConfigError, RunError
from kdfed.events import ignore
from kdfed.records import RunFolder
from simulations.cli import main
from simulations.engines import inprocess
from simulations.engines import ray as engine
from simulations.engines.ray import IN_FLIGHT, RayGrid

ray = pytest.importorskip("ray")
# Ray leaves files and sockets to the garbage collector, and announces its next defaults.
pytestmark = [
    pytest.mark.sim,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two Ray nodes on this machine, with two CPUs each; their address."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=2)
    yield made.address
    made.shutdown()


@pytest.fixture(scope="module")
def joined(cluster: str) -> Iterator[str]:
    with engine.started(2, cluster):
        yield cluster


@pytest.fixture
def grid(joined: str) -> Iterator[RayGrid]:
    made = RayGrid(client_app, 2)
    yield made
    made.close()


def _weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def _message(node: int, kind: str = "query.work", **config: Any) -> Message:
    return Message(RecordDict({"config": ConfigRecord(config)}), node, kind)


def _reply(message: Message, **config: Any) -> Message:
    content = RecordDict({"config": ConfigRecord(config), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


# ----------------------------------------------------------------------------- same bits


@pytest.mark.parametrize("arm", ["cold", "consolidated"])
def test_two_actors_of_a_cluster_give_the_bits_of_the_in_process_engine(grid, tiny, run_arm, arm):
    experiment = tiny(model={"name": "cnn", "options": {"width": 4, "norm": "batch"}})
    assert _same(_weights(run_arm(experiment, arm, grid=grid)), _weights(run_arm(experiment, arm)))


_DISTILLATION = {"epochs": 1, "lr": 0.1}
_OTHERS = {
    "mutual": {"local": {"mode": "mutual", "epochs": 1, "batch-size": 8, "lr": 0.1}},
    "feddf": {"server": {"strategy": "feddf", "cohort-size": 2}},
    "fedmd": {"server": {"strategy": "fedmd", "digest": _DISTILLATION, "distillation": _DISTILLATION}},
    "ds_fl": {"server": {"strategy": "ds_fl", "digest": _DISTILLATION, "distillation": _DISTILLATION}},
}


@pytest.mark.parametrize("name", _OTHERS)
def test_personal_models_and_logits_give_the_same_bits_too(grid, tiny, run_arm, name):
    """Two rounds at least: a personal model is used by whichever actor has its participant next."""
    experiment = tiny(**_OTHERS[name])
    assert _same(_weights(run_arm(experiment, grid=grid)), _weights(run_arm(experiment)))


def test_an_actor_that_is_killed_in_mid_round_changes_nothing(grid, tiny, run_arm):
    experiment = tiny(**{"rounds.horizon": 6, "local.epochs": 40})
    pids = ray.get([actor.handle.ready.remote() for actor in grid._actors])
    first = grid._actors[0]

    def kill() -> None:
        while not grid._open or not first.jobs:
            time.sleep(0.001)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run_arm(experiment, grid=grid)
    killer.join()
    assert first not in grid._actors, "it was replaced"
    assert all(record.absent == () for record in result.records)
    assert _same(_weights(result), _weights(run_arm(experiment)))


def test_the_whole_engine_leaves_the_same_records_on_a_ray_of_its_own(tiny, tmp_path):
    """In a process of its own, because this one has joined a cluster."""
    import json
    import subprocess
    import sys

    experiment = tiny(**{"rounds.horizon": 2})
    inprocess.run(experiment, RunFolder.open_for(tmp_path / "a", experiment), nodes=1, on_event=ignore)
    RunFolder.open_for(tmp_path / "b", experiment).begin().close()
    code = (
        "import sys; from pathlib import Path\n"
        "from simulations.experiments import load_experiment\n"
        "from kdfed.records import RunFolder\n"
        "from simulations.engines import ray\n"
        "path = Path(sys.argv[1])\n"
        "experiment = load_experiment(path / 'experiment.yaml')\n"
        "folder = RunFolder.open_for(path, experiment, overwrite=True)\n"
        "ray.run(experiment, folder, nodes=1, on_event=lambda event: None)\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    mark = {"KDFED_TEST_MARK": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")], env=env | mark, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shas = [
        [run["weights_sha256"] for run in json.loads((tmp_path / n / "summary.json").read_text())["runs"]]
        for n in ("a", "b")
    ]
    assert shas[0] == shas[1]
    time.sleep(1)
    assert _processes_with(str(tmp_path)) == []


def _processes_with(mark: str) -> list[str]:
    import psutil

    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.environ().get("KDFED_TEST_MARK") == mark and process.status() != "zombie":
                found.append(" ".join(process.cmdline())[:100])
        except psutil.Error:
            continue
    return found


# ----------------------------------------------------------------------------- stragglers, errors, state


def test_a_straggler_is_run_again_on_an_idle_actor(joined, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "STRAGGLES_AFTER", 0.5)
    guard, app = str(tmp_path / "guard"), ClientApp()

    @app.query("work")
    def work(message: Message, context: Context) -> Message:
        if message.content["config"].get("slow") and not Path(guard).exists():
            Path(guard).touch()
            time.sleep(60)
        return _reply(message, pid=os.getpid())

    grid = RayGrid(app, 2)
    nodes = list(grid.get_node_ids())
    started = time.monotonic()
    replies = list(grid.send_and_receive([_message(n, slow=(n == nodes[0])) for n in nodes], timeout=30))
    assert time.monotonic() - started < 20
    assert sorted(reply.metadata.src_node_id for reply in replies) == nodes
    assert Path(guard).exists()
    again = list(grid.send_and_receive([_message(n) for n in nodes], timeout=30))
    assert len(again) == len(nodes), "the other actor serves everybody"
    grid.close()


def test_an_exception_is_an_error_reply_and_is_not_tried_again(joined, tmp_path):
    calls, app = str(tmp_path / "calls"), ClientApp()

    @app.query("work")
    def work(message: Message, context: Context) -> Message:
        with open(calls, "a") as file:
            file.write("x")
        raise ValueError("no such thing")

    grid = RayGrid(app, 1)
    (reply,) = grid.send_and_receive([_message(1001)], timeout=30)
    assert reply.error.reason.startswith("ValueError: no such thing (test_ray.py, line ")
    assert Path(calls).read_text() == "x"
    grid.close()


def test_a_message_that_kills_every_actor_is_answered_with_an_error(joined):
    app = ClientApp()

    @app.query("work")
    def work(message: Message, context: Context) -> Message:
        if message.content["config"].get("deadly"):
            os._exit(1)
        return _reply(message)

    grid = RayGrid(app, 2)
    replies = list(grid.send_and_receive([_message(1001, deadly=True), _message(1002)], timeout=120))
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    assert "3 workers died at this message" in by_node[1001].error.reason
    assert not by_node[1002].has_error()
    grid.close()


def test_a_nodes_state_follows_it_to_whichever_actor_serves_it(joined):
    app = ClientApp()

    @app.query("work")
    def work(message: Message, context: Context) -> Message:
        before = context.state.config_records.get("count", ConfigRecord({"n": 0}))["n"]
        context.state["count"] = ConfigRecord({"n": int(before) + 1})  # type: ignore[arg-type]
        return _reply(message, n=int(before) + 1)  # type: ignore[arg-type]

    grid = RayGrid(app, 2)
    nodes = list(grid.get_node_ids())
    for turn in (1, 2, 3):
        replies = grid.send_and_receive([_message(node) for node in nodes], timeout=30)
        assert {reply.content["config"]["n"] for reply in replies} == {turn}
    grid.close()


# ----------------------------------------------------------------------------- counts


@pytest.mark.parametrize(("inline", "stored"), [(0, 3), (2**20, 0)])
def test_global_arrays_are_stored_once_a_round_and_queues_are_bounded(
    grid, tiny, run_arm, monkeypatch, inline, stored
):
    """Unless they are so small that they travel in the messages."""
    monkeypatch.setattr("simulations.engines.ray.INLINE_BYTES", inline)
    puts, most = [], 0
    put, hand = ray.put, RayGrid._hand

    def counted(value: Any) -> Any:
        puts.append(type(value))
        return put(value)

    def watched(self: RayGrid, job: Any, actor: Any) -> None:
        nonlocal most
        hand(self, job, actor)
        most = max(most, *(len(one.jobs) for one in self._actors))

    monkeypatch.setattr(ray, "put", counted)
    monkeypatch.setattr(RayGrid, "_hand", watched)
    run_arm(tiny(**{"server.cohort-size": 1, "rounds.horizon": 3}), grid=grid, never_stop=True)
    assert puts == [ArrayRecord] * stored
    assert most == IN_FLIGHT
    assert grid._stored == {}
    assert not grid._open
    assert not grid._replies


# ----------------------------------------------------------------------------- refusals


def test_ray_that_runs_already_is_not_taken_over(grid, tiny, tmp_path):
    experiment = tiny()
    with pytest.raises(RunError, match="already running in this process"):
        engine.run(experiment, RunFolder.open_for(tmp_path, experiment), nodes=1, on_event=ignore)


_SIGNALLED = """
import os, signal
from kdfed.private.ray import around_last_stop
from simulations.engines.ray import started

def signalled(kill):
    def signalled_kill(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        kill(*arguments, **options)
    return signalled_kill

with started(1):
    around_last_stop(signalled)
print("whole")
"""


def test_a_signal_that_comes_while_ray_stops_its_processes_does_not_leave_them():
    """Ray's driver, when it ends, takes SIGTERM's handler away behind Python."""
    done = subprocess.run([sys.executable, "-c", _SIGNALLED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", "no Ray cluster answers"), ("nowhere", "host:port"), ("ray://x:1", "host:port")],
)
def test_a_cluster_that_is_not_there_is_named_at_once(tiny, address, reason):
    started = time.monotonic()
    with pytest.raises(ConfigError, match=reason):
        engine.check(tiny(), nodes=1, address=address)
    assert time.monotonic() - started < 15


def test_more_workers_than_the_cluster_has_room_for_are_refused(joined, monkeypatch):
    monkeypatch.setattr(engine, "START_SECONDS", 3)
    with pytest.raises(RunError, match=r"expected room for 9 workers .*use fewer --nodes"):
        RayGrid(client_app, 9)


def test_an_address_needs_the_ray_engine(capsys):
    assert main(["run", "quickstart.yaml", "--engine", "inprocess", "--address", "x:1"]) == 2
    assert "--address" in capsys.readouterr().err


def test_cores_are_disjoint_and_left_alone_where_there_are_too_few(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 0, 1, 2}, raising=False)
    assert engine._cores(2, 2) == [[0, 1], [2, 3]]
    assert engine._cores(3, 2) == [[], [], []]
