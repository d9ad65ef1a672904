"""What participants keep between rounds."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.store import Store
from kdfed.errors import MessageError


def _kept(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value)}


def _value(store: Store, participant: int, before: int) -> float:
    kept = store.load(participant, before)
    assert kept is not None
    return float(kept["weight"][1, 2])


def test_a_participant_reads_what_it_kept_in_its_latest_round_before_this_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load(7, before=1) is None
    store.save(7, 1, _kept(1.0))
    store.save(7, 4, _kept(4.0))
    store.save(8, 2, _kept(8.0))

    for before, expected in ((2, 1.0), (4, 1.0), (5, 4.0), (9, 4.0)):
        assert _value(store, 7, before) == expected
    assert store.load(7, before=1) is None


def test_a_round_that_is_run_again_finds_what_it_found_and_overwrites_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(0, 1, _kept(1.0))
    store.save(0, 2, _kept(2.0))
    store.save(0, 2, _kept(-2.0))

    assert _value(store, 0, before=2) == 1.0
    assert _value(store, 0, before=3) == 2.0


def test_only_the_last_two_rounds_stay_on_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for server_round in range(1, 6):
        store.save(3, server_round, _kept(float(server_round)))

    assert sorted(file.name for file in (tmp_path / "3").iterdir()) == ["4.safetensors", "5.safetensors"]


def _share(root: Path, times: int) -> int:
    store, inputs = Store(root), torch.arange(500_000, dtype=torch.float32)
    whole = 0
    for number in range(times):
        store.save_public(f"{number:064x}", inputs)
        found = store.load_public(f"{number:064x}")
        whole += found is not None and torch.equal(found, inputs)
    return whole


@pytest.mark.slow
def test_public_examples_are_whole_for_nodes_that_keep_them_at_the_same_time(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_share, [tmp_path] * 3, [40] * 3)) == [40] * 3
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "digest",
    [
        "../../../escaped",
        "",
        "a" * 63,
        "a" * 65,
        "A" * 64,
        "g" * 64,
        "a" * 64 + "\n",
        "/" + "a" * 63,
        "é" * 64,
    ],
)
def test_a_digest_is_no_path(tmp_path: Path, digest: str) -> None:
    store = Store(tmp_path / "deep" / "deeper" / "store")
    with pytest.raises(MessageError, match="expected the SHA-256 of public examples, 64 lowercase hex"):
        store.save_public(digest, torch.zeros(1))
    with pytest.raises(MessageError, match="expected the SHA-256"):
        store.load_public(digest)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("participant", "server_round"), [(-1, 1), ("../7", 1), (7, -1), (7, "../1"), (1.5, 1)]
)
def test_participants_and_rounds_are_numbers(tmp_path: Path, participant: Any, server_round: Any) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(MessageError, match="as a whole number of at least 0"):
        store.save(participant, server_round, _kept(1.0))
    assert list(tmp_path.rglob("*")) == []
