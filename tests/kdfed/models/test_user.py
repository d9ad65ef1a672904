from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from kdfed.errors import ConfigError
from kdfed.models import build_model, check_model, outputs_of
from kdfed.settings import ModelSettings

IMAGES = (1, 28, 28)


def settings(name: str, **options: bool | int | float | str | tuple[int, ...]) -> ModelSettings:
    return ModelSettings(name=name, options=options)


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


@pytest.mark.parametrize(
    ("signature", "because"),
    [
        ("(input_shape)", "too many positional arguments"),
        ("(*, input_shape, classes, **options)", "too many positional arguments"),
        ("(input_shape, classes, width)", "missing a required argument: 'width'"),
        ("(input_shape, classes, width, **options)", "missing a required argument: 'width'"),
    ],
)
def test_a_callable_of_another_signature_is_shown_with_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, signature: str, because: str
) -> None:
    module = types.ModuleType("own_models")
    exec(f"def net{signature}: raise AssertionError('it was called')", vars(module))
    monkeypatch.setitem(sys.modules, "own_models", module)
    expected = (
        f"expected 'own_models:net' to take (input_shape, classes, **options), got {signature}: {because}"
    )
    assert check_model(settings("own_models:net")) == expected
    with pytest.raises(ConfigError) as caught:
        build_model(settings("own_models:net"), (3,), 2, seed=0)
    assert [mistake.message for mistake in caught.value.mistakes] == [expected]


@pytest.mark.parametrize(
    ("signature", "options"),
    [
        ("()", {}),
        ("(classes=2)", {}),
        ("(width=9, classes=2)", {}),
        ("(width, classes=2)", {"width": 9}),
        ("(width=9, classes=3)", {"classes": 2}),
    ],
)
def test_a_callable_that_is_complete_without_the_data_is_called_with_options_alone(
    monkeypatch: pytest.MonkeyPatch, signature: str, options: dict[str, int]
) -> None:
    module = types.ModuleType("own_models")
    module.calls = []  # type: ignore[attr-defined]
    code = f"def net{signature}:\n    calls.append(dict(locals()))\n    return Linear(4, 2)"
    exec(code, {"Linear": nn.Linear, "calls": module.calls}, vars(module))
    monkeypatch.setitem(sys.modules, "own_models", module)
    chosen = settings("own_models:net", **options)
    assert check_model(chosen) is None
    assert outputs_of(chosen, (4,)) == 2
    assert build_model(chosen, (4,), 2, seed=0).weight.shape == (2, 4)
    for call in module.calls:
        assert {**call, **options} == call
    with pytest.raises(ConfigError, match=r"logits of shape \(1, 3\), got \(1, 2\)"):
        build_model(chosen, (4,), 3, seed=0)


@pytest.mark.parametrize("signature", ["(input_shape, classes)", "(shape=(4,), classes=2)", "(*arguments)"])
def test_a_callable_that_can_take_the_data_is_given_them(
    monkeypatch: pytest.MonkeyPatch, signature: str
) -> None:
    def made(*given: object) -> nn.Module:
        assert given in (((5,), 3), (((5,), 3),))
        return nn.Linear(5, 3)

    module = types.ModuleType("own_models")
    exec(f"def net{signature}:\n    return made(*locals().values())", {"made": made}, vars(module))
    monkeypatch.setitem(sys.modules, "own_models", module)
    assert outputs_of(settings("own_models:net"), (5,)) is None
    assert build_model(settings("own_models:net"), (5,), 3, seed=0).weight.shape == (3, 5)


def test_a_callable_that_takes_any_options_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_models")

    def net(input_shape: tuple[int, ...], classes: int, **options: int) -> nn.Module:
        assert options == {"depth": 3}
        return nn.Linear(*input_shape, classes)

    module.net = net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_models", module)
    assert build_model(settings("own_models:net", depth=3), (4,), 2, seed=0).weight.shape == (2, 4)


def test_a_module_may_have_a_name_that_begins_like_one_of_our_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that begin with ``cnn`` are no model of ours, which takes images alone."""
    module = types.ModuleType("cnn_of_mine")
    module.net = lambda input_shape, classes: nn.Linear(*input_shape, classes)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cnn_of_mine", module)
    assert build_model(settings("cnn_of_mine:net"), (4,), 2, seed=0).weight.shape == (2, 4)
