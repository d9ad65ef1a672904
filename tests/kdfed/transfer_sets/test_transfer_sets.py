from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from kdfed.data import Examples, prepare
from kdfed.distill import KDMethod
from kdfed.errors import DataError, KdfedError
from kdfed.models import build_model
from kdfed.settings import DataSettings, ModelSettings
from kdfed.transfer_sets import TRANSFER_SETS, noise, proxy, transfer_set
from kdfed.transfer_sets.generated import GeneratorSettings, generate

PUBLIC = Examples(torch.zeros(30, 1, 8, 8), torch.arange(30))
PROXY = DataSettings(source="mnist5k", limit=100)


def test_the_registry_names_what_experiments_and_studies_can_name() -> None:
    from simulations.study.settings import Transfer

    federated = KDMethod.model_fields["transfer"].annotation
    assert set(get_args(federated)) < set(TRANSFER_SETS) == set(get_args(Transfer))


def test_the_public_one_is_the_transfer_split() -> None:
    assert transfer_set(KDMethod(), PUBLIC, [], 0) is PUBLIC


@pytest.mark.parametrize("images", [None, 12])
@pytest.mark.parametrize("transfer", ["noise", "proxy", "generated"])
def test_every_other_one_has_the_shape_and_size_that_is_asked_for(transfer: str, images: int | None) -> None:
    teacher = build_model(ModelSettings(name="mlp"), (1, 8, 8), 10, 0)
    settings = KDMethod.model_validate(
        {
            "transfer": transfer,
            "images": images,
            "proxy": PROXY if transfer == "proxy" else None,
            "generator": {"steps": 2, "width": 2} if transfer == "generated" else None,
        }
    )
    examples = transfer_set(settings, PUBLIC, [teacher], 5)
    assert examples.inputs.shape == (images or 30, 1, 8, 8)
    assert examples.inputs.dtype == torch.float32
    assert torch.equal(transfer_set(settings, PUBLIC, [teacher], 5).inputs, examples.inputs)
    assert not torch.equal(transfer_set(settings, PUBLIC, [teacher], 6).inputs, examples.inputs)
    if transfer == "generated":
        own = GeneratorSettings(steps=2, width=2)
        assert torch.equal(generate([teacher], (1, 8, 8), images or 30, own, 5), examples.inputs)


@pytest.mark.parametrize(
    ("settings", "teachers", "message"),
    [
        ({"transfer": "noise"}, 0, "needs the teachers' weights"),
        ({"transfer": "noise", "labels": True}, 1, "has no labels"),
        ({"transfer": "proxy"}, 1, "needs the settings of another data set"),
    ],
)
def test_what_an_unchecked_arm_could_ask_for_is_refused(
    settings: dict[str, Any], teachers: int, message: str
) -> None:
    modules = [build_model(ModelSettings(name="mlp"), (1, 8, 8), 10, 0)] * teachers
    with pytest.raises(KdfedError, match=message):
        transfer_set(KDMethod.model_validate(settings), PUBLIC, modules, 0)


def test_noise_is_standard_normal() -> None:
    inputs = noise((3, 8, 8), 500, 1).inputs
    assert float(inputs.mean()) == pytest.approx(0, abs=0.02)
    assert float(inputs.std()) == pytest.approx(1, abs=0.02)


def test_a_proxy_of_another_shape_is_resized_and_never_from_its_test_split() -> None:
    examples = proxy(PROXY, (3, 12, 10), 75, 1)
    assert examples.inputs.shape == (75, 3, 12, 10)
    resized = prepare(PROXY.model_copy(update={"shape": (3, 12, 10)}))
    held = resized.examples(np.concatenate([resized.splits.transfer, resized.splits.train])).inputs
    assert sorted(examples.inputs.sum((1, 2, 3)).tolist()) == sorted(held.sum((1, 2, 3)).tolist())


def test_a_proxys_labels_are_not_read() -> None:
    assert not proxy(PROXY, (1, 8, 8), 20, 1).labels.any()


@pytest.mark.parametrize(
    ("settings", "shape", "count", "key", "message"),
    [
        (PROXY, (5,), 10, "proxy", "a proxy needs images, got inputs of shape"),
        (PROXY, (1, 8, 8), 76, "proxy", "expected 76 images of the proxy, got 75"),
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
        proxy(settings, shape, count, 1)
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
        proxy(DataSettings(source=f"folder:{tmp_path}", classes=("cat",)), (1, 8, 8), 1, 1)
    assert caught.value.key == "proxy.source"


def test_a_proxy_that_does_not_fit_in_memory_says_so() -> None:
    with pytest.raises(DataError, match="of memory of this machine") as caught:
        proxy(PROXY, (3, 10**6, 10**6), 1, 1)
    assert caught.value.key == "proxy.source"


def test_an_unknown_transfer_set_is_refused_and_never_generated() -> None:
    teacher = build_model(ModelSettings(name="mlp"), (1, 8, 8), 10, 0)
    settings = KDMethod().model_copy(update={"transfer": "own-kind"})
    with pytest.raises(KdfedError, match=r"expected one of public, .*, got 'own-kind'"):
        transfer_set(settings, PUBLIC, [teacher], 0)
