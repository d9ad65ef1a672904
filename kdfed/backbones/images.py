"""Images as data sets store them, made into what a backbone takes.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from kdfed.errors import DataError


class Preparation(nn.Module):
    """uint8 images [N, C, H, W] to normalised float32 [N, 3, size, size].

    Grey images get three equal channels. Others are resized by bilinear interpolation with antialiasing,
    height and width each on its own, so that nothing is cropped; then scaled to [0, 1], and normalised.

    Parameters
    ----------
    size
        Height and width of the result, in pixels.
    mean, std
        ``(x - mean) / std``, one number a channel; std above 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.size = size
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised images.

        Raises
        ------
        DataError
            If they are no uint8 images of one or three channels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                "expected images of 1 or 3 channels as they are stored, uint8 [N, C, H, W], got "
                f"{images.dtype} {tuple(images.shape)}; use a data source of images, or no model.backbone",
                "model.backbone",
            )
        values = images.float().expand(-1, 3, -1, -1)
        if values.shape[2:] != (self.size, self.size):
            values = functional.interpolate(
                values, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        return (values / 255 - self.mean) / self.std
