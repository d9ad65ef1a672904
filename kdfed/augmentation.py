"""Random changes of the transfer images while distilling.

The transfer set itself is made in :mod:`kdfed.transfer_sets`.
Teachers see the same changed images as the student ("consistent teaching", Beyer et al. 2022, arXiv
2106.05237).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from kdfed.data import Examples
from kdfed.errors import KdfedError


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image [N, C, H, W] left-right with probability 1/2."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pad images [N, C, H, W] by an eighth of each side (reflected), and crop each back at a random place."""
    count, _, height, width = images.shape
    pad_h, pad_w = max(1, height // 8), max(1, width // 8)
    top = torch.randint(2 * pad_h + 1, (count,), generator=generator)
    left = torch.randint(2 * pad_w + 1, (count,), generator=generator)
    padded = functional.pad(images, (pad_w, pad_w, pad_h, pad_h), mode="reflect")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # view [N, C, 2 pad_h + 1, 2 pad_w + 1, H, W]
    return windows[torch.arange(count), :, top, left]


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "flip": flip,
    "crop": crop,
}
"""What can stand in ``consolidation.augmentation``."""


def augment(images: torch.Tensor, names: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """Apply augmentations in the order of their names.

    Parameters
    ----------
    images
        float [N, C, H, W]; not changed.
    names
        Keys of :data:`AUGMENTATIONS`.
    generator
        CPU generator of every draw.

    Raises
    ------
    KdfedError
        If the inputs are no images.
    """
    if images.ndim != 4:
        raise KdfedError(
            f"augmentation {list(names)} needs images [N, C, H, W], got inputs of shape "
            f"{tuple(images.shape)}; remove the augmentation"
        )
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images


def views_of(examples: Examples, names: Sequence[str], views: int, generator: torch.Generator) -> Examples:
    """Return ``views`` changed copies of every example, view after view, with its label.

    Parameters
    ----------
    examples
        N images [N, C, H, W] with labels.
    names
        Keys of :data:`AUGMENTATIONS`.
    views
        V, 1 or larger.
    generator
        CPU generator of every draw.

    Returns
    -------
    kdfed.data.Examples
        V x N examples.
    """
    images = torch.cat([augment(examples.inputs, names, generator) for _ in range(views)])
    return Examples(images, examples.labels.repeat(views))


def stored_views(
    images: torch.Tensor, names: Sequence[str], views: int, generator: torch.Generator
) -> torch.Tensor:
    """Return ``views`` changed copies of images as they are stored, view after view: what a backbone reads.

    Parameters
    ----------
    images
        uint8 [N, C, H, W].
    names, views, generator
        As for :func:`views_of`, which draws the same changes.

    Returns
    -------
    torch.Tensor
        uint8 [V x N, C, H, W].
    """
    whole = images.float()  # of which a padding can be taken; pixels are moved, and stay whole numbers
    return torch.cat([augment(whole, names, generator).to(torch.uint8) for _ in range(views)])
