"""What a local mode owes: the loss of one participant's training in a federated round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from kdfed.local.loss import LocalLoss
from kdfed.settings import ModelSettings, OptimiserSettings
from kdfed.task import Task
from kdfed.thing import Thing

Received: TypeAlias = Callable[[], nn.Module]
"""Returns the received model: called only where it is needed."""


class LocalMode(OptimiserSettings, Thing):
    """How a participant trains in a federated round."""

    mode: str
    """The local mode."""

    @abstractmethod
    def loss(self, received: Received, task: Task) -> LocalLoss:
        """Return what a participant minimises.

        Parameters
        ----------
        received
            Returns the received model, with its weights: called only where it is needed.
        task
            What is learnt.
        """

    def personal_model(self, federated: ModelSettings) -> ModelSettings | None:
        """Return the architecture of a model that each participant keeps from round to round.

        It is trained beside the received one, as a :class:`kdfed.local.pairs.ModelPair`, and stays with its
        participant. None: there is none.

        Parameters
        ----------
        federated
            The received model's architecture.
        """
        return None
