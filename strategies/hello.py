"""Who is there, before anything else: nodes of a simulation say what they hold.

Devices of kdfed's own ClientApp are greeted by :mod:`strategies.roster`; those of somebody else's app are
only numbered.

In a simulation nobody's hello is sent alone: a node tells how many participants there are, the examples of
each, and a hash of who holds what. Their bytes are counted as if each had been asked for itself.
"""

from __future__ import annotations

import json
import time

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from kdfed.errors import MessageError, RunError
from kdfed.ledger import Ledger
from kdfed.messages import SIMULATION, Hello, HelloReply, Simulation, count_bytes, versions
from kdfed.metrics import NUM_EXAMPLES
from kdfed.reasons import Once
from strategies.inbox import bytes_of, pass_warnings_on
from strategies.present import Present

_FIRST_NODE_SECONDS = 60.0


def nodes_of(network: Grid) -> list[int]:
    """Return the network's nodes, waiting up to a minute for the first.

    Raises
    ------
    RunError
        If no node connects.
    """
    end = time.monotonic() + _FIRST_NODE_SECONDS
    while not (nodes := sorted(network.get_node_ids())):
        if time.monotonic() > end:
            raise RunError(
                f"expected at least one node within {_FIRST_NODE_SECONDS:g} seconds, got none; "
                "start nodes, or set num-supernodes above 0"
            )
        time.sleep(0.05)
    return nodes


def number_devices(network: Grid, participants: int, timeout: float) -> Present:
    """Wait until every participant's node is connected, then number nodes by their ids.

    Who goes offline is not asked until the same node is back.

    Raises
    ------
    RunError
        If there are fewer nodes than participants after ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while len(nodes := sorted(network.get_node_ids())) < participants:
        if time.monotonic() > end:
            raise RunError(
                f"expected {participants} nodes (partition.participants), got {len(nodes)} in time"
            )
        time.sleep(0.2)
    numbered = dict(enumerate(nodes[:participants]))
    there = dict(numbered)

    def update() -> None:
        online = set(network.get_node_ids())
        there.clear()
        there.update({number: node for number, node in numbered.items() if node in online})

    return Present(
        roster=there, update=update, why_absent=lambda number: f"its node {numbered[number]} is offline"
    )


def ask_nodes(
    network: Grid,
    simulation: Simulation,
    participants: int,
    most: int,
    timeout: float,
    ledger: Ledger,
    log: Once,
) -> Present:
    """Ask every node of a simulation what it knows, and make sure that all know the same.

    Parameters
    ----------
    participants
        How many there are.
    most
        The most examples that one of them may have.
    timeout
        Seconds to wait.
    ledger
        Counts a hello of each participant.
    log
        Gets what nodes complain of, each distinct text once.

    Raises
    ------
    RunError
        If no node answers, one runs other versions than the server, tells what cannot be, or nodes hold
        different data.
    """
    content = Hello(versions()).to_record()
    down = bytes_of(content)
    content[SIMULATION] = simulation.to_record()
    messages = [Message(content, node, Hello.type, ttl=timeout) for node in nodes_of(network)]
    replies = list(network.send_and_receive(messages, timeout=timeout))
    good = [reply for reply in replies if not reply.has_error()]
    reasons = {log.warn("hello", str(reply.error.reason)) for reply in replies if reply.has_error()}
    if not good:
        reasons = reasons or {f"no reply within {timeout:g} seconds"}
        raise RunError(f"expected an answer to hello from a node, got none: {'; '.join(sorted(reasons))}")
    for reply in good:
        pass_warnings_on(reply.content, log)
    known = [_known(reply, participants, most) for reply in good]
    first = known[0].examples
    known_to_all = {(len(one.examples), int(one.examples.sum()), one.partition_sha256) for one in known}
    if len(known_to_all) > 1 or not all(np.array_equal(one.examples, first) for one in known):
        raise RunError(
            f"expected every node to hold the same partition, got {sorted(known_to_all)}; give all nodes the "
            "same data"
        )
    up = count_bytes(MetricRecord({NUM_EXAMPLES: 1}))
    up += count_bytes(ConfigRecord({"versions": json.dumps(versions())}))
    ledger.down("hello", down, messages=len(first))
    ledger.up("hello", up, 0, replies=len(first))
    return Present(held=first)


def _known(reply: Message, participants: int, most: int) -> HelloReply:
    """Return what a node tells, once it can be."""
    node = f"node {reply.metadata.src_node_id}"
    try:
        known = HelloReply.from_record(reply.content)
    except MessageError as error:
        raise RunError(f"{error} from {node}") from error
    if known.versions != versions():
        raise RunError(
            f"expected the server's versions {json.dumps(versions())} on every node, got "
            f"{json.dumps(known.versions)[:500]} from {node}"
        )
    if len(known.examples) != participants:
        raise RunError(
            f"expected {participants} participants, got {len(known.examples)} from {node}; give all nodes "
            "the same data"
        )
    if known.examples.max() > most:
        raise RunError(
            f"expected from 0 to {most} examples of each participant (server.max-examples), got "
            f"{known.examples.min()} to {known.examples.max()} from {node}"
        )
    return known
