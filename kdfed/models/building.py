"""Building a model by its name and options, and saying what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from kdfed.backbones import BackboneSettings, Cut, check_backbone, split
from kdfed.errors import ConfigError, DataError, KdfedError, Mistake, shown
from kdfed.models.model import Builder, Model, near
from kdfed.models.registry import MODELS, find_model
from kdfed.models.trying import Found, MisfitError, try_models
from kdfed.named import blamed, signature_of
from kdfed.seeding import torch_seed
from kdfed.settings import ModelSettings


def build_model(settings: ModelSettings, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Build a model with freshly drawn weights.

    Parameters
    ----------
    settings
        Name and options.
    input_shape
        Shape of one input as it is stored: (channels, height, width) or (features,).
    classes
        Number of logits, at least 1.
    seed
        Derived seed of the initial weights, see :func:`kdfed.seeding.derive`.

    Returns
    -------
    torch.nn.Module
        A model on the CPU, in training mode, that maps [N, *input_shape] to logits [N, classes]; of a model
        with a backbone the part that is trained, which maps activations at the cut.

    Raises
    ------
    ConfigError
        If the name or an option is wrong, if the model does not fit the input shape (it is run once, in
        evaluation mode, on zeros), or if it cannot be trained or averaged: of every architecture one is
        tried, on batches of two examples and of one. Of a backbone also where it has no weights here.
    """
    message, cause = check_model(settings), None
    if message is None:
        shape = tuple(input_shape)
        try:
            if settings.backbone is None:
                kind = find_model(settings.name)
            else:
                cut = _cut(settings, shape)
                kind, shape, settings = _tail_of(cut), cut.shape, ModelSettings(name=settings.backbone)
            with torch_seed(seed):
                model = _build(kind, settings, shape, classes)
            return _found(_Same(kind), settings.model_dump_json(), shape, classes).apply(model)
        except MisfitError as misfit:
            message, cause = str(misfit), misfit
    raise ConfigError("model", [Mistake("model", message)]) from cause


def outputs_of(settings: ModelSettings, input_shape: tuple[int, ...]) -> int | None:
    """Return the number of logits of a model that needs no data to be built, as ``Net()``.

    Parameters
    ----------
    settings
        Name and options.
    input_shape
        Shape of one input.

    Returns
    -------
    int or None
        None of a model that is built for as many classes as there are.

    Raises
    ------
    ConfigError
        If the name or an option is wrong, or the model does not map [1, *input_shape] to [1, classes].
    """
    message, cause = check_model(settings), None
    if message is None and settings.backbone is not None:
        return None
    if message is None:
        kind = find_model(settings.name)
        if _takes_data(signature_of(settings.name, kind.build), settings.options):
            return None
        try:
            with torch_seed(0):
                _, found = _tried(kind, settings, tuple(input_shape), 0)
            if isinstance(found, tuple) and len(found) == 2 and found[0] == 1:
                return found[1]
            message = f"{settings.name!r} must map one input to logits of shape (1, classes), got {found}"
        except MisfitError as misfit:
            message, cause = str(misfit), misfit
    raise ConfigError("model", [Mistake("model", message)]) from cause


def _build(kind: Model, settings: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    model, found = _tried(kind, settings, input_shape, classes)
    if found != (1, classes):
        raise MisfitError(
            f"{settings.name!r} must map one input to logits of shape (1, {classes}), got {found}"
        )
    return model.train()


def _tried(
    kind: Model, settings: ModelSettings, input_shape: tuple[int, ...], classes: int
) -> tuple[nn.Module, tuple[int, ...] | str]:
    """Return a new model, and the shape of its output for one input, or the name of what else it returns."""
    name = settings.name
    if kind.images_only and len(input_shape) != 3:
        raise MisfitError(
            f"{name!r} needs images (channels, height, width), got inputs of shape {input_shape}; "
            "use 'mlp' for feature vectors"
        )
    expected = (
        f"{shown(name)} with options {shown(settings.options)} cannot take inputs of shape {input_shape}; "
        "use another model, other options, or larger images (data.shape)"
    )
    try:
        with blamed(name, expected):  # whatever a foreign constructor or a too small image raises
            needed = _takes_data(signature_of(name, kind.build), settings.options)
            data = (input_shape, classes) if needed else ()
            model: object = kind.build(*data, **settings.options)
            if not isinstance(model, nn.Module):
                raise TypeError(f"expected a torch.nn.Module, got {shown(model)}")
            _check_unscripted(name, model)
            model.eval()
            with torch.no_grad():
                logits = model(torch.zeros(1, *input_shape))
    except KdfedError as error:
        raise MisfitError(str(error)) from error
    return model, tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__


def _takes_data(signature: inspect.Signature, options: Mapping[str, Any]) -> bool:
    """Tell whether a builder is given (input_shape, classes); one that is complete without them is not.

    So ``Net()``, and ``Net(width=32, dropout=0.5)`` whose parameters all have a default.
    """
    if not _binds(signature, **options):
        return True
    if not _binds(signature, (), 0, **options):
        return False
    first = next(iter(signature.parameters.values()))
    return first.kind is first.VAR_POSITIONAL or "shape" in first.name


def _binds(signature: inspect.Signature, *arguments: Any, **options: Any) -> bool:
    try:
        signature.bind(*arguments, **options)
    except TypeError:
        return False
    return True


def _check_unscripted(name: str, model: nn.Module) -> None:
    """Refuse what TorchScript made: the parameters of its copies are no leaves, and cannot be trained."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and (module is model or list(module.parameters())):
            raise KdfedError(
                f"expected {shown(name)} to return plain PyTorch layers, got a model of torch.jit"
                f"{f' as its layer {shown(path)}' if path else ''}: copies of it cannot be trained; return "
                "the torch.nn.Module itself, without torch.jit.script or torch.jit.trace"
            )


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
    if settings.backbone is not None:
        return check_backbone(BackboneSettings.of(settings))
    try:
        kind = find_model(name)
        if kind.problem is not None:
            return kind.problem(settings.options)
        return _problem_with_options(name, kind.build, settings.options)
    except KdfedError as error:
        return str(error)


def _problem_with_options(name: str, builder: Builder, options: Mapping[str, Any]) -> str | None:
    """Compare options with a signature, of ours with its types too."""
    signature = signature_of(name, builder)
    parameters = signature.parameters
    needed = _takes_data(signature, options)
    known = list(parameters)[2 if needed else 0 :]  # after input_shape and classes
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    types = (
        get_type_hints(
            getattr(builder, "__init__", builder) if inspect.isclass(builder) else builder,
            include_extras=True,
        )
        if name in MODELS
        else {}
    )
    for option, value in options.items():
        if option not in known and not takes_any:
            return f"{name!r} has no option {shown(option)}{near(option, known)}"
        try:
            TypeAdapter(types.get(option, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            return f"option {option!r} of {name!r}: {error.errors()[0]['msg']}, got {shown(value)}"
    try:
        signature.bind(*((), 0) if needed else (), **options)
    except TypeError as error:
        return f"expected {name!r} to take (input_shape, classes, **options), got {signature}: {error}"
    return None


def _cut(settings: ModelSettings, input_shape: tuple[int, ...]) -> Cut:
    """Return a model's backbone, cut in two.

    Raises
    ------
    ConfigError
        If the data are no images that it takes, or it cannot be had; the key says what has to change.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        message = (
            f"a backbone needs images of 1 or 3 channels, got inputs of shape {input_shape}; use a model "
            "without a backbone"
        )
        raise ConfigError("model", [Mistake("model.backbone", message)])
    try:
        return split(BackboneSettings.of(settings))
    except DataError as error:
        raise ConfigError("model", [Mistake(error.key, str(error))]) from error


@lru_cache(maxsize=16)
def _tail_of(cut: Cut) -> Model:
    """Return what builds the part above a cut: of one cut always the same."""

    def build(input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return cut.tail(classes)

    return Model(build, "the trained part of a backbone")


class _Same:
    """A key that is equal to another of the very same builder, which need not be hashable, and holds it."""

    def __init__(self, kind: Model) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.kind.build is other.kind.build

    def __hash__(self) -> int:
        return id(self.kind.build)


@lru_cache(maxsize=64)
def _found(same: _Same, settings: str, input_shape: tuple[int, ...], classes: int) -> Found:
    """Try an architecture once: it is forgotten with its builder."""
    read = ModelSettings.model_validate_json(settings)
    with torch_seed(0):
        model = _build(same.kind, read, input_shape, classes)
    with torch_seed(1):
        other = _build(same.kind, read, input_shape, classes)
    return try_models(read.name, model, other, input_shape, classes)
