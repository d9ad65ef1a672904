"""Crafted messages to a device: nothing is imported, executed, or allocated beyond what they carry.

Each goes through the whole ClientApp, as a SuperNode would give it. What a device allocates is watched: by
``resource.RLIMIT_AS`` a process that believed a header would die, here the peak of Python's allocations is
read instead, which NumPy's are part of.
"""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from clients.bounds import check_models
from clients.client_app import app
from kdfed.closed_form.ridge import Ridge
from kdfed.device_data import DeviceData
from kdfed.local import MutualLocal, PlainLocal
from kdfed.messages import (
    ARRAYS,
    CONFIG,
    DEVICE_DATA,
    INPUTS,
    TRANSFER,
    Evaluate,
    QueryStatistics,
    Train,
    TrainTeacher,
    told_to_device,
)
from kdfed.models import State, build_model, state_of
from kdfed.private.flwr import identify, name_message
from kdfed.settings import ModelSettings, TeacherSettings
from tests.npy_files import npy

MODEL = ModelSettings(name="mlp", options={"hidden": [4]})
WANTED = DeviceData(
    classes=("a", "b", "c"),
    shape=(4,),
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
    run="some-experiment/cold-3/0123456789abcdef",
)
MOST = 64 * 2**20
"""Bytes that answering one of these messages may take at most; each asks for many times as many."""


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Return the node-config of a device with 12 examples."""
    inputs = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", inputs=inputs, labels=np.arange(12) % 3)
    return {"participant": "mine", "data": f"npz:{tmp_path / 'mine.npz'}"}


def initial() -> State:
    return state_of(build_model(MODEL, (4,), 3, 1))


def train(**changes: Any) -> RecordDict:
    values: dict[str, Any] = {"seed": 3, "server_round": 1, "model": MODEL, "arrays": initial()}
    local = PlainLocal(epochs=1, batch_size=4, lr=0.1)
    return Train(**{**values, "local": local, **changes}).to_record()


def naming(model: ModelSettings) -> RecordDict:
    """Return a message whose model nobody here has to look up."""
    content = train()
    content[CONFIG] = ConfigRecord({**content[CONFIG], "model": model.model_dump_json()})
    return content


def told(kind: str, content: RecordDict, config: dict[str, Any], wanted: DeviceData = WANTED) -> Message:
    message = Message(told_to_device(content, wanted), 1, kind)
    name_message(message, "m")
    return app(message, Context(1, 1, config, RecordDict(), {}))


def refused(kind: str, content: RecordDict, config: dict[str, Any], **changes: Any) -> str:
    """Send it; return why it is refused, and see to it that nothing large was allocated for that."""
    tracemalloc.start()
    try:
        reply = told(kind, content, config, **changes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reply.has_error(), "it was answered"
    assert peak < MOST
    assert "ParticipantError: " in reply.error.reason or "MessageError: " in reply.error.reason
    return str(reply.error.reason)


def test_an_honest_message_is_answered(config):
    """Otherwise none of the refusals would say anything."""
    reply = told("train", train(), config)
    assert not reply.has_error(), reply.error.reason
    assert reply.content["metrics"]["num-examples"] == 12


# ----------------------------------------------------------------------------- arrays


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def with_array(data: bytes, stype: str = "numpy.ndarray") -> RecordDict:
    content = train()
    arrays = dict(content[ARRAYS].items())
    key = next(iter(arrays))
    arrays[key] = Array(dtype="float32", shape=(4, 4), stype=stype, data=data)
    content[ARRAYS] = ArrayRecord(arrays)
    return content


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (npy((10**12,), "<f4", b"\0" * 16), "expected 4000000000000 bytes of float32"),
        (npy((2**40, 2**40), "<f8", b""), "bytes of float64"),
        (npy((4, 4), "<f4", b"\0" * 63), "expected 64 bytes of float32"),
        (npy((4, 4), "<f4", b"\0" * 65), "expected 64 bytes of float32"),
        (npy((-4, 4), "<f4", b"\0" * 64), "expected sizes of at least 0"),
        (npy((1,), "|O", b""), "expected numbers, got object"),
        (npy((1,), "<U1000", b"\0" * 4000), "expected numbers, got <U1000"),
        (b"", "expected arrays that can be read"),
        (b"PK\x03\x04" + b"\0" * 100, "expected arrays that can be read"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "expected arrays that can be read"),
    ],
)
def test_a_header_that_asks_for_other_bytes_than_follow_is_refused(data, why, config):
    assert why in refused("train", with_array(data), config)


def test_nothing_is_unpickled(config, tmp_path):
    mark = tmp_path / "unpickled"
    for data in (pickle.dumps(Payload(mark)), npy((1,), "|O", pickle.dumps([Payload(mark)]))):
        refused("train", with_array(data), config)
        refused("train", with_array(data, stype="torch.Tensor"), config)
    buffer = BytesIO()
    torch.save({"weights": Payload(mark)}, buffer)
    refused("train", with_array(buffer.getvalue(), stype="torch.Tensor"), config)
    assert not mark.exists()


def test_weights_of_another_model_are_refused(config):
    larger = {key: torch.zeros(1000, *value.shape[1:]) for key, value in initial().items()}
    assert "wrong shape of" in refused("train", train(arrays=larger), config)
    assert "unexpected" in refused("train", train(arrays={**initial(), "more": torch.ones(3)}), config)
    content = Evaluate(seed=3, server_round=1, model=MODEL, arrays=larger).to_record()
    assert "wrong shape of" in refused("evaluate", content, config)
    broken = {key: value * float("nan") for key, value in initial().items()}
    assert "not finite" in refused("train", train(arrays=broken), config)


def test_public_inputs_of_another_shape_are_refused(config):
    """A column of numbers would be spread over the mean of as many features as a message likes."""
    content = TrainTeacher(
        seed=3,
        model=MODEL,
        settings=TeacherSettings(epochs=1, upload="logits"),
        arrays=initial(),
        inputs=torch.zeros(1000, 1),
    ).to_record()
    assert content[TRANSFER][INPUTS].shape
    assert "expected inputs [N, 4], got [1000, 1]" in refused("train.teacher", content, config)


# ----------------------------------------------------------------------------- settings


HUGE = ModelSettings(name="mlp", options={"hidden": [10**9]})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("train", train(model=HUGE)),
        ("train", train(model=HUGE, arrays={})),
        ("train", train(local=MutualLocal(model=HUGE))),
        ("train", train(model=ModelSettings(name="mlp", options={"hidden": [10**5] * 500}))),
        ("evaluate", Evaluate(seed=3, server_round=1, model=HUGE).to_record()),
        (
            "train.teacher",
            TrainTeacher(seed=3, model=HUGE, settings=TeacherSettings(init="own")).to_record(),
        ),
    ],
)
def test_a_model_that_is_larger_than_what_a_message_carries_is_refused(kind, content, config):
    assert "expected a model of at most" in refused(kind, content, config)


def test_a_model_that_is_huge_for_the_shape_that_a_message_gives_is_refused(config):
    wanted = WANTED.model_copy(update={"shape": (2**25,), "mean": (0.0,) * 4, "std": (1.0,) * 4})
    assert "expected a mean and a std" in refused("train", train(arrays={}), config, wanted=wanted)
    many = DeviceData(
        classes=("a", "b"),
        shape=(3, 4000, 5000),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        run=WANTED.run,
        resized=True,
    )
    assert "expected a model of at most" in refused("train", train(arrays={}), config, wanted=many)


@pytest.mark.parametrize("shape", [(3, 10**5, 10**5), (10**9, 1, 1), (1, 2)])
def test_a_huge_shape_is_refused(shape, config):
    text = json.loads(WANTED.model_dump_json()) | {
        "shape": shape,
        "mean": [0.0] * min(shape[0], 10),
        "std": [1.0] * min(shape[0], 10),
    }
    content = train()
    content[CONFIG] = ConfigRecord({**content[CONFIG], DEVICE_DATA: json.dumps(text)})
    message = Message(content, 1, "train")
    name_message(message, "m")
    reply = app(message, Context(1, 1, config, RecordDict(), {}))
    assert "expected what must be made of a device's examples" in reply.error.reason


def test_statistics_of_very_many_features_are_refused(config):
    """A Gram matrix of 20,000 features would be 3 GB; a model of so many fits in a message."""
    model = ModelSettings(name="mlp", options={"hidden": [20_000]})
    arrays = {
        key: value
        for key, value in state_of(build_model(model, (4,), 3, 1)).items()
        if not key.startswith("3.")
    }
    content = QueryStatistics(
        seed=3, server_round=1, model=model, arrays=arrays, head=Ridge(), projection_seed=1
    ).to_record()
    assert "expected statistics of at most" in refused("query.statistics", content, config)


@pytest.mark.parametrize("weights", ["file:/etc/passwd", "download"])
def test_no_message_names_a_file_of_weights_or_has_one_fetched(weights, config):
    model = ModelSettings(backbone="efficientnet-lite0", weights=weights)
    assert "expected model.weights 'installed'" in refused("train", naming(model), config)


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("kind", ["train", "query.statistics", "query.logits", "evaluate"])
def test_images_that_would_be_made_huge_for_a_backbone_are_refused(kind, trainable, config):
    """Of 4096 x 4096 pixels a batch of 32 would take 6 GiB, before a layer is computed."""
    model = ModelSettings(backbone="efficientnet-lite0", size=4096, trainable=trainable)
    reason = refused(kind, naming(model), config)
    assert "expected model.size of at most 724 on a device, got 4096: 32 images" in reason
    assert "16777216 pixels" in reason
    options = {"image_size": 10**9}
    model = ModelSettings(backbone="torchvision:vit_b_16", options=options, trainable=trainable)
    assert "expected model.options.image_size of at most 724" in refused(kind, naming(model), config)


def test_a_backbone_made_huge_by_its_options_is_refused(config):
    """MobileNetV2 a thousand times as wide would have two trillion weights: 9 TB."""
    pytest.importorskip("torchvision")  # its own memory is not the message's
    model = ModelSettings(backbone="torchvision:mobilenet_v2", options={"width_mult": 1000.0})
    reason = refused("train", naming(model), config)
    assert "expected a backbone of at most 67108864 numbers, torchvision:mobilenet_v2 with options" in reason
    large = ModelSettings(
        backbone="torchvision:vit_h_14", options={"dropout": 0.5}
    )  # 633 million, as published
    check_models(RecordDict(), {"model": large.model_dump_json()}, (3, 64, 64), 3)


def test_the_largest_images_that_a_backbone_was_trained_on_are_not_refused():
    for size in (None, 600, 724):
        model = ModelSettings(backbone="torchvision:efficientnet_b7", size=size)
        check_models(RecordDict(), {"model": model.model_dump_json()}, (3, 64, 64), 3)


@pytest.mark.parametrize(
    "run",
    [
        "../../elsewhere/a-1/0123456789abcdef",
        "a/../b-1/0123456789abcdef",
        "/etc/a-1/0123456789abcdef",
        "a/b-1/x",
    ],
)
def test_no_message_leads_out_of_the_store(run, config):
    text = json.dumps(json.loads(WANTED.model_dump_json()) | {"run": run})
    content = train()
    content[CONFIG] = ConfigRecord({**content[CONFIG], DEVICE_DATA: text})
    message = Message(content, 1, "train")
    name_message(message, "m")
    reply = app(message, Context(1, 1, config, RecordDict(), {}))
    assert "expected what must be made of a device's examples" in reply.error.reason


def test_a_message_decides_about_no_data_of_the_device(config, tmp_path):
    """A source in what a device is told is an unknown key; a simulation's record is not looked at."""
    text = json.dumps(json.loads(WANTED.model_dump_json()) | {"source": "folder:/etc"})
    content = train()
    content[CONFIG] = ConfigRecord({**content[CONFIG], DEVICE_DATA: text})
    message = Message(content, 1, "train")
    name_message(message, "m")
    reply = app(message, Context(1, 1, config, RecordDict(), {}))
    assert "Extra inputs are not permitted" in reply.error.reason


@pytest.mark.parametrize("kind", ["train", "train.teacher", "query.statistics", "query.logits", "evaluate"])
def test_a_module_that_a_message_names_is_not_imported(kind, config, tmp_path, monkeypatch):
    mark = tmp_path / "imported"
    (tmp_path / "payload_to_a_device.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    theirs = "payload_to_a_device:run"
    for model in (ModelSettings(name=theirs), ModelSettings(backbone=theirs)):
        reason = refused(kind, naming(model), config)
        assert "that kdfed ships, or one that this device's node-config lists" in reason
    assert "payload_to_a_device" not in sys.modules
    assert not mark.exists()
