"""What the ClientApp does with a message, and what a real device does not let a message do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

import clients.participants
from clients.actors import IN_PROCESS, is_simulated
from clients.client_app import app
from clients.participants import participants_of
from kdfed.backbones import BackboneSettings, compute, split
from kdfed.errors import ParticipantError
from kdfed.messages import CONFIG, METRICS, SIMULATION, Hello, Simulation, versions
from kdfed.metrics import NUM_EXAMPLES
from kdfed.private.flwr import identify, name_message
from tests.small_backbones import TINY


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


def _context(**node_config: Any) -> Context:
    return Context(1, 1001, {"partition-id": 0, "num-partitions": 2, **node_config}, RecordDict(), {})


def _simulation(experiment: Any, **changes: Any) -> RecordDict:
    simulation = replace(Simulation.of(experiment.arm("cold"), 3), **changes)
    return RecordDict({SIMULATION: simulation.to_record()})


def _hello(experiment: Any, **changes: Any) -> Message:
    content = RecordDict(
        {
            CONFIG: ConfigRecord({"versions": ""}),
            **_simulation(experiment, **changes),
        }
    )
    message = Message(content, 1001, Hello.type)
    name_message(message, "m")
    return message


def test_hello_tells_how_many_hold_how_much_and_the_versions(tiny):
    content = app(_hello(tiny()), _context(**{IN_PROCESS: True})).content
    told = dict(content[METRICS])
    held = told.pop("held")
    assert told == {"participants": 5, NUM_EXAMPLES: 220}, "55% of 400 examples"
    assert (len(held), sum(held), min(held) >= 4) == (5, 220, True)
    assert json.loads(content[CONFIG]["versions"]) == versions()
    assert set(versions()) == {"kdfed", "torch", "numpy"}


@pytest.mark.parametrize("changes", [{"seed": 4}, {"partition.alpha": 0.4}, {"data.limit": 390}])
def test_the_hash_of_hello_tells_who_holds_what(tiny, changes):
    def sha256(experiment: Any, **simulation: Any) -> str:
        reply = app(_hello(experiment, **simulation), _context(**{IN_PROCESS: True}))
        return str(reply.content[CONFIG]["partition-sha256"])

    seed = {key: value for key, value in changes.items() if key == "seed"}
    settings = {key: value for key, value in changes.items() if key != "seed"}
    assert sha256(tiny(), device="cpu") == sha256(tiny(), threads=1)
    assert sha256(tiny(**settings), **seed) != sha256(tiny())


def test_a_device_is_not_told_by_a_message_what_its_data_is(tiny):
    assert not is_simulated(_context())
    with pytest.raises(ParticipantError, match="node-config 'participant': expected a value, got none"):
        participants_of(_simulation(tiny()), _context())
    mine = Context(1, 1, {"participant": "mine", "data": "npz:/mine.npz"}, RecordDict(), {})
    with pytest.raises(ParticipantError, match="participant 'mine': expected a message to a device, which"):
        participants_of(_simulation(tiny()), mine)


def test_a_message_changes_nothing_in_a_device_that_refuses_it(tiny):
    reply = app(_hello(tiny(), threads=2), _context())
    assert reply.error.reason.startswith(
        "ParticipantError: node-config 'participant': expected a value, got none"
    )
    assert torch.get_num_threads() == 1


def test_an_unknown_participant_is_refused(tiny):
    participants = participants_of(_simulation(tiny()), _context(**{IN_PROCESS: True}))
    with pytest.raises(ParticipantError, match="from 0 to 4, got 5"):
        participants.gather([0, 5], tiny().model)


def test_participants_hold_nothing_that_the_server_holds(tiny):
    participants = participants_of(_simulation(tiny()), _context(**{IN_PROCESS: True}))
    splits = participants.data.splits
    held_out = {int(i) for split in (splits.test, splits.validation, splits.transfer) for i in split}
    held = [int(i) for indices in participants.partition.indices for i in indices]
    assert len(held) == len(set(held))
    assert not held_out & set(held)


def test_a_store_is_only_where_a_simulation_says_and_never_relative(tiny):
    inside = _context(**{IN_PROCESS: True})
    there = _simulation(tiny(), store=Path("/somewhere"))
    assert str(participants_of(there, inside).store.root) == "/somewhere"
    with pytest.raises(ParticipantError, match="node-config 'participant': expected a value, got none"):
        participants_of(there, _context(**{IN_PROCESS: True, "data": "/mine"}))
    with pytest.raises(ParticipantError, match="expected a message of a simulation, handled inside one"):
        participants_of(RecordDict(), inside)
    with pytest.raises(ParticipantError, match="expected a place where participants can keep a model"):
        _ = participants_of(_simulation(tiny()), inside).store
    with pytest.raises(ParticipantError, match=r"expected an absolute path as the simulation's store"):
        _ = participants_of(_simulation(tiny(), store=Path("../elsewhere")), inside).store


def test_a_participants_activations_are_those_of_its_own_images(tiny, fresh_features, monkeypatch):
    """Runs of neighbours are computed at once, however few images each of them has."""
    monkeypatch.setattr(clients.participants, "_RUN", 100)
    experiment = tiny(model={"backbone": TINY}, **{"partition.participants": 40, "partition.min-examples": 1})
    people = participants_of(_simulation(experiment), _context(**{IN_PROCESS: True}))
    cut = split(BackboneSettings.of(experiment.model))
    for members in ([0], [39], [7, 3, 21], range(40)):
        examples, sizes = people.gather(members, experiment.model)
        indices = np.concatenate([people.partition.indices[member] for member in members])
        assert sizes == [len(people.partition.indices[member]) for member in members]
        assert torch.equal(examples.inputs, compute(cut, people.data.dataset.inputs[indices]))
        assert torch.equal(examples.labels, people.data.labels(indices))
    held = sum(people.sizes)
    assert fresh_features.runs == math.ceil(held / 100), "not one a participant"
