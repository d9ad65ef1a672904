"""The protocol of participants: a device with data of its own needs nothing else to answer every message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from clients import client_app
from clients.participants import Participants
from clients.store import Store
from kdfed.arrays import Spec
from kdfed.data import Examples
from kdfed.errors import ParticipantError
from kdfed.local import PlainLocal
from kdfed.messages import (
    ARRAYS,
    COHORTS,
    LOGITS,
    METRICS,
    Asked,
    Cohorts,
    Evaluate,
    Evaluation,
    Hello,
    HelloReply,
    QueryLogits,
    ReplyKind,
    Train,
    TrainTeacher,
    Update,
    versions,
)
from kdfed.models import State, build_model, state_of
from kdfed.private.flwr import identify, name_message
from kdfed.settings import ModelSettings, OptimiserSettings, TeacherSettings
from kdfed.setup import Setup
from tests.setups import CPU

MODEL = ModelSettings(name="mlp", options={"hidden": [4]})
LOCAL = PlainLocal(epochs=1, batch_size=4, lr=0.1)
NUMBER = 7
"""What the server calls this device."""

PUBLIC = torch.arange(24, dtype=torch.uint8).reshape(6, 4)


@dataclass(frozen=True)
class Device:
    """One participant, and data that no message decides about."""

    folder: Path
    setup: Setup = CPU
    input_shape: tuple[int, ...] = (4,)
    classes: int = 3

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def gather(self, members: Sequence[int], model: ModelSettings) -> tuple[Examples, list[int]]:
        if list(members) != [NUMBER]:
            raise ParticipantError(f"expected {NUMBER}, got {list(members)}")
        inputs = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
        return Examples(inputs, torch.arange(10) % 3), [10]

    def inputs(self, stored: np.ndarray, model: ModelSettings) -> torch.Tensor:
        return torch.from_numpy(stored).float() / 24

    def noise(self, seed: int, member: int) -> np.random.Generator:
        return np.random.default_rng()

    def teacher(self, model: ModelSettings, template: torch.nn.Module) -> State | None:
        return None

    def check(self, asked: Asked, template: torch.nn.Module) -> None:
        pass

    def check_statistics(self, spec: Spec) -> None:
        pass

    def hello(self) -> HelloReply:
        return HelloReply(versions(), np.array([10]), "mine")


def of_type(device: Device) -> Participants:
    """For mypy: a device is what the ClientApp asks for."""
    return device


@pytest.fixture(autouse=True)
def _device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identify(1, 1)
    device = of_type(Device(tmp_path / "store"))
    monkeypatch.setattr(client_app, "participants_of", lambda content, context: device)


def told(asked: Any, reply: ReplyKind | None = "each", members: Sequence[int] = (NUMBER,)) -> Message:
    content = asked.to_record()
    if reply is not None:
        cohorts = Cohorts(tuple((member,) for member in members), (0,) * len(members), reply)
        content[COHORTS] = cohorts.to_record()
    message = Message(content, 1, asked.type)
    name_message(message, "m")
    answer = client_app.app(message, Context(1, 1, {}, RecordDict(), {}))
    assert not answer.has_error(), answer.error.reason
    return answer


def update(reply: Message) -> Update:
    assert list(reply.content[COHORTS]["reasons"]) == [""]
    assert list(reply.content[COHORTS]["participants"]) == [NUMBER]
    return Update.from_record(reply.content)


def initial() -> State:
    return state_of(build_model(MODEL, (4,), 3, 1))


def differs(one: State, other: State) -> bool:
    assert set(one) == set(other)
    return any(not torch.equal(one[key], other[key]) for key in one)


def test_hello_tells_what_the_device_knows_of_itself():
    reply = HelloReply.from_record(told(Hello(versions()), None).content)
    assert (reply.examples.tolist(), reply.partition_sha256, reply.versions) == ([10], "mine", versions())


@pytest.mark.parametrize("reply", ["each", "mean"])
def test_a_device_trains_a_round_on_its_own_examples(reply):
    asked = Train(seed=3, server_round=1, model=MODEL, local=LOCAL, arrays=initial())
    found = update(told(asked, reply))
    assert (found.num_examples, found.local_steps) == (10, 3)
    assert found.train_loss is not None
    assert differs(found.arrays, initial())


def test_a_mean_of_one_is_what_it_trained():
    asked = Train(seed=3, server_round=1, model=MODEL, local=LOCAL, arrays=initial())
    each, mean = (update(told(asked, reply)).arrays for reply in ("each", "mean"))
    assert not differs(each, mean)


def test_who_is_not_here_is_named_and_costs_nobody_else():
    asked = Train(seed=3, server_round=1, model=MODEL, local=LOCAL, arrays=initial())
    reply = told(asked, members=(2, NUMBER))
    assert list(reply.content[COHORTS]["results"]) == [-1, 0]
    assert reply.content[COHORTS]["reasons"][0].startswith("ParticipantError: expected 7, got [2]")


@pytest.mark.parametrize("inputs", [None, PUBLIC])
@pytest.mark.parametrize("start", [{}, "common"])
def test_a_device_trains_a_teacher(inputs, start):
    asked = TrainTeacher(
        seed=3,
        model=MODEL,
        settings=TeacherSettings(epochs=2, batch_size=4, lr=0.1, label_counts={"send": True}),
        arrays=initial() if start else {},
        inputs=inputs,
    )
    found = update(told(asked))
    assert (found.num_examples, found.local_steps, found.label_counts) == (10, 6, [4.0, 3.0, 3.0])
    if inputs is None:
        assert differs(found.arrays, initial())
    else:
        assert {key: (tuple(v.shape), v.dtype) for key, v in found.arrays.items()} == {
            LOGITS: ((6, 3), torch.float16)
        }


def test_a_device_evaluates_on_its_own_examples():
    asked = Evaluate(seed=3, server_round=1, model=MODEL, arrays=initial())
    reply = told(asked)
    found = Evaluation.from_record(reply.content)
    assert ARRAYS not in reply.content
    assert found.num_examples == 10
    assert 0 <= found.accuracy <= 1
    assert found.loss > 0
    assert dict(reply.content[METRICS]) == found.metrics()


def test_a_device_answers_with_logits_and_keeps_its_model(tmp_path):
    def asked(server_round: int, **more: Any) -> QueryLogits:
        return QueryLogits(
            seed=3,
            server_round=server_round,
            model=MODEL,
            local=LOCAL,
            strategy="fedmd",
            digest=OptimiserSettings(epochs=1, batch_size=4, lr=0.1),
            images=5,
            count=5,
            public_sha256="ab" * 32,
            **more,
        )

    first = update(told(asked(1, inputs=PUBLIC)))
    assert first.arrays[LOGITS].shape == (5, 3)
    assert first.local_steps == 3
    store = Store(tmp_path / "store")
    kept = store.load(NUMBER, before=2)
    assert kept is not None
    consensus = torch.zeros(5, 3, dtype=torch.float16)
    second = update(told(asked(2, consensus=(1, consensus))))
    assert second.local_steps == 3 + 2, "two of distilling five examples"
    again = store.load(NUMBER, before=3)
    assert again is not None
    assert differs(again, kept)
