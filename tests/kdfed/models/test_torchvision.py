from __future__ import annotations

import pytest
import torch

from kdfed.errors import ConfigError
from kdfed.models import build_model
from kdfed.settings import ModelSettings

IMAGES = (1, 28, 28)


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "regnet_y_400mf"],
)
def test_torchvision_classifiers_take_grey_images_and_train(name: str) -> None:
    model = build_model(settings(f"torchvision:{name}"), (1, 32, 32), 5, seed=0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_options_of_a_classifier_that_reads_its_own_numbers_are_checked_when_it_is_built() -> None:
    with pytest.raises(
        ConfigError, match=r"'torchvision:regnet_y_400mf'.*unexpected keyword argument 'wdth'"
    ):
        build_model(settings("torchvision:regnet_y_400mf", wdth=2), (1, 32, 32), 5, seed=0)


def test_torchvision_classifiers_that_fit_keep_their_first_convolution() -> None:
    model = build_model(settings("torchvision:resnet18"), (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_181_642


@pytest.mark.parametrize("name", ["vgg11", "inception_v3", "vit_b_16"])
def test_images_too_small_for_a_classifier_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'torchvision:{name}'.* cannot take inputs of shape \(1, 28, 28\)"
    ):
        build_model(settings(f"torchvision:{name}"), IMAGES, 10, seed=0)
