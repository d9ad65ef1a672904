from __future__ import annotations

import dataclasses

import pytest
import torch

from kdfed.config import Arm
from kdfed.device import convolutions_restored
from kdfed.errors import DataError
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION, REGRESSION
from tests.setups import CPU


def test_nothing_of_it_can_be_forgotten() -> None:
    for field in dataclasses.fields(Setup):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING


def test_it_is_what_the_settings_ask_for() -> None:
    arm = Arm(device="cpu", threads=3, precision="bfloat16")
    assert Setup.of(arm, REGRESSION) == Setup(REGRESSION, torch.device("cpu"), 3, "bfloat16")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DataError, match="expected a device of this machine") as caught:
        Setup.of(Arm(device="cuda"), CLASSIFICATION)
    assert caught.value.key == "device"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_run_in_its_precision_and_only_inside(precision: str) -> None:
    setup = dataclasses.replace(CPU, precision=precision)
    layer, inputs = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with setup.autocast():
        assert layer(inputs).dtype == getattr(torch, precision)
    assert layer(inputs).dtype == torch.float32


def test_torch_gets_its_threads_and_convolutions_that_repeat() -> None:
    with convolutions_restored():
        dataclasses.replace(CPU, threads=2).settle()
        assert torch.get_num_threads() == 2
        CPU.settle()
        assert torch.get_num_threads() == 1
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
