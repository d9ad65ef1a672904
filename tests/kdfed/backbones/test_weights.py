from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdfed.backbones.weights import check_hash, digest, fit_state, read_state
from kdfed.errors import DataError


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_state(path)
    assert error.value.key == "model.weights"
    return str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_state_dict_is_read_as_it_was_saved(tmp_path: Path, suffix: str) -> None:
    state, path = dict(nn.Linear(3, 2).state_dict()), tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    read = read_state(path)
    assert set(read) == set(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_is_never_executed(tmp_path: Path, how: str) -> None:
    path, made = tmp_path / "weights.pt", tmp_path / "made"
    bad = {"weight": torch.zeros(2), "more": Malicious(made)}
    if how == "torch":
        torch.save(bad, path)
    else:
        path.write_bytes(pickle.dumps(bad, protocol=2))
    assert "nothing in it was executed" in refused(path)
    assert not made.exists()
    pickle.loads(pickle.dumps(Malicious(made)))  # it would have
    assert made.exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    assert "torch.save(model.state_dict(), path)" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "got a list"),
        ({}, "got a dict"),
        ({"state_dict": {"weight": torch.zeros(1)}, "epoch": 3}, "got 'state_dict', 'epoch' besides"),
        pytest.param(
            {"weight": torch.eye(2).to_sparse()},
            "dense tensors",
            marks=pytest.mark.filterwarnings("ignore"),
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert message in refused(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
    ],
    ids=["without numbers", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_whose_numbers_are_not_here_are_refused(
    tmp_path: Path, make: Callable[[], torch.Tensor]
) -> None:
    torch.save({"weight": make()}, tmp_path / "weights.pt")
    assert "expected only dense tensors by name" in refused(tmp_path / "weights.pt")


def test_a_small_archive_of_huge_tensors_is_not_unpacked(tmp_path: Path) -> None:
    path, packed = tmp_path / "weights.pt", tmp_path / "packed.pt"
    torch.save({"weight": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in whole.infolist():
            archive.writestr(entry.filename, whole.read(entry))
    assert packed.stat().st_size < 10**5
    said = refused(packed)
    assert "expected an archive that is not compressed" in said
    assert f"{packed.stat().st_size} bytes long and holds 4000" in said


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = dict(nn.Linear(30, 20).state_dict())
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert str(path) in refused(path)
    path.write_bytes(b"")
    assert str(path) in refused(path)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "which is no file" in refused(tmp_path / "absent.pt")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    assert ".safetensors, .pt or .pth" in refused(tmp_path / "weights.onnx")


def test_all_entries_that_do_not_fit_are_named() -> None:
    module = nn.Linear(3, 2)
    state = {"weight": torch.zeros(2, 4), "wieght": torch.zeros(2)}
    with pytest.raises(DataError) as error:
        fit_state(module, state, "f.pt")
    text = str(error.value)
    assert "weight has shape (2, 4), expected (2, 3)" in text
    assert "missing bias" in text
    assert "unexpected wieght" in text


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "bias has NaN or infinity"),
        (torch.tensor([1, 2]), r"bias is torch\.int64, expected torch\.float32"),
        (torch.tensor([1j, 2]), r"bias is torch\.complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), r"bias is torch\.float8_e4m3fn, expected torch\.float32"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "bias has NaN or infinity"),
    ],
)
def test_entries_that_are_no_weights_are_refused(bias: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_state(nn.Linear(3, 2), {"weight": torch.zeros(2, 3), "bias": bias}, "f.pt")


def test_a_classifier_and_counters_that_old_files_lack_do_not_matter() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {key: value + 1 for key, value in module.state_dict().items() if "num_batches" not in key}
    fit_state(module, {**state, "fc.weight": torch.zeros(9, 2), "classifier.1.bias": torch.zeros(9)}, "f")
    assert all(torch.equal(module.state_dict()[key], state[key]) for key in state)


def test_half_precision_is_read_as_float32() -> None:
    module = nn.Linear(1, 1)
    fit_state(module, {"weight": torch.ones(1, 1).half(), "bias": torch.ones(1).half()}, "f")
    assert module.weight.dtype == torch.float32
    assert module.weight.item() == 1


def test_a_published_file_must_hold_what_its_name_says(tmp_path: Path) -> None:
    """The SHA-256 of the empty file begins with e3b0c442."""
    good, bad, other = (tmp_path / name for name in ("a-e3b0c442.pth", "b-e3b0c443.pth", "c.pth"))
    for path in (good, bad, other):
        path.write_bytes(b"")
    assert [check_hash(good), check_hash(other)] == [good, other]
    with pytest.raises(DataError, match=r"begins with e3b0c443, got one with e3b0c442: it is damaged"):
        check_hash(bad)


def test_a_digest_tells_names_shapes_kinds_and_numbers_apart() -> None:
    states = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.ones(4)},
        {"a": torch.zeros(4), "c": torch.tensor(3)},
    ]
    assert len({digest(state) for state in states}) == len(states)
    assert digest({"a": torch.arange(6.0).view(2, 3).T}) == digest(
        {"a": torch.arange(6.0).view(2, 3).T.contiguous()}
    )
