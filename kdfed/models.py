"""Models, fitted to the data's input shape and number of classes.

Every model maps inputs [N, *input_shape] to logits [N, classes]. Our own use no batch statistics by default:
BatchNorm mixes the participants' statistics when weights are averaged (Hsieh et al. 2020, arXiv
1910.00189, proposes GroupNorm instead).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional

from kdfed.config import ModelSettings, PositiveInt
from kdfed.errors import ConfigError, KdfedError, Mistake, shortened, shown
from kdfed.named import blamed, load_named, signature_of
from kdfed.seeding import torch_seed

State: TypeAlias = dict[str, torch.Tensor]
Builder: TypeAlias = Callable[..., nn.Module]

MODELS: dict[str, str] = {
    "cnn": "two convolutions and a linear layer, for small images (options: width, norm)",
    "mlp": "fully connected layers, for features and small images (options: hidden)",
    "resnet8": "residual network with GroupNorm, 3 blocks, for images of about 32 pixels (options: width)",
    "resnet18": "residual network with GroupNorm, 8 blocks, 3x3 stem (options: width)",
    "torchvision:NAME": "any torchvision classifier without pre-trained weights, e.g. torchvision:resnet18",
    "package.module:name": "your own callable (input_shape, classes, **options) -> torch.nn.Module",
}
"""What can stand in ``model.name``."""


# ----------------------------------------------------------------------------- our own models


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(_groups(channels), channels)
    return nn.Identity()


def _groups(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)


class CNN(nn.Module):
    """Convolution 5x5, pool, convolution 3x3, pool, linear.

    Parameters
    ----------
    input_shape
        (channels, height, width).
    classes
        Number of logits.
    width
        Channels of the first convolution; the second has twice as many.
    norm
        Normalisation after each convolution.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        width: PositiveInt = 8,
        norm: Literal["none", "group", "batch"] = "none",
    ) -> None:
        super().__init__()
        channels, height, wide = input_shape
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.norm1 = _norm(norm, width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm2 = _norm(norm, 2 * width)
        self.head = nn.Linear(2 * width * (height // 4) * (wide // 4), classes)
        self.to(memory_format=torch.channels_last)  # the layout in memory: steps take half the time on CPUs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        # Pool before ReLU: the same as after it, on a quarter of the values.
        hidden = functional.relu(functional.max_pool2d(self.norm1(self.conv1(inputs)), 2))
        hidden = functional.relu(functional.max_pool2d(self.norm2(self.conv2(hidden)), 2))
        return self.head(hidden.flatten(1))  # type: ignore[no-any-return]


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them.

    Parameters
    ----------
    input_shape
        Any shape; inputs are flattened.
    classes
        Number of logits.
    hidden
        Width of each hidden layer.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, *, hidden: tuple[PositiveInt, ...] = (64,)
    ) -> None:
        width = int(torch.Size(input_shape).numel())
        layers: list[nn.Module] = [nn.Flatten()]
        for following in hidden:
            layers += [nn.Linear(width, following), nn.ReLU()]
            width = following
        super().__init__(*layers, nn.Linear(width, classes))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2), with GroupNorm."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm("group", channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm("group", channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            convolution = nn.Conv2d(before, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, _norm("group", channels))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet(nn.Module):
    """Residual network with GroupNorm and a 3x3 stem (He et al. 2016; Wu and He 2018).

    Parameters
    ----------
    input_shape
        (channels, height, width).
    classes
        Number of logits.
    width
        Channels of the first stage; they double from stage to stage.
    stages
        Blocks of each stage.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, *, width: int, stages: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.norm = _norm("group", width)
        blocks: list[nn.Module] = []
        before = width
        for stage, count in enumerate(stages):
            for index in range(count):
                channels = width * 2**stage
                blocks.append(_Block(before, channels, stride=2 if stage and not index else 1))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        hidden = self.blocks(functional.relu(self.norm(self.stem(inputs))))
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


def resnet8(input_shape: tuple[int, ...], classes: int, *, width: PositiveInt = 16) -> nn.Module:
    """Return the ResNet of 6n + 2 layers with n = 1 (He et al. 2016, section 4.2)."""
    return ResNet(input_shape, classes, width=width, stages=(1, 1, 1))


def resnet18(input_shape: tuple[int, ...], classes: int, *, width: PositiveInt = 64) -> nn.Module:
    """Return ResNet-18 with a 3x3 stem in place of the 7x7 one."""
    return ResNet(input_shape, classes, width=width, stages=(2, 2, 2, 2))


BUILDERS: dict[str, Builder] = {"cnn": CNN, "mlp": MLP, "resnet8": resnet8, "resnet18": resnet18}
"""Our own models by name: called with (input_shape, classes, **options)."""

_IMAGES_ONLY = ("cnn", "resnet8", "resnet18", "torchvision:")


# ----------------------------------------------------------------------------- building and checking


def build_model(settings: ModelSettings, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Build a model with freshly drawn weights.

    Parameters
    ----------
    settings
        Name and options.
    input_shape
        Shape of one input: (channels, height, width) or (features,).
    classes
        Number of logits, at least 1.
    seed
        Derived seed of the initial weights, see :func:`kdfed.seeding.derive`.

    Returns
    -------
    torch.nn.Module
        A model on the CPU, in training mode, that maps [N, *input_shape] to logits [N, classes].

    Raises
    ------
    ConfigError
        If the name or an option is wrong, or if the model does not fit the input shape: it is run once, in
        evaluation mode, on zeros.
    """
    message, cause = check_model(settings), None
    if message is None:
        with torch_seed(seed):
            try:
                return _build(settings, tuple(input_shape), classes)
            except _MisfitError as misfit:
                message, cause = str(misfit), misfit
    raise ConfigError("model", [Mistake("model", message)]) from cause


class _MisfitError(Exception):
    """Why a model does not fit the data."""


def _build(settings: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    name = settings.name
    if name.startswith(_IMAGES_ONLY) and len(input_shape) != 3:
        raise _MisfitError(
            f"{name!r} needs images (channels, height, width), got inputs of shape {input_shape}; "
            "use 'mlp' for feature vectors"
        )
    expected = (
        f"{shown(name)} with options {shown(settings.options)} cannot take inputs of shape {input_shape}; "
        "use another model, other options, or larger images (data.shape)"
    )
    try:
        with blamed(name, expected):  # whatever a foreign constructor or a too small image raises
            if name.startswith("torchvision:"):
                model = _torchvision_model(name, input_shape[0], classes, settings.options)
            else:
                model = _builder(name)(input_shape, classes, **settings.options)
            if not isinstance(model, nn.Module):
                raise TypeError(f"expected a torch.nn.Module, got {shown(model)}")
            model.eval()
            with torch.no_grad():
                logits = model(torch.zeros(1, *input_shape))
    except KdfedError as error:
        raise _MisfitError(str(error)) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, classes):
        raise _MisfitError(f"{name!r} must map one input to logits of shape (1, {classes}), got {shape}")
    return model.train()


def _torchvision_model(name: str, channels: int, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a torchvision classifier, and let its first convolution take the channels of the data."""
    from torchvision.models import get_model

    extra: dict[str, Any] = {}
    short = name.removeprefix("torchvision:")
    if short in ("googlenet", "inception_v3"):  # their training output is a tuple with auxiliary logits
        extra = {"aux_logits": False, "init_weights": True}
    model: nn.Module = get_model(short, weights=None, num_classes=classes, **{**options, **extra})
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        first.in_channels = channels
        first.weight = nn.Parameter(torch.empty(first.out_channels, channels, *first.kernel_size))
        first.reset_parameters()
    return model


def check_model(settings: ModelSettings) -> str | None:
    """Say what is wrong with a model's name or options, without data.

    Parameters
    ----------
    settings
        Name and options.

    Returns
    -------
    str or None
        None when nothing is wrong, else what was expected, what arrived and a near match.
    """
    name = settings.name
    try:
        if name.startswith("torchvision:"):
            return _check_torchvision(name, settings.options)
        return _check_options(name, _builder(name), settings.options)
    except KdfedError as error:
        return str(error)


def _builder(name: str) -> Builder:
    """Return the callable that a name stands for."""
    if name in BUILDERS:
        return BUILDERS[name]
    if ":" not in name:
        raise KdfedError(f"unknown model {shown(name)}{_near(name, MODELS)}")
    return load_named(name)


def _check_options(name: str, builder: Builder, options: Mapping[str, Any]) -> str | None:
    signature = signature_of(name, builder)
    parameters = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    known = list(parameters)[2:]  # after input_shape and classes
    types = (
        get_type_hints(
            getattr(builder, "__init__", builder) if inspect.isclass(builder) else builder,
            include_extras=True,
        )
        if name in BUILDERS
        else {}
    )
    for option, value in options.items():
        if option not in known:
            return f"{name!r} has no option {shown(option)}{_near(option, known)}"
        try:
            TypeAdapter(types.get(option, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            return f"option {option!r} of {name!r}: {error.errors()[0]['msg']}, got {shown(value)}"
    try:
        signature.bind((), 0, **options)
    except TypeError as error:
        return f"expected {name!r} to take (input_shape, classes, **options), got {signature}: {error}"
    return None


def _check_torchvision(name: str, options: Mapping[str, Any]) -> str | None:
    try:
        from torchvision import models
    except ImportError:
        return f"{name!r} needs torchvision; install kdfed[sim]"
    known = models.list_models(module=models)
    short = name.removeprefix("torchvision:")
    if short not in known:
        return f"torchvision has no classifier {shown(short)}{_near(short, known)}"
    for option in ("num_classes", "weights", "aux_logits"):
        if option in options:
            return f"{name!r}: option {option!r} is set by kdfed; remove it"
    try:
        with torch.device("meta"):  # no memory, no drawing of weights
            _torchvision_model(name, 3, 2, options)
    except Exception as error:
        return f"{name!r} does not take the options {shown(dict(options))}: {shortened(str(error))}"
    return None


def _near(word: str, known: Iterable[str]) -> str:
    names = list(known)
    match = difflib.get_close_matches(word, names, n=1)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names)}" if names else "; it has no options"


# ----------------------------------------------------------------------------- weights


def state_of(model: nn.Module) -> State:
    """Return a copy of a model's weights and buffers: detached, on the CPU, in ``state_dict`` order."""
    return {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()
    }


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy weights and buffers into a model, in place.

    Raises
    ------
    KdfedError
        If a key is missing or unexpected, or has another shape; every one is named.
    """
    own = model.state_dict()
    wrong = [f"missing {key}" for key in own if key not in state]
    wrong += [f"unexpected {key}" for key in state if key not in own]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise KdfedError(
            f"these weights belong to another model than {type(model).__name__}: {'; '.join(wrong)}; "
            "use weights of the same model, options, input shape and classes"
        )
    model.load_state_dict(dict(state))


def buffer_keys(model: nn.Module) -> frozenset[str]:
    """Return the state entries that are not parameters: BatchNorm's statistics and counters."""
    return frozenset(model.state_dict()) - {
        name for name, _ in model.named_parameters(remove_duplicate=False)
    }
