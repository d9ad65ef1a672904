"""The keys of a model that has a backbone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdfed.settings import Settings, Text

Trainable = Annotated[str, Field(pattern=r"^(head|all|last:[1-9][0-9]{0,2})$")]
Weights = Annotated[str, Field(pattern=r"^(installed|download|file:.+)$", max_length=4096)]
Pixels = Annotated[int, Field(ge=1, le=4096)]


class BackboneSettings(Settings):
    """A pre-trained network, and how much of it is trained."""

    backbone: Text
    """``efficientnet-lite0``, ``torchvision:NAME`` or ``package.module:name``."""
    options: dict[Text, bool | int | float | Text | tuple[int, ...]] = Field(default={})
    """Keyword arguments of the backbone; checked against its signature."""
    weights: Weights = "installed"
    """``installed``: what is on this machine already, never the network. ``download``: fetched once by
    torchvision. ``file:PATH``: a state dict, ``.safetensors`` or ``.pt``/``.pth``; a pickle of anything else
    is refused and never executed."""
    trainable: Trainable = "head"
    """What is trained: ``head``, a linear layer on frozen features; ``last:N``, the last N stages too;
    ``all``, every stage."""
    size: Pixels | None = None
    """Height and width, in pixels, that images are resized to. Default: the backbone's own."""
