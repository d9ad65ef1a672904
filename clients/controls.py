"""What participants keep and do for SCAFFOLD: their control variates; see ``strategies/scaffold.py``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clients.store import Store
from kdfed.cohort.training import Trained
from kdfed.controls import mean_gradient
from kdfed.messages import Train
from kdfed.models import State

log = logging.getLogger("kdfed.clients")


@dataclass(frozen=True)
class Controls:
    """The control variates of a message's participants.

    Parameters
    ----------
    asked
        With the server's control variate, and what is trained from where.
    store
        Where participants keep theirs.
    """

    asked: Train
    store: Store

    def pulls(self, members: Sequence[int]) -> list[State]:
        """Return what is added to each participant's gradients: the server's control variate less its own."""
        common = self.asked.control
        kept = [self.store.load(member, before=self.asked.server_round) for member in members]
        return [
            common if own is None else {key: value - own[key] for key, value in common.items()}
            for own in kept
        ]

    def keep(self, members: Sequence[int], trained: Trained, pulls: Sequence[State]) -> None:
        """Keep the control variates that a training leaves; not of a participant that diverged.

        Parameters
        ----------
        members
            Whose training it was, in the order of ``trained``.
        trained
            What it left.
        pulls
            Of each of them: c less its own. Its next one is where it went, less that.
        """
        asked, local = self.asked, self.asked.local
        for row, (member, result, pull) in enumerate(zip(members, trained.results, pulls, strict=True)):
            state = {key: values[row] for key, values in trained.states.items()}
            way = mean_gradient(asked.arrays, state, asked.control, local.lr, local.momentum, result.steps)
            own = {key: value - pull[key] for key, value in way.items()}
            if all(bool(torch.isfinite(value).all()) for value in own.values()):
                self.store.save(member, asked.server_round, own)
            else:
                log.warning(
                    "round %d: participant %d diverged, and its control variate is not kept; lower local.lr",
                    asked.server_round,
                    member,
                )
