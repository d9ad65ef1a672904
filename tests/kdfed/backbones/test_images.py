from __future__ import annotations

import numpy as np
import pytest
import torch

from kdfed.backbones.images import Preparation
from kdfed.errors import DataError


def test_pixels_are_scaled_and_normalised() -> None:
    """Of 0, 51 and 255: (0 - 0.5) / 0.25 = -2, (0.2 - 0.5) / 0.25 = -1.2, (1 - 0.5) / 0.25 = 2."""
    images = torch.tensor([[0, 51], [255, 255]], dtype=torch.uint8).expand(1, 3, 2, 2)
    prepared = Preparation(2, (0.5,) * 3, (0.25,) * 3)(images)
    assert torch.allclose(prepared[0, 2], torch.tensor([[-2.0, -1.2], [2.0, 2.0]]))


def test_a_grey_image_is_the_same_as_one_of_three_equal_channels() -> None:
    grey = torch.randint(256, (2, 1, 8, 8)).to(torch.uint8)
    preparation = Preparation(12, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert torch.equal(preparation(grey), preparation(grey.expand(-1, 3, -1, -1).contiguous()))


def test_resizing_is_what_pillow_does_to_pixels_within_their_rounding() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    wanted = np.asarray(image.fromarray(pixels).resize((12, 12), image.Resampling.BILINEAR))
    prepared = Preparation(12, (0.0,) * 3, (1.0,) * 3)(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert (prepared[0].permute(1, 2, 0) * 255 - torch.from_numpy(wanted.copy())).abs().max() <= 1.01


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.uint8), torch.zeros(2, 9)]
)
def test_what_is_no_stored_image_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"1 or 3 channels as they are stored.* got torch\.") as error:
        Preparation(4, (0.0,) * 3, (1.0,) * 3)(images)
    assert error.value.key == "model.backbone"
