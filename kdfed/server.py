"""What a strategy's settings must provide; strategies are on the server side, which kdfed never imports."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdfed.errors import KdfedError
from kdfed.limits import most_steps
from kdfed.model_average import ModelAverage
from kdfed.settings import Fraction, OptimiserSettings, PositiveInt, Seconds, Settings
from kdfed.thing import Refusal, Thing


class DeadlineSettings(Settings):
    """Seconds until a missing reply counts as late."""

    hello: Seconds = 120.0
    """For the first contact."""
    teachers: Seconds = 3600.0
    """For the teacher exchange."""
    train: Seconds = 3600.0
    """For one federated round."""


class ServerBase(Thing):
    """What every strategy has."""

    sampled: PositiveInt | Fraction | Literal["all"] = "all"
    """Participants sampled a round: a number, a share in (0, 1), or all."""
    minimum: PositiveInt = 1
    """A round goes on while at least this many participants answered."""
    cohort_size: PositiveInt = 8
    """At most this many participants are trained together in one call. Part of the experiment: another
    value agrees to float tolerance, not to the bit."""
    max_examples: PositiveInt = 10_000_000
    """A participant that says it has more examples is left out; so is one that says more than at hello."""
    update_bound: Annotated[float, Field(gt=0, le=1e60)] = 100.0
    """A participant is left out whose weights differ from those that it was sent by a norm of more than this,
    times the norm of those sent or 1, whichever is larger. Its buffers (BatchNorm's statistics) may differ by
    the square of it, and by 1e8 times their norm in any case. Statistics for a closed-form head may be of
    features that are this many times as large as those of the server's own examples, or as 1."""
    deadlines: DeadlineSettings = DeadlineSettings()
    """When a missing reply counts as late."""
    quorum: PositiveInt | None = None
    """Devices with which a run starts; the others are greeted before each round. Default: all."""
    enough: PositiveInt | None = None
    """Replies of devices with which a round can end: the others have ``grace`` seconds more. Default: a
    round waits for everybody until its deadline."""
    grace: Seconds | None = None
    """Seconds that the others still have once there is a quorum, or enough have answered. Default: 30."""
    average: ModelAverage | None = None
    """Evaluate and deliver the mean of several rounds' models, see [Late rounds](methods/late.md). Default:
    each round's own."""
    strategy: str
    """The strategy."""

    needs_classes: ClassVar[str] = ""
    whole_models: ClassVar[bool] = False
    """Whether it makes use of the participants' whole models, or of none of their weights."""
    uses_server_labels: ClassVar[bool | None] = None
    """Whether it fits or chooses with labels of the server's validation or transfer examples. False: its
    ``build`` is not shown them. None, for who does not say: it is shown them, and all count as used."""

    def server_labels(self) -> frozenset[str]:
        """Return of which of the server's splits it fits or chooses with labels: validation, transfer."""
        return frozenset() if self.uses_server_labels is False else frozenset(["validation", "transfer"])

    def drawn(self, participants: int) -> int:
        """Return how many of so many participants a round samples, at least one."""
        if self.sampled == "all":
            return participants
        return self.sampled if isinstance(self.sampled, int) else max(1, round(self.sampled * participants))

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse more participants or rounds than there are; who refuses more yields from this first."""
        participants, drawn = arm.partition.participants, self.drawn(arm.partition.participants)
        if isinstance(self.sampled, int) and self.sampled > participants:
            yield Refusal(
                ".sampled",
                f"expected at most the {participants} participants, got {self.sampled}",
                ("partition.participants",),
            )
        if self.minimum > drawn:
            yield Refusal(
                ".minimum",
                f"expected at most the {drawn} participants sampled, got {self.minimum}",
                (".sampled", "partition.participants"),
            )
        yield from self._refusals_of_devices(participants, drawn)
        first, horizon = 1 if self.average is None else self.average.from_, arm.rounds.horizon
        if isinstance(horizon, int) and 1 <= horizon < first:
            yield Refusal(
                ".average.from",
                f"expected a round up to the last, {horizon} (rounds.horizon), got {first}; lower it",
                ("rounds.horizon",),
            )

    def _refusals_of_devices(self, participants: int, drawn: int) -> Iterator[Refusal]:
        """Refuse numbers of devices that can never be there, or never matter."""
        if self.quorum is not None and not self.minimum <= self.quorum <= participants:
            yield Refusal(
                ".quorum",
                f"expected from {self.minimum} (server.minimum) to the {participants} participants, got "
                f"{self.quorum}",
                (".minimum", "partition.participants"),
            )
        if self.enough is not None and not self.minimum <= self.enough <= drawn:
            yield Refusal(
                ".enough",
                f"expected from {self.minimum} (server.minimum) to the {drawn} participants sampled, got "
                f"{self.enough}",
                (".minimum", ".sampled", "partition.participants"),
            )
        if self.grace is not None and self.quorum is None and self.enough is None:
            yield Refusal(
                ".grace",
                "has no effect without quorum and enough; set one or remove it",
                (".quorum", ".enough"),
            )

    @property
    def grace_seconds(self) -> float:
        """What ``grace`` stands for."""
        return 30.0 if self.grace is None else self.grace

    @abstractmethod
    def build(self, config: Any) -> Any:
        """Return the Flower strategy.

        Parameters
        ----------
        config
            The ``strategies.arm_config.ArmConfig`` of the arm. Its ``flower`` are the options that every
            strategy of Flower's gets: kdfed samples participants, and evaluates on the server.

        Returns
        -------
        flwr.serverapp.strategy.Strategy
            Of Flower's message API.
        """

    def most_steps(self, local: OptimiserSettings, examples: int, public: int) -> int:
        """Return the most optimiser steps of a participant in a round.

        Parameters
        ----------
        local
            Local training.
        examples
            How many examples the participant has.
        public
            How many examples the transfer split has.
        """
        return most_steps(local.epochs, local.batch_size, examples)


class GivenStrategy(ServerBase):
    """Of a strategy of Flower's that is not named, but given as an object."""

    strategy: Literal["given"] = "given"
    """The strategy."""

    uses_server_labels: ClassVar[bool | None] = False

    def build(self, config: Any) -> Any:
        """Refuse to build what was not given.

        Raises
        ------
        KdfedError
            Always.
        """
        raise KdfedError(
            "expected server settings that name a strategy, or one given to PreConsolidation, got neither"
        )
