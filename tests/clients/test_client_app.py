"""What the ClientApp does with a message, and what a real device does not let a message do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.client_app import app
from clients.participant import IN_PROCESS, is_simulated, participants_of
from kdfed import wire
from kdfed.errors import ParticipantError


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _context(**node_config: Any) -> Context:
    return Context(1, 1001, {"partition-id": 0, "num-partitions": 2, **node_config}, RecordDict(), {})


def _simulation(experiment: Any, **changes: Any) -> dict[str, Any]:
    return {
        "data": experiment.data.model_dump_json(),
        "partition": experiment.partition.model_dump_json(),
        "seed": 3,
        "threads": 1,
        "device": "cpu",
        **changes,
    }


def _hello(experiment: Any, **changes: Any) -> Message:
    content = RecordDict(
        {
            wire.CONFIG: ConfigRecord({"versions": ""}),
            wire.SIMULATION: ConfigRecord(_simulation(experiment, **changes)),
        }
    )
    message = Message(content, 1001, wire.HELLO)
    message.metadata.__dict__["_message_id"] = "m"
    return message


def test_hello_tells_examples_and_versions(tiny):
    reply = app(_hello(tiny()), _context(**{IN_PROCESS: True}))
    counts = reply.content[wire.METRICS][wire.NUM_EXAMPLES]
    assert len(counts) == 5
    assert sum(counts) == 240, "60% of 400 examples: the rest is held out"
    assert set(wire.versions()) == {"kdfed", "torch", "numpy"}


def test_a_device_is_not_told_by_a_message_what_its_data_is(tiny):
    assert not is_simulated(_context())
    with pytest.raises(ParticipantError, match="expected a message of a simulation, handled inside one"):
        participants_of(_simulation(tiny()), _context())


def test_a_message_changes_nothing_in_a_device_that_refuses_it(tiny):
    with pytest.raises(ParticipantError):
        app(_hello(tiny(), threads=2), _context())
    assert torch.get_num_threads() == 1


def test_an_unknown_participant_is_refused(tiny):
    participants = participants_of(_simulation(tiny()), _context(**{IN_PROCESS: True}))
    with pytest.raises(ParticipantError, match="from 0 to 4, got 5"):
        participants.examples(5)


def test_participants_hold_nothing_that_the_server_holds(tiny):
    participants = participants_of(_simulation(tiny()), _context(**{IN_PROCESS: True}))
    splits = participants.data.splits
    held_out = {int(i) for split in (splits.test, splits.validation, splits.transfer) for i in split}
    held = [int(i) for indices in participants.partition.indices for i in indices]
    assert len(held) == len(set(held))
    assert not held_out & set(held)
