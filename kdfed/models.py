"""Models, fitted to the data's input shape and number of classes.

Every model maps inputs [N, *input_shape] to logits [N, classes]. Our own use no batch statistics by default:
BatchNorm mixes the participants' statistics when weights are averaged (Hsieh et al. 2020, arXiv
1910.00189, proposes GroupNorm instead).

A foreign model is tried before it is used. What is averaged are finite real numbers: parameters, and buffers
of floats and of whole numbers, whose means are rounded. A buffer of which no mean can be taken (bool, complex
or half precision, a mask of infinities, huge numbers) must be a constant. It then stays where it is, as if it
were registered with ``persistent=False``: it is neither sent nor saved.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from kdfed.errors import ConfigError, KdfedError, Mistake, one_line, shortened, shown
from kdfed.limits import LARGEST
from kdfed.named import NamedError, blamed, ends_program, load_named, signature_of, told
from kdfed.seeding import torch_seed
from kdfed.settings import ModelSettings, PositiveInt

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
        If the name or an option is wrong, if the model does not fit the input shape (it is run once, in
        evaluation mode, on zeros), or if it cannot be trained or averaged: of every architecture one is
        tried, on batches of two examples and of one.
    """
    message, cause = check_model(settings), None
    if message is None:
        shape = tuple(input_shape)
        try:
            with torch_seed(seed):
                model = _build(settings, shape, classes)
            identity = _Identity(_named(settings.name))
            found = _found(identity, settings.model_dump_json(), shape, classes)
            return found.apply(model)
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
            _check_unscripted(name, model)
            model.eval()
            with torch.no_grad():
                logits = model(torch.zeros(1, *input_shape))
    except KdfedError as error:
        raise _MisfitError(str(error)) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, classes):
        raise _MisfitError(f"{name!r} must map one input to logits of shape (1, {classes}), got {shape}")
    return model.train()


def _check_unscripted(name: str, model: nn.Module) -> None:
    """Refuse what TorchScript made: the parameters of its copies are no leaves, and cannot be trained."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and (module is model or list(module.parameters())):
            raise KdfedError(
                f"expected {shown(name)} to return plain PyTorch layers, got a model of torch.jit"
                f"{f' as its layer {shown(path)}' if path else ''}: copies of it cannot be trained; return "
                "the torch.nn.Module itself, without torch.jit.script or torch.jit.trace"
            )


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


# ----------------------------------------------------------------------------- trying foreign models

_WHOLE = 2**53  # whole numbers up to here are exact in float64, in which they are summed


class _Found(NamedTuple):
    """What trying a model of an architecture showed; see :func:`_found`.

    Parameters
    ----------
    constants
        Buffers that stay where they are.
    """

    constants: tuple[str, ...]

    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare a model of the architecture, in place; return it."""
        for key in self.constants:
            owner, _, name = key.rpartition(".")
            module = model.get_submodule(owner)
            module.register_buffer(name, module.get_buffer(name), persistent=False)
        spare_inputs(model)
        return model


def _named(name: str) -> object:
    """Return what a name stands for now, so that what was found is forgotten with it."""
    return "torchvision" if name.startswith("torchvision:") else _builder(name)


class _Identity:
    """A key that is equal to another of the very same thing, which need not be hashable, and holds it."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


@lru_cache(maxsize=64)
def _found(identity: _Identity, settings: str, input_shape: tuple[int, ...], classes: int) -> _Found:
    """Try an architecture: train it a little, and build it from two seeds.

    Raises
    ------
    _MisfitError
        If it cannot be trained, or its state cannot be averaged, or does not say everything.
    """
    read = ModelSettings.model_validate_json(settings)
    with torch_seed(0):
        model = _build(read, input_shape, classes)
    with torch_seed(1):
        other = _build(read, input_shape, classes)
    constants: tuple[str, ...] = ()
    try:
        with torch_seed(0), blamed(read.name, "expected a model whose state can be read and copied"):
            problem = _problem_with_parameters(model) or _problem_with_entries(model)
            if problem is None:
                constants = tuple(key for key, values in _buffers(model).items() if not _has_mean(values))
                problem = (
                    _problem_with_training(read.name, model, constants, input_shape, classes)
                    or _problem_with_constants(model, other, constants)
                    or _problem_with_state(model, other, constants, input_shape)
                )
    except NamedError as error:
        problem = str(error)
    if problem is not None:
        raise _MisfitError(f"{read.name!r} cannot be trained here: {problem}")
    return _Found(constants)


def _buffers(model: nn.Module) -> State:
    """Return the entries of a model's state that are no parameters."""
    buffers = buffer_keys(model)
    return {key: values for key, values in model.state_dict().items() if key in buffers}


def _has_mean(values: torch.Tensor) -> bool:
    """Tell whether means can be taken of a buffer: it holds real numbers, finite and not too large."""
    if values.dtype in (torch.float32, torch.float64):
        return bool((values.abs() <= LARGEST).all())
    if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
        return False
    return bool(((values <= _WHOLE) & (values >= -_WHOLE)).all())


def _problem_with_parameters(model: nn.Module) -> str | None:
    parameters = dict(model.named_parameters())
    if not any(values.requires_grad and values.numel() for values in parameters.values()):
        return "it has no parameter that is trained; give it one, or leave one with requires_grad"
    for key, values in parameters.items():
        if values.dtype not in (torch.float32, torch.float64):
            kind = str(values.dtype).removeprefix("torch.")
            return (
                f"expected parameters of float32 (or float64), {key} is {kind}; convert it in the builder "
                "(layers in bfloat16 are the experiment's key precision; of complex numbers register the "
                "real and imaginary parts)"
            )
        if not bool((values.abs() <= LARGEST).all()):
            return f"expected finite initial weights, {key} has NaN, infinity or numbers above {LARGEST:g}"
    return None


def _problem_with_entries(model: nn.Module) -> str | None:
    """Say which entries of a state can neither be averaged nor stay where they are."""
    state, buffers = model.state_dict(), dict(model.named_buffers(remove_duplicate=False))
    for key, values in state.items():
        if not isinstance(values, torch.Tensor):
            return (
                f"expected tensors in its state_dict, {key} is {shown(type(values).__name__)}; leave it out "
                "(get_extra_state), or hold its numbers in a buffer"
            )
    for key, values in _buffers(model).items():
        if key not in buffers and not _has_mean(values):
            return (
                f"no mean can be taken of {key} of its state_dict ({_what(values)}), which is no buffer; "
                "register it as one, or leave it out (get_extra_state)"
            )
    return None


def _problem_with_training(
    name: str, model: nn.Module, constants: tuple[str, ...], input_shape: tuple[int, ...], classes: int
) -> str | None:
    """Take the gradients of a copy, on two examples and on one, as an epoch's last batch may hold."""
    for count in (2, 1):
        where = f"in training mode, on a batch of {count},"
        try:
            trial = copy.deepcopy(model).train()
            for norm in batch_norms(trial) if count == 1 else []:
                norm.eval()  # the BatchNorm rule of kdfed.train
            outputs = trial(torch.zeros(count, *input_shape))
            shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            if shape != (count, classes) or outputs.dtype not in (torch.float32, torch.float64):
                got = f"{shape} of {outputs.dtype}" if isinstance(outputs, torch.Tensor) else shape
                return f"{where} it must return float logits of shape ({count}, {classes}), got {got}"
            outputs.square().sum().backward()
            trial.zero_grad()
        except BaseException as error:  # whatever a foreign forward or backward pass raises
            if ends_program(error):
                raise
            advice = (
                "; kdfed joins such a batch to the one before for layers of torch.nn.BatchNorm: use those, "
                "or layers without batch statistics"
            )
            return f"{where} it fails: {told(error, name)}{advice if count == 1 else ''}"
        before, after = model.state_dict(), trial.state_dict()
        if _form(before) != _form(after):
            return f"{where} its state_dict changes its keys, shapes or dtypes; keep them as they are built"
        for key in constants:
            if not _same(before[key], after[key]):
                return (
                    f"buffer {key} changes in training, and no mean can be taken of it "
                    f"({_what(before[key])}); let it hold finite float32 or whole numbers (uint8 for bool)"
                )
    return None


def _problem_with_constants(model: nn.Module, other: nn.Module, constants: tuple[str, ...]) -> str | None:
    mine, theirs = model.state_dict(), other.state_dict()
    for key in constants:
        if key not in theirs or not _same(mine[key], theirs[key]):
            return (
                f"buffer {key} is drawn at random, and no mean can be taken of it ({_what(mine[key])}); draw "
                "it from a fixed seed, or let it hold finite float32 numbers, or whole ones (uint8 for bool)"
            )
    return None


def _problem_with_state(
    model: nn.Module, other: nn.Module, constants: tuple[str, ...], input_shape: tuple[int, ...]
) -> str | None:
    """Say whether two models with one state give different logits: something is not in it."""
    _Found(constants).apply(model)
    _Found(constants).apply(other)
    try:
        load_state(other, state_of(model))
    except KdfedError as error:
        return f"built twice, it has two architectures: {one_line(error, 300)}"
    try:
        first, again, second = (_logits_of_ones(one, input_shape) for one in (model, model, other))
    except Exception:
        return None  # it takes zeros, but no ones
    if _same(first, again) and not torch.allclose(first, second, equal_nan=True):
        return (
            "built from two seeds and given the same state_dict, it gives different logits, so participants "
            "and server would disagree; whatever is drawn at random must be a parameter or a persistent "
            "buffer (no layer in a plain list, no tensor as an attribute), or come from a fixed seed"
        )
    return None


def _logits_of_ones(model: nn.Module, input_shape: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad(), torch_seed(0):
        logits: torch.Tensor = copy.deepcopy(model).eval()(torch.ones(2, *input_shape))
    return logits


def _form(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shapes and dtypes of a state."""
    return {key: (values.shape, values.dtype) for key, values in state.items()}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors hold the same, NaN like NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _what(values: torch.Tensor) -> str:
    if values.dtype in (torch.float32, torch.float64):
        return f"NaN, infinity or numbers above {LARGEST:g}"
    kind = str(values.dtype).removeprefix("torch.")
    return kind if values.is_floating_point() or values.is_complex() or kind == "bool" else "above 2^53"


# ----------------------------------------------------------------------------- inputs


SPARING: set[type[nn.Module]] = {CNN, MLP, ResNet}
"""Models that are known to leave their inputs as they are."""


def spare_inputs(model: nn.Module) -> None:
    """See to it that a model leaves its inputs as they are.

    Others read them afterwards: participants of all arms share a validation set. So a model is given copies
    from now on, whatever it does with them (``x.mul_(2)``, ``ReLU(inplace=True)`` as its first layer): what a
    foreign model writes may depend on the values. So are all that :func:`build_model` returns, but for ours.

    Parameters
    ----------
    model
        On any device. It may get a hook, of which its copies have one, too.
    """
    if type(model) not in SPARING and not has_copies(model):
        model.register_forward_pre_hook(_copied, prepend=True)  # before hooks that write


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, without gradient, that leaves its inputs as they are."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    spare_inputs(copied)
    return copied


def has_copies(model: nn.Module) -> bool:
    """Tell whether a model is given copies of its inputs: see :func:`spare_inputs`."""
    return _copied in model._forward_pre_hooks.values()


def _copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs)


# ----------------------------------------------------------------------------- weights


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers that need two examples in training: see :mod:`kdfed.train` for the rule."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


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
