from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdfed.data import Examples, prepare
from kdfed.errors import DataError
from kdfed.settings import DataSettings
from kdfed.transfer_sets import ProxySet
from kdfed.transfer_sets.transfer_set import examples_of

PROXY = DataSettings(source="mnist5k", limit=100)


def test_a_proxy_of_another_shape_is_resized_and_never_from_its_test_split() -> None:
    inputs = ProxySet(proxy=PROXY).draw((3, 12, 10), 65, [], 1)
    assert inputs.shape == (65, 3, 12, 10)
    resized = prepare(PROXY.model_copy(update={"shape": (3, 12, 10)}))
    held = resized.examples(np.concatenate([resized.splits.transfer, resized.splits.train])).inputs
    assert sorted(inputs.sum((1, 2, 3)).tolist()) == sorted(held.sum((1, 2, 3)).tolist())


@pytest.mark.parametrize(
    ("settings", "shape", "count", "key", "message"),
    [
        (PROXY, (5,), 10, "proxy", "a proxy needs images, got inputs of shape"),
        (PROXY, (1, 8, 8), 66, "proxy", "expected 66 images of the proxy, got 65"),
        (
            DataSettings(source="synthetic:examples=50,classes=2,shape=4"), (1, 8, 8), 10,
            "proxy.source", "can be converted to",
        ),
        (DataSettings(source="parquet:/no"), (1, 8, 8), 10, "proxy.source", "expected a parquet file"),
    ],
)  # fmt: skip
def test_a_proxy_that_does_not_fit_is_refused(
    settings: DataSettings, shape: tuple[int, ...], count: int, key: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ProxySet(proxy=settings).draw(shape, count, [], 1)
    assert caught.value.key == key


def test_a_bomb_among_a_proxys_images_is_an_error_of_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from kdfed.data import images

    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    (tmp_path / "cat").mkdir()
    for name, size in (("0", (8, 8)), ("1", (50, 50))):
        Image.new("L", size).save(tmp_path / f"cat/{name}.png")
    with pytest.raises(DataError, match=r"cat/1\.png of .*got 50 x 50") as caught:
        ProxySet(proxy=DataSettings(source=f"folder:{tmp_path}", classes=("cat",))).draw((1, 8, 8), 1, [], 1)
    assert caught.value.key == "proxy.source"


def test_a_proxy_that_does_not_fit_in_memory_says_so() -> None:
    with pytest.raises(DataError, match="of memory of this machine") as caught:
        ProxySet(proxy=PROXY).draw((3, 10**6, 10**6), 1, [], 1)
    assert caught.value.key == "proxy.source"


def test_what_a_backbone_reads_of_a_proxy_are_the_same_images_as_they_are_stored() -> None:
    proxy = ProxySet(proxy=PROXY)
    stored = proxy.draw_stored((3, 12, 10), 20, 1)
    assert stored.dtype == np.uint8
    data = prepare(PROXY.model_copy(update={"shape": (3, 12, 10)}))
    assert torch.equal(data.normalisation.apply(stored), proxy.draw((3, 12, 10), 20, [], 1))
    public = Examples(torch.zeros(20, 3, 12, 10, dtype=torch.uint8), torch.zeros(20))
    assert torch.equal(examples_of(proxy, public, (), 1).inputs, torch.from_numpy(stored))
