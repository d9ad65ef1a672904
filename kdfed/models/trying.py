"""Trying a foreign model before it is used.

What is averaged are finite real numbers: parameters, and buffers of floats and of whole numbers, whose means
are rounded. A buffer of which no mean can be taken (bool, complex or half precision, a mask of infinities,
huge numbers) must be a constant. It then stays where it is, as if it were registered with
``persistent=False``: it is neither sent nor saved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from kdfed.errors import KdfedError, one_line, shown
from kdfed.fixed_norm import batch_norms
from kdfed.inputs import spare_inputs
from kdfed.limits import LARGEST
from kdfed.models.weights import State, buffer_keys, load_state, state_of
from kdfed.named import NamedError, blamed, ends_program, text_of_error
from kdfed.seeding import torch_seed

_WHOLE = 2**53  # whole numbers up to here are exact in float64, in which they are summed


class Found(NamedTuple):
    """What trying a model of an architecture showed; see :func:`try_models`.

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


class MisfitError(KdfedError):
    """Why a model does not fit the data, or cannot be trained or averaged."""


def try_models(
    name: str, model: nn.Module, other: nn.Module, input_shape: tuple[int, ...], classes: int
) -> Found:
    """Try an architecture: train it a little, and compare what was built from two seeds.

    Parameters
    ----------
    name
        What the user named.
    model, other
        Built from two seeds, in training mode. They are used up.
    input_shape
        Shape of one input.
    classes
        Number of logits.

    Raises
    ------
    MisfitError
        If it cannot be trained, or its state cannot be averaged, or does not say everything.
    """
    constants: tuple[str, ...] = ()
    try:
        with torch_seed(0), blamed(name, "expected a model whose state can be read and copied"):
            problem = _problem_with_parameters(model) or _problem_with_entries(model)
            if problem is None:
                constants = tuple(key for key, values in _buffers(model).items() if not _has_mean(values))
                problem = (
                    _problem_with_training(name, model, constants, input_shape, classes)
                    or _problem_with_constants(model, other, constants)
                    or _problem_with_state(model, other, constants, input_shape)
                )
    except NamedError as error:
        problem = str(error)
    if problem is not None:
        raise MisfitError(f"{name!r} cannot be trained here: {problem}")
    return Found(constants)


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
            tried = copy.deepcopy(model).train()
            for norm in batch_norms(tried) if count == 1 else []:
                norm.eval()  # the BatchNorm rule of kdfed.train
            outputs = tried(torch.zeros(count, *input_shape))
            shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            if shape != (count, classes) or outputs.dtype not in (torch.float32, torch.float64):
                got = f"{shape} of {outputs.dtype}" if isinstance(outputs, torch.Tensor) else shape
                return f"{where} it must return float logits of shape ({count}, {classes}), got {got}"
            outputs.square().sum().backward()
            tried.zero_grad()
        except BaseException as error:  # whatever a foreign forward or backward pass raises
            if ends_program(error):
                raise
            advice = (
                "; kdfed joins such a batch to the one before for layers of torch.nn.BatchNorm: use those, "
                "or layers without batch statistics"
            )
            return f"{where} it fails: {text_of_error(error, name)}{advice if count == 1 else ''}"
        before, after = model.state_dict(), tried.state_dict()
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
    Found(constants).apply(model)
    Found(constants).apply(other)
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
