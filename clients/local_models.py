"""What a federated round trains of each participant: the received model, alone or beside a personal one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from clients.store import Store
from kdfed.cohort import state_at
from kdfed.cohort.folded import Stack
from kdfed.local.pairs import ModelPair, pair_state, split_pair
from kdfed.models import State

log = logging.getLogger("kdfed.clients")


@dataclass(frozen=True)
class ReceivedModel:
    """Everybody trains the received model, and uploads what of it is trained.

    Parameters
    ----------
    model
        The architecture.
    arrays
        The received weights that are trained.
    fixed
        Those that are not; they stay here.
    """

    model: nn.Module
    arrays: State
    fixed: State = field(default_factory=dict)

    def start(self, members: Sequence[int]) -> State:
        """Return what all participants start from."""
        return {**self.arrays, **self.fixed} if self.fixed else self.arrays

    def upload(self, members: Sequence[int], trained: Stack) -> Stack:
        """Return what of trained states, each [R, *shape], goes to the server."""
        return {key: trained[key] for key in self.arrays} if self.fixed else trained


@dataclass(frozen=True)
class PairedModels:
    """Everybody trains the received model beside a personal one, which never leaves the participant.

    Parameters
    ----------
    model
        The architectures.
    arrays
        The received weights.
    fresh
        Participant -> its personal model's weights before it was ever trained.
    store
        Where personal models are kept.
    server_round
        The federated round that trains them.
    """

    model: ModelPair
    arrays: State
    fresh: Callable[[int], State]
    store: Store
    server_round: int

    def start(self, members: Sequence[int]) -> list[State]:
        """Return what each participant starts from: the received weights, and its own of an earlier round."""
        kept = {member: self.store.load(member, before=self.server_round) for member in members}
        return [pair_state(self.arrays, own or self.fresh(member)) for member, own in kept.items()]

    def upload(self, members: Sequence[int], trained: Stack) -> Stack:
        """Keep the personal halves of trained states, each [R, *shape]; return the received ones.

        Where a weight is not finite the personal half is not kept: the server leaves the participant out, and
        it goes on from its round before.
        """
        received, personal = split_pair(trained)
        for row, member in enumerate(members):
            if all(bool(values[row].isfinite().all()) for values in trained.values()):
                self.store.save(member, self.server_round, state_at(personal, row))
            else:
                log.warning(
                    "round %d: participant %d diverged, and its personal model is not kept; lower local.lr",
                    self.server_round,
                    member,
                )
        return received
