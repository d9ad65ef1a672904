"""What a transfer set owes: the examples on which teachers and student are compared while distilling.

Those that need no participant's data are drawn, for studies and for the server of a federated run
(:class:`DrawnSet`); the rest are examples that somebody holds (:class:`HeldSet`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import torch
from torch import nn

from kdfed.data import Examples
from kdfed.errors import KdfedError, shown
from kdfed.named import blamed
from kdfed.settings import ModelSettings, PositiveInt
from kdfed.thing import Thing, origin_of


class TransferSet(Thing):
    """On what teachers and student are compared."""

    transfer: str
    """The transfer set."""

    needs_classes: ClassVar[str] = ""
    labelled: ClassVar[bool] = False
    """Whether it has labels of the task."""
    is_public: ClassVar[bool] = False
    """Whether it is the transfer split, on which teachers can be asked for their logits."""
    in_studies_only: ClassVar[bool] = False
    """Whether it holds participants' examples, which the server of a federated run has not."""
    needs_teachers: ClassVar[bool] = False
    """Whether it reads the teachers."""
    is_stored: ClassVar[bool] = False
    """Whether it consists of inputs as data sets store them, so that a backbone can read them."""

    @classmethod
    def refuses(cls, upload: str, labels: bool) -> str | None:
        """Say why it cannot be had with such uploads; None where it can: its rows of the valid combinations.

        Parameters
        ----------
        upload
            ``weights`` or ``logits``.
        labels
            Whether its labels are used.
        """
        if labels and not cls.labelled:
            return "only the public transfer set has labels; set labels: false"
        if upload == "logits" and not cls.is_public:
            return "uploaded logits belong to the public transfer set; set teachers.upload: weights"
        return None

    @abstractmethod
    def examples(self, public: Examples, teachers: Sequence[nn.Module], seed: int) -> Examples:
        """Return the transfer set of a federated run.

        Parameters
        ----------
        public
            The transfer split. Where a model has a backbone and :attr:`is_stored` is set, its images are
            uint8, as they are stored, and so must those be that are returned.
        teachers
            Models, where :attr:`needs_teachers` is set; else there may be none.
        seed
            Derived seed of every draw.

        Raises
        ------
        KdfedError
            If it cannot be made.
        """


class DrawnSet(TransferSet):
    """Examples without labels that need no participant's data."""

    images: PositiveInt | None = None
    """How many examples the transfer set has. Default: as many as the transfer split."""

    @final
    def examples(self, public: Examples, teachers: Sequence[nn.Module], seed: int) -> Examples:
        """Draw as many as are wanted."""
        shape, count = tuple(public.inputs.shape[1:]), self.images or len(public)
        if public.inputs.dtype == torch.uint8:
            return without_labels(torch.from_numpy(self.draw_stored(shape, count, seed)))
        return without_labels(self.draw(shape, count, teachers, seed))

    def draw_stored(self, input_shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
        """Return images as data sets store them, uint8 [count, *input_shape], where :attr:`is_stored` is set.

        Parameters
        ----------
        input_shape
            Shape of one image: (channels, height, width).
        count, seed
            As for :meth:`draw`.
        """
        raise KdfedError(f"transfer {self.transfer!r} has no images that a backbone can read")

    @abstractmethod
    def draw(
        self, input_shape: tuple[int, ...], count: int, teachers: Sequence[nn.Module], seed: int
    ) -> torch.Tensor:
        """Return normalised inputs, float32 [count, *input_shape].

        Parameters
        ----------
        input_shape
            Shape of one input: (channels, height, width) or (features,).
        count
            How many.
        teachers
            As for :meth:`examples`.
        seed
            Derived seed of every draw.
        """


class HeldSet(TransferSet):
    """Examples that somebody holds, with their labels."""

    labelled: ClassVar[bool] = True
    is_stored: ClassVar[bool] = True

    @abstractmethod
    def indices(self, public: np.ndarray, student: np.ndarray, teachers: Sequence[np.ndarray]) -> np.ndarray:
        """Return which examples of the data set it consists of, int64.

        Parameters
        ----------
        public
            Those of the transfer split.
        student
            Those of the student.
        teachers
            Those of each of its teachers.
        """

    def examples(self, public: Examples, teachers: Sequence[nn.Module], seed: int) -> Examples:
        """Return the transfer split; no other examples are the server's."""
        if self.in_studies_only:
            raise KdfedError(
                f"transfer {self.transfer!r} holds participants' examples, which the server of a federated "
                "run has not; use another, or a study"
            )
        return public


def without_labels(inputs: torch.Tensor) -> Examples:
    """Return unlabelled examples; the zeros in place of their labels are never read."""
    return Examples(inputs, torch.zeros(len(inputs), dtype=torch.int64))


def problem_with_backbones(
    chosen: TransferSet | type[TransferSet], models: Sequence[ModelSettings]
) -> str | None:
    """Say why models cannot read a transfer set; None where they can, as all can without a backbone.

    A backbone of which nothing is frozen reads normalised images, like a model without one.
    """
    alike = all(model.reads == models[0].reads for model in models)
    if chosen.is_stored or (alike and (models[0].backbone is None or models[0].trainable == "all")):
        return None
    name = chosen.transfer if isinstance(chosen, TransferSet) else chosen.model_fields["transfer"].default
    return (
        f"expected public or proxy with a frozen backbone, or with one that not all models share, got "
        f"{name!r}, which makes no images as they are stored: choose one of those"
    )


def examples_of(chosen: TransferSet, public: Examples, teachers: Sequence[nn.Module], seed: int) -> Examples:
    """Return a transfer set's examples, whoever made them; see :meth:`TransferSet.examples`.

    Raises
    ------
    KdfedError
        If it cannot be made, or what was made does not fit the task.
    """
    expected = (
        f"transfer set {chosen.transfer!r}: expected kdfed.data.Examples with finite inputs of shape (N, "
        f"{', '.join(map(str, public.inputs.shape[1:]))}) and N labels"
    )
    with blamed(origin_of(chosen), expected):
        made = chosen.examples(public, teachers, seed)
        if not isinstance(made, Examples):
            raise TypeError(f"returned {shown(made)}")
        if made.inputs.dtype != public.inputs.dtype and public.inputs.dtype == torch.uint8:
            raise TypeError(f"returned {made.inputs.dtype}, where images are read as they are stored")
        if made.inputs.shape[1:] != public.inputs.shape[1:] or not 0 < len(made.inputs) == len(made.labels):
            raise ValueError(f"returned shapes {tuple(made.inputs.shape)} and {tuple(made.labels.shape)}")
        if not bool(torch.isfinite(made.inputs).all()):
            raise ValueError("returned infinity or NaN")
    return made
