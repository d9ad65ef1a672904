"""A device: its node-config, its own examples, its teacher, and where it keeps what lasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from clients.client_app import app
from clients.devices import DeviceParticipant, device_of
from clients.node_config import NodeConfig
from kdfed.data import Dataset
from kdfed.device_data import DeviceData
from kdfed.errors import ParticipantError
from kdfed.messages import (
    ARRAYS,
    DeviceHelloReply,
    Hello,
    TrainTeacher,
    Update,
    told_to_device,
    versions,
    versions_of_device,
)
from kdfed.models import State, build_model, state_of
from kdfed.private.flwr import identify, name_message
from kdfed.saved import Card, save
from kdfed.settings import ModelSettings, TeacherSettings

MODEL = ModelSettings(name="mlp", options={"hidden": [4]})
OF_THIS_MODULE = f"{__name__}:half_tested"


def wanted(**changes: Any) -> DeviceData:
    values: dict[str, Any] = {
        "classes": ("a", "b", "c"),
        "shape": (4,),
        "mean": (0.5,) * 4,
        "std": (2.0,) * 4,
        "run": "some/cold-3/0123456789abcdef",
    }
    return DeviceData(**{**values, **changes})


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


INPUTS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
LABELS = np.arange(12) % 2


@pytest.fixture
def mine(tmp_path: Path) -> dict[str, Any]:
    """Return the node-config of a device that has nothing of class c."""
    np.savez(tmp_path / "mine.npz", inputs=INPUTS, labels=LABELS)
    return {"participant": "mine", "data": f"npz:{tmp_path / 'mine.npz'}"}


def half_tested(settings: Any) -> Dataset:
    """Return examples of which the first half are a test part."""
    return Dataset(INPUTS, LABELS, ("a", "b", "c"), official_test=np.arange(6))


def participant(config: dict[str, Any], told: DeviceData | None = None) -> DeviceParticipant:
    return device_of(told_to_device(RecordDict(), told or wanted()), config)


def answer(asked: Any, config: dict[str, Any], told: DeviceData | None = None) -> Message:
    message = Message(told_to_device(asked.to_record(), told or wanted()), 1, asked.type)
    name_message(message, "m")
    return app(message, Context(1, 1, config, RecordDict(), {}))


# ----------------------------------------------------------------------------- node-config


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {},
            ["node-config 'participant': expected a value, got none", "node-config 'data': expected a value"],
        ),
        ({"participant": "a b", "data": "npz:x"}, ["node-config 'participant': expected letters, digits"]),
        ({"participant": "../x", "data": "npz:x"}, ["node-config 'participant': expected letters, digits"]),
        (
            {"participant": "a", "data": "npz:x", "thread": 2},
            ["node-config 'thread': unknown key; did you mean 'threads'?"],
        ),
        ({"participant": "a", "data": "npz:x", "threads": 0}, ["node-config 'threads'"]),
        ({"participant": "a", "data": "mnist5k"}, ["participant 'a': node-config 'data': expected folder:"]),
        ({"participant": "a", "data": "devices"}, ["node-config 'data': expected folder:"]),
        ({"participant": "a", "data": "folder:"}, ["node-config 'data': expected folder:"]),
        ({"participant": "a", "data": "/data"}, ["node-config 'data': expected folder:"]),
    ],
)
def test_whatever_is_wrong_with_a_node_config_is_told_at_once(config, told, caplog):
    reply = answer(Hello(versions()), config)
    for text in told:
        assert text in reply.error.reason
    assert reply.error.reason in caplog.messages, "the SuperNode's log says it too"


def test_hello_tells_who_it_is_and_what_runs_there(mine):
    told = DeviceHelloReply.from_record(answer(Hello(versions()), mine).content)
    assert (told.participant, told.examples, told.shape) == ("mine", 12, (4,))
    assert told.versions == versions_of_device()
    assert set(told.versions) == {"kdfed", "flwr", "torch", "numpy", "python"}
    assert told.device.startswith(("cpu, ", "cuda"))
    assert told.memory > 2**20


# ----------------------------------------------------------------------------- its examples


def test_its_examples_are_normalised_by_what_it_is_told(mine):
    """And of a class that it does not hold, nobody says anything."""
    examples, sizes = participant(mine).gather([5], MODEL)
    assert sizes == [12]
    assert torch.equal(examples.inputs, (torch.from_numpy(INPUTS) - 0.5) / 2)
    assert examples.labels.tolist() == LABELS.tolist()
    assert participant(mine).classes == 3


def test_labels_of_a_regression_are_standardised_by_what_it_is_told(tmp_path):
    np.savez(tmp_path / "numbers.npz", inputs=INPUTS, labels=np.arange(12.0))
    config = {"participant": "mine", "data": f"npz:{tmp_path / 'numbers.npz'}"}
    told = wanted(task="regression", classes=(), label_mean=5.0, label_std=2.0)
    examples, _ = participant(config, told).gather([0], MODEL)
    assert examples.labels.tolist() == [(number - 5.0) / 2.0 for number in range(12)]
    assert participant(config, told).classes == 1


def test_a_test_part_of_its_own_is_not_trained_on():
    config = {"participant": "mine", "data": OF_THIS_MODULE}
    examples, sizes = participant(config).gather([0], MODEL)
    assert sizes == [6]
    assert torch.equal(examples.inputs, (torch.from_numpy(INPUTS[6:]) - 0.5) / 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"shape": (5,), "mean": (0.0,) * 5, "std": (1.0,) * 5},
            r"expected inputs of the shape \[5\], which",
        ),
        ({"classes": ("a",)}, "expected labels from 0 to 0"),
        ({"mean": (-1e30,) * 4, "std": (1e-30,) * 4}, "finite in float32 after normalisation"),
    ],
)
def test_data_that_are_not_what_the_experiment_asks_for_are_refused_by_name(changes, why, mine):
    with pytest.raises(ParticipantError, match=f"participant 'mine': its data: .*{why}"):
        participant(mine, wanted(**changes)).gather([0], MODEL)


def test_a_message_for_two_participants_is_refused(mine):
    with pytest.raises(ParticipantError, match="expected a message to one participant"):
        participant(mine).gather([0, 1], MODEL)


# ----------------------------------------------------------------------------- a teacher of its own


def trained(hidden: int = 4, seed: int = 9) -> tuple[State, ModelSettings]:
    model = ModelSettings(name="mlp", options={"hidden": [hidden]})
    return state_of(build_model(model, (4,), 3, seed)), model


def write_teacher(path: Path, hidden: int = 4, classes: tuple[str, ...] = ("a", "b", "c")) -> State:
    state, model = trained(hidden)
    card = Card(
        kdfed="0.1",
        task="classification",
        model=model,
        input_shape=(4,),
        classes=classes,
        mean=(0.5,) * 4,
        std=(2.0,) * 4,
    )
    save(path, state, card)
    return state


def ask_for_teacher(config: dict[str, Any], **settings: Any) -> Message:
    initial, _ = trained(seed=1)
    teachers = TeacherSettings(**{"epochs": 2, "batch_size": 4, "lr": 0.1, **settings})
    return answer(TrainTeacher(seed=3, model=MODEL, settings=teachers, arrays=initial), config)


def test_a_teacher_that_it_has_is_sent_in_place_of_a_training(mine, tmp_path):
    """In no step, with its loss on the device's own examples."""
    state = write_teacher(tmp_path / "teacher.safetensors")
    reply = ask_for_teacher({**mine, "teacher": str(tmp_path / "teacher.safetensors")})
    found = Update.from_record(reply.content)
    assert (found.num_examples, found.local_steps) == (12, 0)
    assert all(torch.equal(found.arrays[key], value) for key, value in state.items())
    model = build_model(MODEL, (4,), 3, 1)
    model.load_state_dict(state)
    loss = torch.nn.functional.cross_entropy(
        model((torch.from_numpy(INPUTS) - 0.5) / 2), torch.from_numpy(LABELS)
    )
    assert found.train_loss == pytest.approx(loss.item())
    assert ask_for_teacher(mine).content[ARRAYS].keys() == reply.content[ARRAYS].keys()


def test_a_state_dict_that_says_nothing_is_taken_for_the_model_that_is_asked_for(mine, tmp_path):
    state, _ = trained()
    torch.save(state, tmp_path / "teacher.pt")
    found = Update.from_record(ask_for_teacher({**mine, "teacher": str(tmp_path / "teacher.pt")}).content)
    assert all(torch.equal(found.arrays[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"hidden": 5}, "does not fit the model that is asked for: wrong shape of 1.weight"),
        ({"classes": ("b", "a", "c")}, "expected one that reads the experiment's inputs and has its classes"),
        (None, "expected a"),
    ],
)
def test_a_teacher_that_does_not_fit_is_an_error_and_nothing_is_trained(made, why, mine, tmp_path):
    if made is not None:
        write_teacher(tmp_path / "teacher.safetensors", **made)
    reply = ask_for_teacher({**mine, "teacher": str(tmp_path / "teacher.safetensors")})
    assert "participant 'mine': teacher " in reply.error.reason
    assert why in reply.error.reason


# ----------------------------------------------------------------------------- its store


def test_what_it_keeps_is_its_own_and_one_runs(tmp_path):
    """Of the same arm and seed another run's files are removed: it would go on from them."""
    config = NodeConfig(participant="mine", data="npz:x", store=str(tmp_path / "store"))
    state = {"weight": torch.ones(2)}
    first = DeviceParticipant(config, wanted())
    first.store.save(0, 1, state)
    other = DeviceParticipant(config, wanted(run="some/other-3/0123456789abcdef"))
    other.store.save(0, 1, state)
    assert first.store.load(0, 2) is not None
    again = DeviceParticipant(config, wanted(run="some/cold-3/fedcba9876543210"))
    assert again.store.load(0, 2) is None
    assert not (tmp_path / "store/mine/some/cold-3/0123456789abcdef").exists()
    assert other.store.load(0, 2) is not None
    neighbour = NodeConfig(participant="theirs", data="npz:x", store=str(tmp_path / "store"))
    assert DeviceParticipant(neighbour, wanted(run="some/other-3/0123456789abcdef")).store.load(0, 2) is None


def test_without_a_store_whoever_needs_one_is_told(mine):
    with pytest.raises(ParticipantError, match="participant 'mine': expected 'store', a folder"):
        _ = participant(mine).store


def test_noise_is_another_each_time(mine):
    one, other = (participant(mine).noise(3, 0).random() for _ in range(2))
    assert one != other


def test_what_a_device_is_told_travels_as_one_text():
    told = wanted(resized=True, precision="bfloat16")
    assert DeviceData.model_validate_json(told.model_dump_json()) == told
    assert set(json.loads(told.model_dump_json())) >= {"classes", "shape", "mean", "std", "run"}
