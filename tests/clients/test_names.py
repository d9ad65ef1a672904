"""What a message may name: in a simulation what its experiment names, on a device what the device allows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.actors import IN_PROCESS
from clients.client_app import app
from clients.names import check_names
from kdfed.errors import ParticipantError
from kdfed.local import LocalMode, MutualLocal, PlainLocal
from kdfed.messages import (
    CONFIG,
    SIMULATION,
    Evaluate,
    Hello,
    QueryLogits,
    Simulation,
    Train,
    TrainTeacher,
    numbered,
)
from kdfed.models import MODELS, Model, is_shipped
from kdfed.named import NamedError
from kdfed.outside import is_shipped_source
from kdfed.private.flwr import identify, name_message
from kdfed.settings import ModelSettings, TeacherSettings

OURS = [name for name, model in MODELS.items() if isinstance(model, Model)]
THEIRS = "payload_of_a_message:run"


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    identify(1, 1)


@pytest.fixture(autouse=True)
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when it is imported; return the file."""
    mark = tmp_path / "imported"
    (tmp_path / "payload_of_a_message.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "import torch\n"
        "def run(input_shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "payload_of_a_message", raising=False)
    return mark


def _context(**node_config: Any) -> Context:
    return Context(1, 1001, {"partition-id": 0, "num-partitions": 2, **node_config}, RecordDict(), {})


def _model(name: str) -> str:
    return ModelSettings(name=name).model_dump_json()


def _mutual(name: str) -> str:
    return MutualLocal(mode="mutual", model=ModelSettings(name=name)).model_dump_json()


def _teachers(name: str) -> str:
    models = (ModelSettings(name="mlp"), ModelSettings(name=name))
    return TeacherSettings(model=models).model_dump_json()


def _content(key: str, value: str, record: str = CONFIG) -> RecordDict:
    return RecordDict({record: ConfigRecord({key: value})})


def _data(tiny: Any, source: str) -> RecordDict:
    simulation = Simulation.of(tiny(**{"data.source": source}).arm("cold"), 3)
    return RecordDict({SIMULATION: simulation.to_record()})


@pytest.mark.parametrize(
    ("key", "value", "record"),
    [
        ("model", _model(THEIRS), CONFIG),
        ("model", ModelSettings(backbone=THEIRS).model_dump_json(), CONFIG),
        ("model", _model(THEIRS), numbered(CONFIG, 7, 9)),
        ("local", _mutual(THEIRS), CONFIG),
        ("teachers", _teachers(THEIRS), CONFIG),
        ("model", _model("torchvision.models:resnet18"), CONFIG),
        ("model", _model("torchvision:../weights"), CONFIG),
        ("model", _model("os:system"), CONFIG),
    ],
)
def test_a_device_looks_up_no_model_that_only_a_message_names(key, value, record, imported):
    with pytest.raises(
        ParticipantError, match=r"expected a (model|backbone) that kdfed ships, or one that this device"
    ):
        check_names(_content(key, value, record), _context())
    assert not imported.exists()


def test_a_device_looks_up_no_data_source_that_a_message_names(tiny, imported):
    with pytest.raises(ParticipantError, match="expected a data source that kdfed ships"):
        check_names(_data(tiny, THEIRS), _context())
    assert not imported.exists()


@pytest.mark.parametrize(
    "kind", [Hello.type, Train.type, TrainTeacher.type, Evaluate.type, QueryLogits.type, "train.unheard_of"]
)
def test_every_message_goes_through_the_gate_first(tiny, kind, imported):
    content = _data(tiny, "digits")
    content[CONFIG] = ConfigRecord({"model": _model(THEIRS)})
    message = Message(content, 1001, kind)
    name_message(message, "m")
    try:
        told = app(message, _context()).error.reason
    except ValueError as error:  # Flower knows of no such handler
        told = str(error)
    assert told.startswith(("ParticipantError: expected a model that kdfed ships", "No train function"))
    assert not imported.exists()


def test_a_device_allows_exactly_what_it_lists(tiny):
    for allow in (THEIRS, f"other:net {THEIRS}", f"other:net,{THEIRS}"):
        check_names(_content("model", _model(THEIRS)), _context(allow=allow))
        check_names(_data(tiny, THEIRS), _context(allow=allow))
    for allow in ("", "payload_of_a_message", THEIRS + "2", "payload_of_a_message:*"):
        with pytest.raises(ParticipantError):
            check_names(_content("model", _model(THEIRS)), _context(allow=allow))


def test_what_kdfed_ships_needs_nobodys_leave(tiny):
    local: LocalMode = PlainLocal()
    check_names(_content("local", local.model_dump_json()), _context())
    for name in (*OURS, "torchvision:resnet18"):
        assert is_shipped(name)
        check_names(_content("model", _model(name)), _context())
    for source in ("mnist5k", "hf:mnist", "folder:/data", "synthetic:examples=9,classes=3,shape=4"):
        assert is_shipped_source(source)
    for source in ("folder", "package.module:name", "hf", "mnist5k:x"):
        assert not is_shipped_source(source)


def test_settings_that_cannot_be_read_are_refused_shortly():
    with pytest.raises(ParticipantError, match="expected settings of kdfed in a message") as raised:
        check_names(_content("model", "{" + "x" * 100_000), _context())
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("local", f'{{"mode": "{THEIRS}"}}', "local mode"),
        ("partition", f'{{"kind": "{THEIRS}", "participants": 3}}', "partition"),
        ("strategy", THEIRS, "consensus"),
    ],
)
def test_a_message_names_things_of_no_family_either(key, value, what, imported):
    content = _content(key, value)
    for context in (_context(), _context(**{IN_PROCESS: True})):
        with pytest.raises(ParticipantError, match=f"expected a {what} that kdfed ships"):
            check_names(content, context)
    assert not imported.exists()
    allowed = _context(allow=THEIRS)
    if what == "consensus":
        check_names(content, allowed)
    else:
        with pytest.raises(NamedError, match="to be a class derived from"):
            check_names(content, allowed)


def test_options_and_columns_of_any_name_are_no_names_of_code():
    model = ModelSettings(name="mlp", options={"name": THEIRS})
    check_names(_content("model", model.model_dump_json()), _context())


def test_a_simulation_looks_up_what_its_experiment_names(tiny, run_arm, imported):
    experiment = tiny(model={"name": THEIRS}, **{"rounds.horizon": 1})
    imported.unlink()  # the experiment's own check tries the model
    del sys.modules["payload_of_a_message"]
    content = RecordDict({SIMULATION: Simulation.of(experiment.arm("cold"), 3).to_record()})
    content[CONFIG] = ConfigRecord({"model": _model(THEIRS)})
    check_names(content, _context(**{IN_PROCESS: True}))
    content[CONFIG] = ConfigRecord({"model": _model("os:system")})
    with pytest.raises(ParticipantError, match="or one that the experiment names, got 'os:system'"):
        check_names(content, _context(**{IN_PROCESS: True}))
    assert not imported.exists(), "the gate imports nothing itself"
    (*_, last) = run_arm(experiment).records
    assert (last.answered, last.absent) == (5, ())


@pytest.mark.parametrize("key", ["head", "statistics"])
def test_a_head_in_closed_form_is_looked_up_by_the_same_rule(key: str) -> None:
    check_names(_content(key, '{"head": "ridge"}'), _context())
    with pytest.raises(ParticipantError, match="that kdfed ships, or one that this device"):
        check_names(_content(key, '{"head": "os:system"}'), _context())
