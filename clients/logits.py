"""One round of an exchange of logits, as participants see it: distil the consensus, train, keep, answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from clients.participants import Participants
from clients.store import Store
from kdfed.cohort import Trained, predict_stack, state_at, train_cohort
from kdfed.consensus import digest_loss, public_indices
from kdfed.data import Examples
from kdfed.errors import ParticipantError
from kdfed.local import PLAIN
from kdfed.messages import QueryLogits
from kdfed.models import State
from kdfed.seeding import derive_many
from kdfed.train import TrainResult


@dataclass(frozen=True)
class LogitsRound:
    """What one message asks of its participants.

    Parameters
    ----------
    asked
        The message.
    model
        The participants' architecture.
    fresh
        Participant -> its weights before it was ever trained. None for those that have answered before: they
        kept a model.
    participants
        Whose examples there are.
    store
        Where they keep their models.
    agreed
        The last consensus with its public examples; None before the first.
    public
        Public examples of this round as the model reads them, [N, ...].
    """

    asked: QueryLogits
    model: nn.Module
    fresh: Callable[[int], State] | None
    participants: Participants
    store: Store
    agreed: Examples | None
    public: torch.Tensor

    @classmethod
    def of(
        cls,
        asked: QueryLogits,
        model: nn.Module,
        fresh: Callable[[int], State],
        participants: Participants,
    ) -> LogitsRound:
        """Prepare for a message; public examples that came with it are kept.

        Raises
        ------
        ParticipantError
            If public examples neither came nor are kept.
        """
        store, first = participants.store, asked.inputs is not None
        if asked.inputs is not None:
            store.save_public(asked.public_sha256, asked.inputs)
        stored = store.load_public(asked.public_sha256)
        if stored is None:
            raise ParticipantError(
                "expected the public examples of an earlier message in the store, found none; "
                "start the run anew"
            )

        def public(of_round: int) -> torch.Tensor:
            indices = public_indices(asked.seed, of_round, len(stored), asked.images)
            if asked.model.backbone is None:
                return participants.inputs(stored.numpy()[indices], asked.model)
            return participants.inputs(stored.numpy(), asked.model)[indices]  # computed once for all rounds

        agreed = None
        if asked.consensus is not None:
            of_round, consensus = asked.consensus
            agreed = Examples(public(of_round), consensus.float())
        initial = (lambda member: asked.arrays) if asked.arrays else fresh
        return cls(
            asked,
            model,
            initial if first else None,
            participants,
            store,
            agreed,
            public(asked.server_round),
        )

    def run(self, members: Sequence[int]) -> Iterator[tuple[Trained, torch.Tensor]]:
        """Do a cohort's work.

        Yields
        ------
        tuple
            Some of the participants, trained, and their logits on this round's public examples, float16
            [R, N, C]. Steps are those of distilling the consensus and of training.
        """
        asked, setup = self.asked, self.participants.setup
        states = [self._model_of(member) for member in members]
        steps = [0] * len(members)
        if self.agreed is not None:
            states, steps = self._digested(members, states, self.agreed)
        examples, sizes = self.participants.gather(members, asked.model)
        seeds = derive_many(asked.seed, "train", asked.server_round, members)
        for trained in train_cohort(
            self.model, states, examples, sizes, asked.local, PLAIN, seeds, setup=setup
        ):
            logits = predict_stack(self.model, trained.states, self.public).to(torch.float16)
            for row, index in enumerate(trained.indices):
                if bool(logits[row].isfinite().all()):  # otherwise the server leaves this round's work out
                    self.store.save(members[index], asked.server_round, state_at(trained.states, row))
            results = [
                TrainResult(result.loss, result.steps + steps[index], result.examples)
                for index, result in zip(trained.indices, trained.results, strict=True)
            ]
            yield Trained(trained.states, trained.indices, results), logits

    def _model_of(self, member: int) -> State:
        kept = self.store.load(member, before=self.asked.server_round)
        if kept is not None:
            return kept
        if self.fresh is None:
            raise ParticipantError(
                f"expected the model of participant {member}, which answered before, in the store, found "
                "none; start the run anew"
            )
        return self.fresh(member)

    def _digested(
        self, members: Sequence[int], states: list[State], agreed: Examples
    ) -> tuple[list[State], list[int]]:
        """Return the participants' states, trained towards the consensus, and the steps that it took."""
        asked = self.asked
        digested, steps = list(states), [0] * len(members)
        for trained in train_cohort(
            self.model,
            states,
            agreed,
            [len(agreed)] * len(members),
            asked.digest,
            digest_loss(asked.strategy),
            derive_many(asked.seed, "digest", asked.server_round, members),
            setup=self.participants.setup,
            shared=True,
        ):
            for index, state, result in trained.each():
                digested[index], steps[index] = state, result.steps
        return digested, steps
