"""The keys of a model that has a backbone."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from kdfed.settings import BatchNormMode, ModelSettings, Options, Pixels, Settings, Text, Trainable, Weights


class BackboneSettings(Settings):
    """A pre-trained network, and how much of it is trained."""

    backbone: Text
    """``efficientnet-lite0``, ``-lite1``, ``-lite2``, ``torchvision:NAME`` or ``package.module:name``."""
    options: Options = Field(default={})
    """Keyword arguments of the backbone; checked against its signature."""
    weights: Weights = "installed"
    """``installed``: what is on this machine already, never the network. ``download``: fetched once by
    torchvision. ``file:PATH``: a state dict, ``.safetensors`` or ``.pt``/``.pth``; a pickle of anything else
    is refused and never executed."""
    trainable: Trainable = "head"
    """What is trained: ``head``, a linear layer on frozen features; ``last:N``, the last N stages too;
    ``all``, every stage."""
    batch_norm: BatchNormMode | None = None
    """Of the trained stages' BatchNorm: ``frozen`` statistics, those that came with the weights, or those of
    each batch, ``train``. Default: frozen where there are such layers of torch's."""
    size: Pixels | None = None
    """Height and width, in pixels, that images are resized to. Default: the backbone's own."""

    @classmethod
    def of(cls, model: ModelSettings) -> Self:
        """Return those of a model that has a backbone."""
        assert model.backbone is not None, model
        return cls(
            backbone=model.backbone,
            options=model.options,
            weights=model.weights,
            trainable=model.trainable,
            batch_norm=model.batch_norm,
            size=model.size,
        )
