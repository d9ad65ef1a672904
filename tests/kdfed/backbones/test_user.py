from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from kdfed.backbones import BackboneSettings, split
from kdfed.backbones.registry import find_backbone
from kdfed.errors import DataError, KdfedError


def named(name: str) -> str:
    return f"own_backbones:{name}"


def test_what_a_module_says_about_itself_is_read() -> None:
    network = find_backbone(named("Tiny")).build({"width": 5})
    assert (list(network.stages), network.size) == (["one", "two"], 12)
    assert (network.mean, network.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.5))


def test_a_module_that_says_nothing_is_one_stage_of_images_from_0_to_1() -> None:
    cut = split(BackboneSettings(backbone=named("plain"), trainable="last:1"))
    assert (cut.stages, cut.size, cut.features) == (("body",), 224, 12)
    white = torch.full((1, 1, 9, 9), 255, dtype=torch.uint8)
    assert torch.equal(cut.frozen(white), torch.ones(1, 3, 224, 224))


@pytest.mark.parametrize(
    "stages",
    [
        lambda one, two: nn.Sequential(one, two),
        lambda one, two: [one, two],
        lambda one, two: nn.ModuleList([one, two]),
        lambda one, two: nn.ModuleDict({"0": one, "1": two}),
    ],
)
def test_stages_may_be_listed_in_any_way(stages: object, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = sys.modules["own_backbones"].Tiny

    def listed() -> nn.Module:
        module: nn.Module = tiny()
        module.stages = stages(*module.stages.values())  # type: ignore[operator, union-attr]
        return module

    monkeypatch.setattr(sys.modules["own_backbones"], "listed", listed, raising=False)
    assert split(BackboneSettings(backbone=named("listed"))).stages == ("0", "1")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("stages", 3, "stages as nn.Sequential, a dict or a list of modules, got 3"),
        ("stages", {"a.b": nn.Identity()}, "names without a dot"),
        ("stages", ["one"], "expected modules by names"),
        ("input_size", True, "input_size as a number of pixels, got True"),
        ("mean", (0.5,), r"3 numbers as mean, got \(0\.5,\)"),
        ("std", (0.5, 0.0, 0.5), "expected std above 0"),
    ],
)
def test_attributes_of_another_kind_are_refused(
    attribute: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd() -> nn.Module:
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        setattr(module, attribute, value)
        return module

    monkeypatch.setattr(sys.modules["own_backbones"], "odd", odd, raising=False)
    with pytest.raises(KdfedError, match=message):
        find_backbone(named("odd")).build({})


def test_what_returns_no_module_is_refused() -> None:
    with pytest.raises(KdfedError, match=r"own_backbones:nothing'.* got 'nothing'"):
        find_backbone(named("nothing")).build({})


def test_options_are_held_against_the_signature() -> None:
    with pytest.raises(DataError, match=r"options of 'own_backbones:Tiny' that fit \(width"):
        split(BackboneSettings(backbone=named("Tiny"), options={"wide": 2}))


def test_there_is_no_download() -> None:
    with pytest.raises(DataError, match=r"'installed' \(what 'own_backbones:Tiny' returns\) or 'file:PATH'"):
        split(BackboneSettings(backbone=named("Tiny"), weights="download"))
