"""One contract, over every grid that a strategy or the arm runner can meet."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from kdfed.ledger import Ledger
from kdfed.private.flwr import NodeInfo, Run
from simulations.engines.inprocess import InProcessGrid
from strategies.hello import Present
from strategies.parcels import Exchange
from strategies.participant_grid import ParticipantGrid

ABSTRACT = {
    "set_run",
    "run",
    "create_message",
    "get_node_ids",
    "push_messages",
    "pull_messages",
    "send_and_receive",
}


def _echo_app() -> ClientApp:
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: Any) -> Message:
        if message.content.config_records["config"].get("fail"):
            raise RuntimeError("asked to fail")
        content = RecordDict(
            {"config": message.content["config"], "metrics": MetricRecord({"num-examples": 1})}
        )
        message.content.clear()
        return Message(content, reply_to=message)

    return app


def _contract(grid: Grid, nodes: int) -> None:
    """Everything that Flower's Grid promises, and get_nodes."""
    end = time.monotonic() + 30
    while len(list(grid.get_node_ids())) < nodes and time.monotonic() < end:
        time.sleep(0.1)
    ids = list(grid.get_node_ids())
    assert len(set(ids)) == nodes
    assert {info.node_id for info in grid.get_nodes()} == set(ids)
    assert all(isinstance(info, NodeInfo) for info in grid.get_nodes())
    assert isinstance(grid.run, Run)
    grid.set_run(grid.run)

    def message(node: int, **config: Any) -> Message:
        content = RecordDict({"config": ConfigRecord({"node": str(node), **config})})
        return Message(content, node, "query.echo", group_id="g")

    created = grid.create_message(
        RecordDict({"config": ConfigRecord({"x": 1})}), "query.echo", ids[0], "g", 60.0
    )
    assert created.metadata.dst_node_id == ids[0]
    assert created.metadata.ttl == 60.0

    sent = [message(node) for node in ids]
    replies = list(grid.send_and_receive(sent, timeout=60))
    by_request = {m.metadata.message_id: m for m in sent}
    assert len(replies) == nodes
    for reply in replies:
        asked = by_request[reply.metadata.reply_to_message_id]
        assert reply.has_content()
        assert reply.content["config"]["node"] == str(asked.metadata.dst_node_id)
    assert all("config" in m.content for m in sent), "a client cannot change the server's message"

    pushed = list(grid.push_messages([message(node) for node in ids]))
    assert len(set(pushed)) == nodes
    arrived: list[Message] = []
    end = time.monotonic() + 30
    while len(arrived) < nodes and time.monotonic() < end:
        arrived += grid.pull_messages(pushed)
        time.sleep(0.05)
    assert {m.metadata.reply_to_message_id for m in arrived} == set(pushed)
    assert not any(m.has_content() for m in grid.pull_messages(pushed)), "a reply is delivered once"


def test_the_contract_covers_every_abstract_member():
    assert Grid.__abstractmethods__ == ABSTRACT


def test_the_in_process_grid_keeps_the_contract():
    grid = InProcessGrid(_echo_app(), 3)
    _contract(grid, 3)
    (reply,) = grid.send_and_receive(
        [Message(RecordDict({"config": ConfigRecord({"fail": True})}), 1001, "query.echo")]
    )
    assert re.match(r"RuntimeError: asked to fail \(test_grids\.py, line \d+\)\n", reply.error.reason)


def test_the_participant_grid_keeps_the_contract():
    network = InProcessGrid(_echo_app(), 4)
    roster = dict(enumerate(network.get_node_ids()))
    grid = ParticipantGrid(
        network, cohort_size=8, ledger=Ledger(), reply="each", present=Present(roster=roster)
    )
    grid.begin(Exchange(phase="rounds", round=1, spec_of=lambda participant: {}), range(4))
    _contract(_Forwarding(grid), 4)


class _Forwarding(ParticipantGrid):
    """The participant grid hands on arrays and metrics alone; give the echo back for the contract."""

    def __init__(self, grid: ParticipantGrid) -> None:
        self.__dict__ = grid.__dict__

    def _seen(self, replies: Any) -> list[Message]:
        found = []
        for reply in replies:
            assert set(reply.content) == {"metrics"}
            reply.content["config"] = ConfigRecord({"node": str(reply.metadata.src_node_id)})
            found.append(reply)
        return found

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        return self._seen(super().send_and_receive(messages, timeout=timeout))


@pytest.fixture
def _collected() -> Iterator[None]:
    """Find the files that Ray leaves open at once: a later test would be blamed for them."""
    yield
    gc.collect()


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_collected")
def test_the_ray_grid_keeps_the_contract():
    from simulations.engines import ray

    with ray.started(2):
        grid = ray.RayGrid(_echo_app(), 2)
        _contract(grid, 2 * ray.NODES_PER_WORKER)
        (reply,) = grid.send_and_receive(
            [Message(RecordDict({"config": ConfigRecord({"fail": True})}), 1001, "query.echo")]
        )
        assert re.match(r"RuntimeError: asked to fail \(test_grids\.py, line \d+\)\n", reply.error.reason)
        grid.close()


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_collected")
def test_flowers_simulation_grid_keeps_the_contract():
    from flwr.simulation import run_simulation

    finished: list[bool] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Any) -> None:
        _contract(grid, 2)
        finished.append(True)

    run_simulation(server, _echo_app(), 2, backend_config={"client_resources": {"num_cpus": 1}})
    assert finished == [True]
