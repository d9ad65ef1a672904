from __future__ import annotations

import pytest

from kdfed.backbones import BACKBONES, BackboneSettings, check_backbone, find_backbone, is_shipped_backbone
from kdfed.errors import KdfedError


def test_every_entry_says_in_a_line_what_it_is() -> None:
    assert list(BACKBONES) == [
        *(f"efficientnet-lite{n}" for n in range(3)),
        "torchvision:NAME",
        "package.module:name",
    ]
    assert all(entry.description and "\n" not in entry.description for entry in BACKBONES.values())


@pytest.mark.parametrize(
    ("name", "shipped"),
    [
        ("efficientnet-lite0", True),
        ("efficientnet-lite2", True),
        ("torchvision:resnet18", True),
        ("torchvision:resnet18.x", False),
        ("own_backbones:Tiny", False),
        ("resnet18", False),
    ],
)
def test_what_is_shipped_is_told_from_what_is_somebodys(name: str, shipped: bool) -> None:
    assert is_shipped_backbone(name) == shipped


def test_an_unknown_name_is_refused_with_a_near_one() -> None:
    with pytest.raises(KdfedError, match=r"got 'efficientnet-lite'; did you mean 'efficientnet-lite\d'\?"):
        find_backbone("efficientnet-lite")


def test_a_check_reads_no_weights() -> None:
    assert check_backbone(BackboneSettings(backbone="efficientnet-lite0", weights="file:absent.pt")) is None
    assert "absent" in str(check_backbone(BackboneSettings(backbone="own_backbones:absent")))
