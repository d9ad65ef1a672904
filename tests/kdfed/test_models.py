from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from kdfed.errors import ConfigError, KdfedError
from kdfed.models import (
    BUILDERS,
    MODELS,
    buffer_keys,
    build_model,
    check_model,
    load_state,
    state_of,
)
from kdfed.settings import ModelSettings

IMAGES = (1, 28, 28)


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


def test_every_model_of_ours_has_a_line_in_the_list() -> None:
    assert set(BUILDERS) < set(MODELS)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 14), (1, 4, 4)])
def test_a_model_fits_the_input_shape_and_classes(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(settings(name), shape, 7, seed=0)
    assert model.training
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_the_cnn_has_the_parameters_that_its_layers_add_up_to() -> None:
    """1*8*25+8 = 208; 8*16*9+16 = 1168; 16*7*7*10+10 = 7850; together 9226."""
    model = build_model(settings("cnn"), IMAGES, 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 9226


def test_the_cnn_agrees_with_its_layers_one_by_one() -> None:
    model = build_model(settings("cnn", norm="group"), (3, 12, 12), 4, seed=0)
    inputs = torch.randn(5, 3, 12, 12)
    slow = nn.Sequential(
        model.conv1, model.norm1, nn.ReLU(), nn.MaxPool2d(2),
        model.conv2, model.norm2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), model.head,
    )  # fmt: skip
    torch.testing.assert_close(model(inputs), slow(inputs))


def test_resnet18_is_the_usual_one_but_for_stem_and_norms() -> None:
    """torchvision's ResNet-18 for 10 classes has 11,181,642 parameters (norms have the same number);
    its 7x7 stem has 64*3*49 = 9408, ours 64*3*9 = 1728.
    """
    model = build_model(settings("resnet18"), (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_181_642 - 9408 + 1728


def test_our_resnets_hold_no_batch_statistics() -> None:
    assert buffer_keys(build_model(settings("resnet8"), (3, 32, 32), 10, seed=0)) == frozenset()


def test_mlp_takes_features_and_a_list_of_widths() -> None:
    model = build_model(settings("mlp", hidden=(5, 6)), (4,), 3, seed=0)
    assert [tuple(value.shape) for value in state_of(model).values()] == [
        (5, 4),
        (5,),
        (6, 5),
        (6,),
        (3, 6),
        (3,),
    ]


def test_mlp_without_hidden_layers_is_linear() -> None:
    model = build_model(settings("mlp", hidden=()), (4,), 3, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 15


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (state_of(build_model(settings("cnn"), IMAGES, 10, seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5"]
)
def test_torchvision_classifiers_take_grey_images_and_train(name: str) -> None:
    model = build_model(settings(f"torchvision:{name}"), (1, 32, 32), 5, seed=0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_torchvision_classifiers_that_fit_keep_their_first_convolution() -> None:
    model = build_model(settings("torchvision:resnet18"), (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_181_642


def test_images_too_small_for_the_cnn_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cnn'.* cannot take inputs of shape \(1, 3, 3\)"):
        build_model(settings("cnn"), (1, 3, 3), 10, seed=0)


@pytest.mark.parametrize("name", ["vgg11", "inception_v3", "vit_b_16"])
def test_images_too_small_for_a_classifier_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'torchvision:{name}'.* cannot take inputs of shape \(1, 28, 28\)"
    ):
        build_model(settings(f"torchvision:{name}"), IMAGES, 10, seed=0)


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


@pytest.mark.parametrize("name", [*BUILDERS, "torchvision:resnet18"])
def test_nothing_is_wrong_with_a_known_name(name: str) -> None:
    assert check_model(settings(name)) is None


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("own_models")

    def net(input_shape: tuple[int, ...], classes: int, extra: int = 0) -> nn.Module:
        width = int(torch.Size(input_shape).numel())
        return nn.Sequential(nn.Flatten(), nn.Linear(width, classes + extra))

    module.net = net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_models", module)
    return "own_models:net"


def test_your_own_callable_is_built(own_module: str) -> None:
    model = build_model(settings(own_module), IMAGES, 10, seed=0)
    assert model(torch.zeros(2, *IMAGES)).shape == (2, 10)


def test_your_own_callable_must_return_logits_of_the_classes(own_module: str) -> None:
    with pytest.raises(ConfigError, match=r"logits of shape \(1, 10\), got \(1, 13\)"):
        build_model(settings(own_module, extra=3), IMAGES, 10, seed=0)


def test_your_own_callable_refuses_options_that_it_does_not_have(own_module: str) -> None:
    assert (
        check_model(settings(own_module, extr=1))
        == f"'{own_module}' has no option 'extr'; did you mean 'extra'?"
    )


def test_a_state_is_a_copy_that_loads_back() -> None:
    first = build_model(settings("cnn", norm="batch"), IMAGES, 10, seed=0)
    second = build_model(settings("cnn", norm="batch"), IMAGES, 10, seed=1)
    state = state_of(first)
    assert list(state) == list(first.state_dict())
    load_state(second, state)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert all(torch.equal(state[key], value) for key, value in state_of(second).items())
    assert not any(value.requires_grad for value in state.values())


def test_a_state_of_another_model_is_refused_by_name() -> None:
    model = build_model(settings("mlp", hidden=(4,)), (3,), 2, seed=0)
    state = state_of(model)
    state["1.weight"] = torch.zeros(4, 5)
    state["9.bias"] = state.pop("3.bias")
    with pytest.raises(
        KdfedError, match=r"missing 3.bias; unexpected 9.bias; 1.weight has shape \(4, 5\), exp"
    ):
        load_state(model, state)


def test_buffers_are_what_batch_norm_counts() -> None:
    model = build_model(settings("cnn", norm="batch"), IMAGES, 10, seed=0)
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert buffer_keys(model) == {f"norm{layer}.{name}" for layer in (1, 2) for name in names}
