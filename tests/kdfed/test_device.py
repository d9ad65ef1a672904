from __future__ import annotations

from typing import Any

import pytest
import torch

from kdfed.data import Examples
from kdfed.device import convolutions_restored, exact_convolutions, resolve_device, to_device
from kdfed.errors import DataError


@pytest.mark.parametrize(("gpus", "kind"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, kind: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolve_device("auto") == torch.device(kind)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "mps"])
def test_a_device_that_is_there_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("gpus", "name"), [(0, "cuda"), (2, "cuda:2"), (2, "mps"), (2, "cuda:99999999999")])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, gpus: int, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DataError, match=rf"expected a device of this machine \(cpu.*got '{name}'") as caught:
        resolve_device(name)
    assert caught.value.key == "device"


class _HostTensor:
    """Notes what is asked of a tensor in a host's memory: no GPU is at hand."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list[object] = []

    def pin_memory(self) -> _HostTensor:
        self.asked.append("pinned")
        return self

    def to(self, device: torch.device | str, **options: bool) -> _HostTensor:
        self.asked.append((str(device), options))
        return self


@pytest.mark.parametrize(
    ("device", "asked"),
    [("cpu", [("cpu", {})]), ("cuda:1", ["pinned", ("cuda:1", {"non_blocking": True})])],
)
def test_examples_reach_a_gpu_through_pinned_memory(device: str, asked: list[object]) -> None:
    tensor = _HostTensor()
    to_device(tensor, device)  # type: ignore[arg-type]
    assert tensor.asked == asked


def test_examples_that_are_there_are_not_copied() -> None:
    examples = Examples(torch.randn(3, 2), torch.arange(3))
    assert examples.to("cpu").inputs is examples.inputs


@pytest.mark.parametrize("tf32", [True, False])
def test_convolutions_are_exact_for_a_while(tf32: bool) -> None:
    cudnn = torch.backends.cudnn
    with convolutions_restored():
        cudnn.allow_tf32, cudnn.deterministic = tf32, False
        with convolutions_restored():
            exact_convolutions()
            assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
        assert (cudnn.allow_tf32, cudnn.deterministic) == (tf32, False)


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="before torch 2.9 they are set together"
)
def test_convolutions_and_recurrent_layers_that_were_set_apart_are_so_again() -> None:
    """Then ``allow_tf32`` cannot even be read."""
    cudnn: Any = torch.backends.cudnn
    with convolutions_restored():
        cudnn.allow_tf32 = True
        cudnn.conv.fp32_precision = "ieee"
        with convolutions_restored():
            exact_convolutions()
            assert not cudnn.allow_tf32
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
        with pytest.raises(RuntimeError):
            _ = cudnn.allow_tf32
