"""What every training and evaluation needs to know: the task, and how this process computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch

from kdfed.device import exact_convolutions, resolve_device
from kdfed.task import Task

Precision: TypeAlias = Literal["float32", "bfloat16"]
"""Arithmetic of a model's layers."""


class MachineSettings(Protocol):
    """What an experiment, an arm, or a message says of the machine; see :class:`kdfed.config.Arm`."""

    @property
    def device(self) -> str:
        """Name of the device, as :func:`kdfed.device.resolve_device` takes it."""

    @property
    def threads(self) -> int:
        """Intra-op threads."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the participants' training."""


@dataclass(frozen=True)
class Setup:
    """What is learnt, and where and how it is computed.

    Parameters
    ----------
    task
        Whose losses, scores and soft targets are used.
    device
        Where models are trained and evaluated.
    threads
        Intra-op threads of the process, at least 1. Two threads give other bits than one.
    precision
        Arithmetic of the participants' training: ``bfloat16`` runs their layers in bfloat16. Weights, losses
        and everything on the server stay float32.

    Examples
    --------
    >>> from kdfed.task import CLASSIFICATION
    >>> Setup(CLASSIFICATION, torch.device("cpu"), threads=1, precision="float32").device.type
    'cpu'
    """

    task: Task
    device: torch.device
    threads: int
    precision: Precision

    @classmethod
    def of(cls, settings: MachineSettings, task: Task) -> Setup:
        """Return what settings ask for, on this machine.

        Raises
        ------
        DataError
            If this machine has no such device; its ``key`` is ``device``.
        """
        return cls(task, resolve_device(settings.device), settings.threads, settings.precision)

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which layers run in :attr:`precision`."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def settle(self) -> None:
        """Give torch :attr:`threads` intra-op threads, and a GPU's convolutions that repeat."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        exact_convolutions()
