from __future__ import annotations

from typing import get_args

import pytest
import torch

from kdfed.augmentation import AUGMENTATIONS, augment, crop, flip, stored_views, views_of
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.settings import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_registry_names_what_the_experiment_can_name() -> None:
    assert set(AUGMENTATIONS) == set(get_args(Augmentation))


def test_a_flip_mirrors_whole_images_or_leaves_them() -> None:
    images = torch.arange(3.0).expand(200, 2, 2, 3)
    flipped = flip(images, generator())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 60 < int(mirrored.sum()) < 140


def test_a_crop_agrees_with_the_slow_twin() -> None:
    images = torch.randn(6, 2, 16, 9, generator=generator(1))
    cropped = crop(images, generator())
    draws = generator()
    top = torch.randint(5, (6,), generator=draws).tolist()
    left = torch.randint(3, (6,), generator=draws).tolist()
    padded = torch.nn.functional.pad(images, (1, 1, 2, 2), mode="reflect")
    for n in range(6):
        assert torch.equal(cropped[n], padded[n, :, top[n] : top[n] + 16, left[n] : left[n] + 9])


def test_a_crop_leaves_a_constant_image_alone() -> None:
    images = torch.full((4, 3, 5, 5), 2.5)
    assert torch.equal(crop(images, generator()), images)


def test_augmentation_repeats_with_the_seed_and_changes_no_original() -> None:
    images = torch.randn(8, 1, 8, 8, generator=generator(1))
    before = images.clone()
    first, second, other = (augment(images, ("flip", "crop"), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.shape == images.shape


def test_no_augmentation_is_the_identity() -> None:
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(augment(images, (), generator()), images)


def test_features_are_refused() -> None:
    with pytest.raises(KdfedError, match=r"\['flip'\] needs images .* got inputs of shape \(5, 3\); remove"):
        augment(torch.zeros(5, 3), ("flip",), generator())


def test_views_agree_with_the_slow_twin_and_keep_their_labels() -> None:
    images = torch.randn(3, 1, 8, 8, generator=generator(1))
    views = views_of(Examples(images, torch.tensor([2, 0, 1])), ["flip", "crop"], 4, generator())
    draws = generator()
    slow = [augment(images, ["flip", "crop"], draws) for _ in range(4)]
    assert torch.equal(views.inputs, torch.cat(slow))
    assert views.labels.tolist() == [2, 0, 1] * 4


@pytest.mark.parametrize("names", [["flip"], ["crop"], ["crop", "flip"]])
def test_views_of_stored_images_are_the_same_changes_of_whole_pixels(names: list[str]) -> None:
    images = torch.randint(256, (5, 3, 16, 12), generator=generator(1)).to(torch.uint8)
    stored = stored_views(images, names, 3, generator())
    changed = views_of(Examples(images.float(), torch.zeros(5, dtype=torch.int64)), names, 3, generator())
    assert stored.dtype == torch.uint8
    assert torch.equal(stored.float(), changed.inputs)
