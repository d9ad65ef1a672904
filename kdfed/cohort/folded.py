"""Participants folded into channels: the registry of layers, and how each is folded.

A model is traced once with ``torch.fx``. Each node of its graph is then run for B participants at once, on
one of four layouts:

======== ================= ==============================================================
image    [N, B*C, H, W]    channels-last in memory, as grouped convolutions want it, except where
                           convolutions are matrix products: on a GPU in float32
vector   [B, N, F]         as batched matrix products want it
own      [B, N, C, H, W]   everybody's images as they arrive; a layer makes one of the above
shared   [N, ...]          the same inputs for everybody, not yet touched by a parameter
======== ================= ==============================================================

Layers and functions that act on each channel, or each value, alone run unchanged. What is not in the
registry is not folded.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import fx, nn
from torch.nn import functional

from kdfed.fixed_norm import FixedBatchNorm
from kdfed.models import has_copies

Stack: TypeAlias = dict[str, torch.Tensor]
"""The states of B models of one architecture: each entry [B, *shape]."""


class NotFoldableError(Exception):
    """Why a model cannot be folded."""


@dataclass(frozen=True)
class Folded:
    """A value on its way through a folded model; see the layouts above."""

    data: torch.Tensor
    layout: Literal["image", "vector", "own", "shared"]


def own_inputs(inputs_BN: torch.Tensor) -> Folded:
    """Return inputs [B, N, ...], each participant's own, as they enter a folded model."""
    return Folded(inputs_BN, "own" if inputs_BN.ndim == 5 else "vector")


def _as_image(inputs_BN: torch.Tensor) -> Folded:
    """Fold images [B, N, C, H, W] into channels [N, B*C, H, W]."""
    participants, count, channels, height, width = inputs_BN.shape
    if _by_products(inputs_BN):
        return Folded(inputs_BN.transpose(0, 1).flatten(1, 2), "image")
    folded = inputs_BN.permute(1, 3, 4, 0, 2).contiguous()  # as it lies in memory: N, H, W, B, C
    image = folded.view(count, height, width, participants * channels).permute(0, 3, 1, 2)
    return Folded(image, "image")


def _by_products(values: torch.Tensor) -> bool:
    """Tell whether convolutions are batched matrix products here: on a GPU, and in no lower precision."""
    return values.is_cuda and not torch.is_autocast_enabled("cuda")


# ----------------------------------------------------------------------------- the registry

Layer: TypeAlias = Callable[["_Run", Any, str, Folded], Folded]
"""(run, module, its name, input) -> output."""


def _conv(run: _Run, module: nn.Conv2d, name: str, value: Folded) -> Folded:
    weight, bias = run.parameters(name)
    groups = module.groups
    if value.layout != "shared" or groups > 1:
        value, groups = run.image(value), groups * run.participants
    data, stride = value.data, module.stride
    if module.kernel_size == (1, 1) and module.padding in ((0, 0), 0, "valid"):
        # oneDNN writes past its buffers in the backward pass of grouped 1x1 convolutions with a stride.
        data, stride = data[:, :, :: stride[0], :: stride[1]], (1, 1)
    plain = groups == run.participants and module.dilation == (1, 1) and module.padding != "same"
    if plain and _by_products(data):
        padding = (0, 0) if module.padding == "valid" else module.padding
        return Folded(stacked_conv(data, weight, bias, stride, cast(tuple[int, ...], padding)), "image")
    image = functional.conv2d(
        data,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        stride,
        module.padding,
        module.dilation,
        groups,
    )
    return Folded(image, "image")


def stacked_conv(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> torch.Tensor:
    """Convolve everybody's images by one batched matrix product.

    In float32 proper, cuDNN starts several kernels for each group of a convolution.

    Parameters
    ----------
    images
        [N, B*C, H, W].
    weight, bias
        [B, G, C, k, l], and [B, G] or None.
    stride, padding
        Down and across.

    Returns
    -------
    torch.Tensor
        [N, B*G, H', W'].
    """
    kernel, count = weight.shape[3:], len(images)
    height, width = (
        (size + 2 * pad - side) // step + 1
        for size, pad, side, step in zip(images.shape[2:], padding, kernel, stride, strict=True)
    )
    columns = _Columns.apply(images, len(weight), kernel, stride, padding)
    if bias is None:
        product = torch.bmm(weight.flatten(2), columns)
    else:
        product = torch.baddbmm(bias.unsqueeze(2), weight.flatten(2), columns)
    return product.view(*product.shape[:2], count, height, width).permute(2, 0, 1, 3, 4).flatten(1, 2)


class _Columns(torch.autograd.Function):
    """Images [N, B*C, H, W] as columns [B, C*K, N*L]: the K pixels of each of L windows.

    ``functional.unfold`` would start a kernel for each image; its backward pass, which is used, starts one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        participants: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> torch.Tensor:
        ctx.how = images.shape, kernel, stride, padding
        padded = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        own = windows.view(len(images), participants, -1, *windows.shape[2:])  # N, B, C, H', W', k, l
        return own.permute(1, 2, 5, 6, 0, 3, 4).flatten(4).flatten(1, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        shape, kernel, stride, padding = ctx.how
        rows = gradient.reshape(*gradient.shape[:2], shape[0], -1).permute(2, 0, 1, 3).flatten(1, 2)
        images = functional.fold(rows, shape[2:], kernel, padding=padding, stride=stride)
        return images, None, None, None, None


def _linear(run: _Run, module: nn.Linear, name: str, value: Folded) -> Folded:
    weight, bias = run.parameters(name)
    if value.layout == "shared":
        if value.data.ndim != 2:
            raise NotFoldableError(f"{name}: a linear layer on inputs of shape {tuple(value.data.shape)}")
        product = (value.data @ weight.flatten(0, 1).T).view(-1, *weight.shape[:2]).transpose(0, 1)
        return Folded(product if bias is None else product + bias.unsqueeze(1), "vector")
    if value.layout != "vector":
        raise NotFoldableError(f"{name}: a linear layer on an image")
    data, device = value.data, value.data.device.type
    if torch.is_autocast_enabled(device):  # the product's backward pass runs outside of it
        dtype = torch.get_autocast_dtype(device)
        data, weight = data.to(dtype), weight.to(dtype)
    logits: torch.Tensor = _StackedProduct.apply(data, weight)
    return Folded(logits if bias is None else logits + bias.unsqueeze(1), "vector")


class _StackedProduct(torch.autograd.Function):
    """Inputs [B, N, F] times weights [B, G, F], giving [B, N, G].

    ``torch.bmm`` leaves the weights' gradient transposed in memory; an optimiser's step on such a pair takes
    ten times as long as one on tensors that lie alike.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return torch.bmm(inputs, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        wants_inputs, wants_weight = ctx.needs_input_grad
        return (
            torch.bmm(gradient, weight) if wants_inputs else None,
            torch.bmm(gradient.transpose(1, 2), inputs) if wants_weight else None,
        )


def _group_norm(run: _Run, module: nn.GroupNorm, name: str, value: Folded) -> Folded:
    weight, bias = run.parameters(name)
    image = run.image(value)
    normed = functional.group_norm(
        image.data,
        run.participants * module.num_groups,
        None if weight is None else weight.flatten(),
        None if bias is None else bias.flatten(),
        module.eps,
    )
    return Folded(normed, "image")


def _batch_norm(run: _Run, module: nn.modules.batchnorm._BatchNorm, name: str, value: Folded) -> Folded:
    """Batch statistics are taken per channel, and each channel belongs to one participant."""
    weight, bias = run.parameters(name)
    wants_image = isinstance(module, nn.BatchNorm2d)
    if wants_image:
        data = run.image(value).data
    else:
        vector = run.vector(value).data
        data = vector.transpose(0, 1).flatten(1)
    mean, variance = (run.state.get(f"{name}.{key}") for key in ("running_mean", "running_var"))
    batch = run.norm_training or mean is None
    momentum = module.momentum
    if run.norm_training and mean is not None:
        counter = run.state[f"{name}.num_batches_tracked"]
        counter += 1
        if momentum is None:
            momentum = 1 / float(counter[0])
    normed = functional.batch_norm(
        data,
        None if mean is None else mean.flatten(),  # a view: the statistics are updated in place
        None if variance is None else variance.flatten(),
        None if weight is None else weight.flatten(),
        None if bias is None else bias.flatten(),
        batch,
        momentum if momentum is not None else 0.0,
        module.eps,
    )
    if wants_image:
        return Folded(normed, "image")
    return Folded(_split(normed, run.participants), "vector")


def _fixed_norm(run: _Run, module: FixedBatchNorm, name: str, value: Folded) -> Folded:
    """Normalise by statistics that are everybody's, and no part of a state."""
    weight, bias = run.parameters(name)
    mean, variance = run.model.statistics[name]
    image = run.image(value)
    normed = functional.batch_norm(
        image.data,
        mean.repeat(run.participants),
        variance.repeat(run.participants),
        None if weight is None else weight.flatten(),
        None if bias is None else bias.flatten(),
        eps=module.eps,
    )
    return Folded(normed, "image")


def _flatten(run: _Run, value: Folded, start: int, end: int) -> Folded:
    if start != 1 or end != -1:
        raise NotFoldableError(f"flatten from {start} to {end}")
    if value.layout == "shared":
        return Folded(value.data.flatten(1), "shared")
    return run.vector(value)


def _by_channel(run: _Run, module: nn.Module, name: str, value: Folded) -> Folded:
    return Folded(module(value.data), value.layout)


def _images_by_channel(run: _Run, module: nn.Module, name: str, value: Folded) -> Folded:
    value = run.pixels(value, f"{name}: {type(module).__name__}")
    return Folded(module(value.data), value.layout)


def _unchanged(run: _Run, module: nn.Module, name: str, value: Folded) -> Folded:
    return value  # dropout of nothing: any other is refused when the graph is checked


_ELEMENTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d)

LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    FixedBatchNorm: _fixed_norm,
    nn.Flatten: lambda run, module, name, value: _flatten(run, value, module.start_dim, module.end_dim),
    nn.Dropout: _unchanged,
    nn.Dropout2d: _unchanged,
    **dict.fromkeys(_ELEMENTWISE_MODULES, _by_channel),
    **dict.fromkeys(_POOLS, _images_by_channel),
}
"""Layers that can be folded."""

_ELEMENTWISE = {
    functional.relu, torch.relu, functional.leaky_relu, functional.elu, functional.gelu, functional.silu,
    torch.tanh, torch.sigmoid, functional.hardswish, functional.relu6, functional.softplus,
}  # fmt: skip
_POOLING = {
    functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.max_pool2d,
}  # fmt: skip
_SUMS = {operator.add, operator.iadd, torch.add}
_METHODS = {"relu", "tanh", "sigmoid", "contiguous"}


# ----------------------------------------------------------------------------- running a graph


class _Tracer(fx.Tracer):
    """Takes every registered layer whole, as it does those of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)


class FoldedModel:
    """A model's graph, checked against the registry.

    Parameters
    ----------
    model
        Of any mode and device; only its structure is read, and the statistics of its fixed BatchNorm layers.

    Raises
    ------
    NotFoldableError
        If the model cannot be traced, or holds a layer or function that is not registered.
    """

    def __init__(self, model: nn.Module) -> None:
        traced = copy.deepcopy(model)  # a forward pass may leave what it was traced with on its module
        try:
            self.graph = _Tracer().trace(traced)
        except Exception as error:
            raise NotFoldableError(f"it cannot be traced: {error}") from error
        self.modules = dict(traced.named_modules())
        for module in model.modules():
            if module._forward_hooks or len(module._forward_pre_hooks) > has_copies(module):
                raise NotFoldableError("it has hooks on its forward pass")
        for node in self.graph.nodes:
            self._check(node)
        self._writes = any(map(_in_place, [*self.modules.values(), *self.graph.nodes]))
        self.statistics = {
            name: (module.mean, module.variance)
            for name, module in self.modules.items()
            if isinstance(module, FixedBatchNorm)
        }
        traced.to("meta")  # no weights are held: they come with every call

    def _check(self, node: fx.Node) -> None:
        target = node.target
        if node.op == "call_module":
            module = self.modules[str(target)]
            if type(module) not in LAYERS:
                raise NotFoldableError(f"{target}: {type(module).__name__} is not registered")
            if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
                raise NotFoldableError(f"{target}: padding mode {module.padding_mode}")
            if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p > 0:
                raise NotFoldableError(f"{target}: dropout draws its own numbers")
        elif node.op == "call_function":
            if target not in _ELEMENTWISE | _POOLING | _SUMS | {torch.flatten, torch.mean, torch.cat}:
                raise NotFoldableError(
                    f"the function {getattr(target, '__name__', target)} is not registered"
                )
        elif node.op == "call_method":
            if target not in _METHODS | {"flatten", "mean", "add", "add_"}:
                raise NotFoldableError(f"the method {target} is not registered")
        elif node.op == "get_attr":
            raise NotFoldableError(f"{target}: a parameter used outside a layer")

    def __call__(
        self,
        state: Mapping[str, torch.Tensor],
        value: Folded,
        participants: int,
        *,
        norm_training: bool = False,
    ) -> torch.Tensor:
        """Run B models.

        Parameters
        ----------
        state
            Parameters and buffers, each [B, *shape]. BatchNorm's buffers are changed in place when
            ``norm_training`` is set.
        value
            Inputs: everybody's own, as :func:`own_inputs` returns them, or shared ones [N, ...].
        participants
            B.
        norm_training
            BatchNorm layers use the batch's statistics.

        Returns
        -------
        torch.Tensor
            Logits [B, N, C].
        """
        if self._writes:  # others read the inputs afterwards
            value = Folded(value.data.clone(), value.layout)
        return _Run(self, state, participants, norm_training).forward(value)


def _in_place(part: nn.Module | fx.Node) -> bool:
    """Tell whether a registered layer or function writes into its input."""
    if isinstance(part, nn.Module):
        return bool(getattr(part, "inplace", False))
    return part.op == "call_function" and any(value is True for value in (*part.args, *part.kwargs.values()))


class _Run:
    """One pass of B models."""

    def __init__(
        self, model: FoldedModel, state: Mapping[str, torch.Tensor], participants: int, norm_training: bool
    ) -> None:
        self.model, self.state = model, state
        self.participants, self.norm_training = participants, norm_training

    def parameters(self, name: str) -> tuple[Any, Any]:
        """Return a layer's weight and bias, [B, ...] each, None where it has none."""
        return self.state.get(f"{name}.weight"), self.state.get(f"{name}.bias")

    def image(self, value: Folded) -> Folded:
        """Return a value in the image layout."""
        if value.layout == "image":
            return value
        if value.layout == "own":
            return _as_image(value.data)
        if value.layout == "shared" and value.data.ndim == 4:
            return Folded(value.data.repeat(1, self.participants, 1, 1), "image")
        raise NotFoldableError("an image layer on a vector")

    def vector(self, value: Folded) -> Folded:
        """Return a value in the vector layout; images are flattened in the order C, H, W."""
        if value.layout == "vector":
            return value
        if value.layout == "own":
            return Folded(value.data.flatten(2), "vector")
        if value.layout == "shared":
            return Folded(value.data.flatten(1).expand(self.participants, -1, -1), "vector")
        return Folded(_split(_with_gradient_alike(value.data), self.participants).flatten(2), "vector")

    def pixels(self, value: Folded, user: str) -> Folded:
        """Return a value as images of four dimensions, [N, channels, H, W]; ``user`` is who needs them."""
        if value.layout == "own":
            return self.image(value)
        if value.data.ndim != 4:
            raise NotFoldableError(f"{user} on a vector")
        return value

    def forward(self, inputs: Folded) -> torch.Tensor:
        values: dict[fx.Node, Any] = {}
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                values[node] = inputs
            elif node.op == "output":
                (result,) = node.args
                value: Folded = values[result]
                if value.layout != "vector" or value.data.ndim != 3:
                    raise NotFoldableError("its output is no vector of logits")
                return value.data
            else:
                arguments = fx.map_arg(node.args, lambda arg: values[arg])
                keywords = fx.map_arg(node.kwargs, lambda arg: values[arg])
                values[node] = self._call(node, arguments, keywords)
        raise NotFoldableError("its graph has no output")

    def _call(self, node: fx.Node, arguments: Any, keywords: Any) -> Folded:
        target: Any = node.target
        first, rest = arguments[0], arguments[1:]
        if node.op == "call_module":
            module = self.model.modules[target]
            return LAYERS[type(module)](self, module, target, first)
        if target in _SUMS or target in ("add", "add_"):
            return self._sum(first, rest[0])
        if target in (torch.flatten, "flatten"):
            return _flatten(self, first, *_named(rest, keywords, start_dim=0, end_dim=-1))
        if target in (torch.mean, "mean"):
            return self._mean(first, *_named(rest, keywords, dim=None, keepdim=False))
        if target is torch.cat:
            return self._cat(first, *_named(rest, keywords, dim=0))
        if target == "contiguous":
            return cast(Folded, first)  # each layout lies as its layers want it
        if node.op == "call_method":
            return Folded(getattr(first.data, target)(*rest, **keywords), first.layout)
        if target in _POOLING:
            first = self.pixels(first, target.__name__)
        return Folded(target(first.data, *rest, **keywords), first.layout)

    def _sum(self, one: Any, other: Any) -> Folded:
        if not isinstance(one, Folded) or not isinstance(other, Folded):
            raise NotFoldableError("a sum with a number")
        if one.layout != other.layout:
            convert = self.image if "image" in (one.layout, other.layout) else self.vector
            one, other = convert(one), convert(other)
        return Folded(one.data + other.data, one.layout)

    def _cat(self, values: Any, dim: int) -> Folded:
        if any(value.layout == "image" or value.data.ndim > 3 for value in values) or dim not in (1, -1):
            raise NotFoldableError("torch.cat of anything but the features of vectors")
        return Folded(torch.cat([self.vector(value).data for value in values], dim=2), "vector")

    def _mean(self, value: Folded, dim: Any, keepdim: bool) -> Folded:
        dims = dim if isinstance(dim, tuple | list) else (dim,)
        value = self.pixels(value, "the mean")
        if {d % 4 if isinstance(d, int) else d for d in dims} != {2, 3}:
            raise NotFoldableError(f"the mean over {dim}")
        data = value.data if value.layout == "shared" else _with_gradient_alike(value.data)
        means = data.mean((2, 3), keepdim=keepdim)
        return Folded(means, value.layout) if keepdim else self._pooled(means, value.layout)

    def _pooled(self, means: torch.Tensor, layout: str) -> Folded:
        if layout == "shared":
            return Folded(means, "shared")
        return Folded(_split(means, self.participants), "vector")


def _with_gradient_alike(image: torch.Tensor) -> torch.Tensor:
    """Have an image's gradient arrive as the image lies in memory.

    Where a layout ends, the gradient comes back in another one, and the layers before it would each read it
    across memory: ReLU's backward pass takes twenty times as long.
    """
    if image.requires_grad:
        alike = _contiguous if _by_products(image) else _channels_last
        image.register_hook(alike)  # type: ignore[no-untyped-call]
    return image


def _contiguous(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.contiguous()


def _channels_last(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _split(values: torch.Tensor, participants: int) -> torch.Tensor:
    """Unfold channels: [N, B*C, ...] -> [B, N, C, ...]."""
    shape = (len(values), participants, -1, *values.shape[2:])
    return values.reshape(shape).transpose(0, 1)


def _named(rest: Any, keywords: Mapping[str, Any], **defaults: Any) -> list[Any]:
    """Return arguments that may be given by position or by name, in the order of their defaults."""
    given = dict(zip(defaults, rest, strict=False)) | dict(keywords)
    return [given.get(name, default) for name, default in defaults.items()]
