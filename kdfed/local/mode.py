"""What a local mode owes: the loss of one participant's training in a federated round."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from kdfed.local.loss import LocalLoss
from kdfed.settings import ModelSettings, OptimiserSettings, Settings
from kdfed.task import Task
from kdfed.thing import Thing

Received: TypeAlias = Callable[[], nn.Module]
"""Returns the received model: called only where it is needed."""


class ExtraSettings(Settings):
    """More local training in the first rounds: both keys are 0, or neither."""

    epochs: Annotated[int, Field(ge=0, le=10**5)] = 0
    """Passes over the examples in each of those rounds, beside ``local.epochs``."""
    rounds: Annotated[int, Field(ge=0, le=10**6)] = 0
    """How many rounds, from the first on."""

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if (self.epochs == 0) != (self.rounds == 0):
            raise ValueError(
                "expected both epochs and rounds, or neither: one has no effect without the other"
            )
        return self


class LocalMode(OptimiserSettings, Thing):
    """How a participant trains in a federated round."""

    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one round to the next, in (0, 1]: round r has lr decay^(r - 1)."""
    extra: ExtraSettings = ExtraSettings()
    """More passes in the first rounds."""
    trainable: Literal["all", "body", "head"] = "all"
    """What a round trains, and what travels: all weights, those below the model's last linear layer, or that
    layer alone. The rest is sent to a participant once, and again where the server has changed it."""
    mode: str
    """The local mode."""

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if (key, value) != ("trainable", "all")}

    def at_round(self, number: int) -> Self:
        r"""Return the settings of one round: those that a participant is sent.

        The learning rate is :math:`\mathrm{lr} \cdot \mathrm{decay}^{r - 1}`; ``extra`` is among the epochs.

        Parameters
        ----------
        number
            The federated round r, from 1 on.

        Returns
        -------
        LocalMode
            Of the same mode, whose ``decay`` is 1 and whose ``extra`` is nothing.
        """
        more = self.extra.epochs if number <= self.extra.rounds else 0
        rate = max(self.lr * self.decay ** (number - 1), sys.float_info.min)  # a rate is above 0
        return self.model_copy(
            update={"lr": rate, "epochs": self.epochs + more, "decay": 1.0, "extra": ExtraSettings()}
        )

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
