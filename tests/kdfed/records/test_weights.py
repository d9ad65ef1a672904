from __future__ import annotations

import hashlib

import pytest
import torch

from kdfed.errors import DataError
from kdfed.records import RunFolder, load_model, weights_sha256


def state() -> dict[str, torch.Tensor]:
    return {
        "b": torch.arange(6.0).reshape(2, 3),
        "a": torch.tensor(7),
        "c": torch.ones(2, dtype=torch.bfloat16),
    }


def test_a_hash_is_that_of_keys_dtypes_shapes_and_bytes():
    """One int16 tensor [1, 2]: the header as JSON, then four bytes, little-endian."""
    expected = hashlib.sha256(b'["w", "torch.int16", [2]]' + bytes([1, 0, 2, 0])).hexdigest()
    assert weights_sha256({"w": torch.tensor([1, 2], dtype=torch.int16)}) == expected


def test_the_order_of_keys_and_the_memory_layout_do_not_matter():
    same = {key: state()[key] for key in ("a", "c", "b")}
    same["b"] = same["b"].T.contiguous().T
    assert weights_sha256(same) == weights_sha256(state())


@pytest.mark.parametrize(
    "change",
    [
        {"b": torch.arange(6.0).reshape(3, 2)},
        {"b": torch.arange(6, dtype=torch.float64).reshape(2, 3)},
        {"b": torch.arange(6.0).reshape(2, 3) + 1e-6},
        {"d": torch.tensor(1)},
    ],
)
def test_any_change_changes_the_hash(change):
    assert weights_sha256(state() | change) != weights_sha256(state())


def test_a_saved_model_loads_back_to_the_bit(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "models").mkdir()
    folder.save_model("cold", 3, state())
    loaded = load_model(tmp_path / "models" / "cold-3.safetensors")
    assert weights_sha256(loaded) == weights_sha256(state())
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["cold-3.safetensors"]


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    (tmp_path / "models").mkdir()
    tied = torch.zeros(3)
    RunFolder(tmp_path).save_model("cold", 0, {"a": tied, "b": tied})
    assert set(load_model(RunFolder(tmp_path).model_path("cold", 0))) == {"a", "b"}


def test_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a readable \.safetensors file"):
        load_model(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no model")
    with pytest.raises(DataError, match=r"text\.safetensors"):
        load_model(tmp_path / "text.safetensors")


@pytest.mark.parametrize("name", ["", "gone.safetensors"])
def test_a_folder_and_nothing_are_no_model(tmp_path, name):
    with pytest.raises(DataError, match="which is no file") as caught:
        load_model(tmp_path / name)
    assert caught.value.key == "start"
