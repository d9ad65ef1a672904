from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdfed.backbones import BackboneSettings, Cut, FeatureCache, default_cache, features, split
from kdfed.backbones.features import BATCH, compute
from kdfed.errors import DataError

Make = Callable[..., BackboneSettings]


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


@pytest.fixture
def cut(tiny: Make) -> Cut:
    return split(tiny(trainable="last:1"))


def test_activations_are_those_of_the_frozen_part(cut: Cut) -> None:
    stored = images(BATCH + 3)
    found = FeatureCache(None).activations(cut, stored)
    assert found.shape == (BATCH + 3, *cut.shape)
    assert found.dtype == torch.float32
    assert torch.allclose(found, cut.frozen(torch.from_numpy(stored)), atol=1e-5)


def test_the_bits_of_an_image_depend_neither_on_its_neighbours_nor_on_its_place(cut: Cut) -> None:
    stored = images(2 * BATCH + 5)
    found = compute(cut, stored)
    order = np.random.default_rng(1).permutation(len(stored))
    assert torch.equal(compute(cut, stored[order]), found[torch.from_numpy(order)])
    assert torch.equal(compute(cut, stored[40:47]), found[40:47])
    assert torch.equal(compute(cut, stored[-1:]), found[-1:])


def test_what_is_asked_for_again_is_computed_once(cut: Cut) -> None:
    cache = FeatureCache(None)
    first = cache.activations(cut, images(4))
    assert torch.equal(cache.activations(cut, images(4).copy()), first)
    assert cache.runs == 1


def test_other_images_cuts_sizes_and_weights_are_computed_anew(cut: Cut, tiny: Make) -> None:
    cache = FeatureCache(None)
    cache.activations(cut, images(4))
    cache.activations(cut, images(4, seed=1))
    cache.activations(cut, images(3))
    cache.activations(cut, np.ascontiguousarray(images(4).transpose(0, 1, 3, 2)))
    cache.activations(split(tiny()), images(4))
    cache.activations(split(tiny(trainable="last:1", size=10)), images(4))
    cache.activations(split(tiny(trainable="last:1", options={"width": 5})), images(4))
    assert cache.runs == 7


def test_files_outlive_a_process(cut: Cut, tmp_path: Path) -> None:
    first = FeatureCache(tmp_path).activations(cut, images(4))
    later = FeatureCache(tmp_path)
    assert torch.equal(later.activations(cut, images(4)), first)
    assert later.runs == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another"])
def test_a_damaged_file_is_computed_anew(
    cut: Cut, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = FeatureCache(tmp_path).activations(cut, images(4))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-7]
    elif damage == "flipped":
        content[-5] ^= 1
    elif damage == "emptied":
        content = bytearray()
    else:
        FeatureCache(tmp_path / "other").activations(cut, images(5))
        content = bytearray(next((tmp_path / "other").iterdir()).read_bytes())
    file.write_bytes(content)
    cache = FeatureCache(tmp_path)
    with caplog.at_level(logging.WARNING, logger="kdfed.backbones"):
        assert torch.equal(cache.activations(cut, images(4)), first)
    assert cache.runs == 1
    assert "is damaged, and computed anew" in caplog.text
    again = FeatureCache(tmp_path)
    again.activations(cut, images(4))
    assert again.runs == 0


def test_memory_is_bounded_and_the_least_recently_used_goes_first(cut: Cut) -> None:
    one = FeatureCache(None).activations(cut, images(2)).nbytes
    cache = FeatureCache(None, memory=2 * one)
    for seed in (0, 1, 0, 2, 0):  # 1 is dropped for 2
        cache.activations(cut, images(2, seed))
    assert cache.runs == 3
    cache.activations(cut, images(2, 1))
    assert cache.runs == 4
    assert sum(held.nbytes for held in cache._held.values()) <= 2 * one


def test_what_is_larger_than_the_bounds_is_not_kept(cut: Cut, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, memory=10, disk=10)
    cache.activations(cut, images(2))
    cache.activations(cut, images(2))
    assert cache.runs == 2
    assert list(tmp_path.iterdir()) == []


def test_disk_is_bounded_and_the_least_recently_used_goes_first(cut: Cut, tmp_path: Path) -> None:
    FeatureCache(tmp_path).activations(cut, images(2))
    (first,) = tmp_path.iterdir()
    size = first.stat().st_size
    cache = FeatureCache(tmp_path, memory=0, disk=2 * size)
    os.utime(first, (1, 1))
    cache.activations(cut, images(2, 1))
    (second,) = set(tmp_path.iterdir()) - {first}
    os.utime(second, (2, 2))
    cache.activations(cut, images(2))  # it is used
    cache.activations(cut, images(2, 2))
    assert first in set(tmp_path.iterdir())
    assert second not in set(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * size


def test_half_written_files_are_removed_once_they_are_old(cut: Cut, tmp_path: Path) -> None:
    old, new = tmp_path / "a.part", tmp_path / "b.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    FeatureCache(tmp_path).activations(cut, images(2))
    assert [path.name for path in sorted(tmp_path.glob("*.part"))] == ["b.part"]


def test_a_stage_that_writes_into_its_inputs_leaves_shared_activations_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = sys.modules["own_backbones"]

    def writing() -> torch.nn.Module:
        module: torch.nn.Module = own.Tiny()
        writes = torch.nn.Sequential(torch.nn.Hardtanh(-0.1, 0.1, inplace=True), module.stages["two"])  # type: ignore[index]
        return torch.nn.Sequential(module.one, writes)  # type: ignore[arg-type]

    monkeypatch.setattr(own, "whole", lambda: _with_stages(writing()), raising=False)
    cut = split(BackboneSettings(backbone="own_backbones:whole", trainable="last:1", size=12))
    found = FeatureCache(None).activations(cut, images(4))
    before = found.clone()
    cut.tail(3)(found)
    assert torch.equal(found, before)


def _with_stages(module: torch.nn.Module) -> torch.nn.Module:
    object.__setattr__(module, "stages", list(module.children()))
    return module


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_run(
    cut: Cut, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING, logger="kdfed.backbones"):
        found = cache.activations(cut, images(2))
    assert torch.equal(found, compute(cut, images(2)))
    assert "cannot be kept" in caplog.text


def test_no_images_have_no_activations(cut: Cut, tmp_path: Path) -> None:
    for _ in range(2):
        assert FeatureCache(tmp_path).activations(cut, images(4)[:0]).shape == (0, *cut.shape)


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5, 5)])
def test_what_is_no_stored_image_is_refused(cut: Cut, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="1 or 3 channels as they are stored"):
        FeatureCache(None).activations(cut, np.zeros(shape, dtype=np.uint8))
    with pytest.raises(DataError, match="1 or 3 channels as they are stored"):
        FeatureCache(None).activations(cut, np.zeros((4, 3, 5, 5), dtype=np.float32))


def test_activations_that_do_not_fit_in_memory_are_refused(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfed.data.checks.machine_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"activations .* of 4 images at the cut") as error:
        FeatureCache(None).activations(cut, images(4))
    assert error.value.key == "model.trainable"


def test_activations_that_are_not_finite_are_refused(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut.frozen.body.one[0], "bias", torch.nn.Parameter(torch.full((4,), torch.nan)))  # type: ignore[index, union-attr, arg-type]
    with pytest.raises(DataError, match="finite activations"):
        FeatureCache(None).activations(cut, images(4))


def test_without_a_home_folder_activations_are_kept_in_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(text: object) -> Path:
        raise DataError("no home")

    monkeypatch.setattr(features, "user_path", homeless)
    default_cache.cache_clear()
    assert default_cache().folder is None
    default_cache.cache_clear()


def _fill(folder: Path, cut: Cut, sums: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    total = 0.0
    for seed in range(6):
        total += float(FeatureCache(folder, disk=20_000).activations(cut, images(2, seed)).sum())
    sums.put(total)


def test_several_processes_share_a_folder(cut: Cut, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    sums = context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path, cut, sums)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [sums.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    wanted = sum(float(compute(cut, images(2, seed)).sum()) for seed in range(6))
    assert found == [wanted] * 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
