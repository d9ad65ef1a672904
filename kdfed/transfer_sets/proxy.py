"""The transfer set ``proxy``: images of another data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from kdfed.data import PreparedData, prepare
from kdfed.errors import DataError, shown
from kdfed.settings import DataSettings
from kdfed.thing import Refusal
from kdfed.transfer_sets.transfer_set import DrawnSet


class ProxySet(DrawnSet):
    """Images of another data set, resized; labels never used."""

    transfer: Literal["proxy"] = "proxy"
    """The transfer set."""
    proxy: DataSettings
    """The other data set: its images are resized to the task's, its labels never used."""

    is_stored: ClassVar[bool] = True

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for another source, and for nothing that has no effect."""
        if self.proxy.source == arm.data.source:
            got = shown(self.proxy.source)
            yield Refusal(
                ".proxy.source",
                f"expected another source than that of data, got {got}: participants hold its images",
                ("data.source",),
            )
        if self.proxy.shape is not None:
            yield Refusal(
                ".proxy.shape", "has no effect: a proxy's images are resized to the task's; remove it"
            )

    def misfits(self, arm: Any, data: PreparedData) -> Iterator[Refusal]:
        """Draw its images once."""
        try:
            self.draw(data.input_shape, self.images or len(data.splits.transfer), (), seed=0)
        except DataError as error:
            yield Refusal(f".{error.key}", str(error))

    def draw(
        self, input_shape: tuple[int, ...], count: int, teachers: Sequence[nn.Module], seed: int
    ) -> torch.Tensor:
        """Draw images, without replacement, from what the other data set holds out for no test.

        They are normalised in their own way.

        Raises
        ------
        DataError
            If the task has no images, the other data set cannot be read or resized, or it has too few.
        """
        data, chosen = self._drawn(input_shape, count, seed)
        return data.examples(chosen).inputs

    def draw_stored(self, input_shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
        """Draw the same images as :meth:`draw`, as they are stored."""
        data, chosen = self._drawn(input_shape, count, seed)
        return data.dataset.inputs[chosen]

    def _drawn(self, input_shape: tuple[int, ...], count: int, seed: int) -> tuple[PreparedData, np.ndarray]:
        """Return the other data set, and which of its examples were drawn."""
        if len(input_shape) != 3:
            raise DataError(
                f"a proxy needs images, got inputs of shape {input_shape}; use noise or generated", "proxy"
            )
        try:
            data = prepare(DataSettings.model_validate({**self.proxy.model_dump(), "shape": input_shape}))
        except DataError as error:
            if error.key == "data.shape":
                raise DataError(
                    f"a proxy needs images that can be converted to {list(input_shape)}, those of "
                    f"{self.proxy.source!r} cannot; name another data set ({error})",
                    "proxy.source",
                ) from error
            raise DataError(str(error), f"proxy{error.key.removeprefix('data')}") from error
        indices = np.concatenate([data.splits.transfer, data.splits.train])
        if len(indices) < count:
            raise DataError(
                f"expected {count} images of the proxy, got {len(indices)}; lower images", "proxy"
            )
        return data, indices[np.random.default_rng(seed).permutation(len(indices))[:count]]
