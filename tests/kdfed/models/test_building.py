from __future__ import annotations

import pytest
import torch

from kdfed.backbones import BackboneSettings, Tail, split
from kdfed.errors import ConfigError
from kdfed.models import MODELS, Model, build_model, check_model, state_of
from kdfed.settings import ModelSettings
from tests.small_backbones import TINY

IMAGES = (1, 28, 28)
OURS = [name for name, model in MODELS.items() if isinstance(model, Model)]


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 14), (1, 4, 4)])
def test_a_model_fits_the_input_shape_and_classes(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(settings(name), shape, 7, seed=0)
    assert model.training
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (state_of(build_model(settings("cnn"), IMAGES, 10, seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_images_too_small_for_the_cnn_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cnn'.* cannot take inputs of shape \(1, 3, 3\)"):
        build_model(settings("cnn"), (1, 3, 3), 10, seed=0)


@pytest.mark.parametrize("name", ["cnn", "resnet8", "resnet18", "torchvision:resnet18"])
def test_image_models_refuse_feature_vectors(name: str) -> None:
    with pytest.raises(ConfigError, match=r"needs images .*use 'mlp' for feature vectors"):
        build_model(settings(name), (12,), 2, seed=0)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (settings("cn"), "unknown model 'cn'; did you mean 'cnn'"),
        (settings("transformer"), "unknown model 'transformer'; known: cnn, mlp"),
        (settings("cnn", widht=3), "'cnn' has no option 'widht'; did you mean 'width'"),
        (settings("cnn", width=0), "option 'width' of 'cnn': .*greater than or equal to 1, got 0"),
        (settings("cnn", width="wide"), "option 'width' of 'cnn': .*integer, got 'wide'"),
        (settings("cnn", norm="grop"), "option 'norm' of 'cnn': .*'group'.*got 'grop'"),
        (settings("mlp", hidden=(4, 0)), "option 'hidden' of 'mlp'"),
        (settings("torchvision:resnet81"), "no classifier 'resnet81'; did you mean 'resnet18'"),
        (settings("torchvision:resnet18", depth=3), "does not take the options.*depth"),
        (settings("torchvision:resnet18", weights="DEFAULT"), "option 'weights' is set by kdfed"),
        (settings("no_such_package:model"), "importable package.module:name.*no_such_package"),
        (settings("math:no_such_name"), "importable package.module:name.*no_such_name"),
        (settings("math:pi"), "to be callable, got a float"),
    ],
)
def test_a_wrong_name_or_option_is_explained_without_data(chosen: ModelSettings, message: str) -> None:
    found = check_model(chosen)
    assert found is not None
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(chosen, IMAGES, 10, seed=0)
    assert caught.value.mistakes[0].message == found


@pytest.mark.parametrize("name", [*OURS, "torchvision:resnet18"])
def test_nothing_is_wrong_with_a_known_name(name: str) -> None:
    assert check_model(settings(name)) is None


def test_of_a_model_on_a_backbone_the_part_that_is_trained_is_built() -> None:
    chosen = ModelSettings(backbone=TINY, trainable="last:1")
    cut = split(BackboneSettings.of(chosen))
    model, again = (build_model(chosen, (1, 8, 8), 5, seed=3) for _ in range(2))
    other = build_model(chosen, (1, 8, 8), 5, seed=4)
    assert isinstance(model, Tail)
    assert model(torch.zeros(2, *cut.shape)).shape == (2, 5)
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.equal(model.head.weight, other.head.weight)
    pretrained = state_of(model), state_of(other)
    assert torch.equal(*(state["body.1.0.weight"] for state in pretrained)), "pre-trained, whatever the seed"
    with torch.no_grad():
        model.head.weight.zero_()
    assert bool(again.head.weight.any()), "each is a model of its own"
