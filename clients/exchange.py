"""One round of an exchange of logits, as participants see it: digest, train, keep, answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from clients.envelope import Task
from clients.participant import SimulatedParticipants
from clients.store import Store
from kdfed import wire
from kdfed.cohort import Trained, predict_stack, state_at, train_cohort
from kdfed.consensus import digest_loss, public_indices
from kdfed.data import Examples
from kdfed.errors import ParticipantError
from kdfed.local import PLAIN, PlainLocal
from kdfed.models import State
from kdfed.seeding import derive_many
from kdfed.settings import OptimiserSettings
from kdfed.train import TrainResult


@dataclass(frozen=True)
class LogitsExchange:
    """What one message asks of its participants.

    Parameters
    ----------
    model
        Their architecture.
    initial
        Participant -> its weights before it was ever trained. None for those that have answered before: they
        kept a model.
    participants
        Whose examples there are.
    store
        Where they keep their models.
    seed, server_round
        The run's seed and the round.
    strategy
        Which loss digests the consensus: see :func:`kdfed.consensus.digest_loss`.
    digest, local
        How participants are trained towards the consensus, and on their own examples.
    agreed
        The last consensus with its public examples; None before the first.
    asked
        Normalised public examples of this round, [N, ...].
    """

    model: nn.Module
    initial: Callable[[int], State] | None
    participants: SimulatedParticipants
    store: Store
    seed: int
    server_round: int
    strategy: str
    digest: OptimiserSettings
    local: PlainLocal
    agreed: Examples | None
    asked: torch.Tensor

    @classmethod
    def of(
        cls,
        task: Task,
        model: nn.Module,
        fresh: Callable[[int], State],
        participants: SimulatedParticipants,
        store: Store,
    ) -> LogitsExchange:
        """Read a task; public examples that came with it are kept.

        Raises
        ------
        ParticipantError
            If public examples neither came nor are kept.
        """
        config = task.config
        seed, server_round = int(config["seed"]), int(config["server-round"])
        digest, images = str(config[wire.PUBLIC]), int(config["images"]) or None
        initial: Callable[[int], State] | None = None
        if wire.INPUTS in task.transfer:  # a first message
            store.save_public(digest, task.transfer[wire.INPUTS])
            initial = (lambda member: task.arrays) if task.arrays else fresh
        stored = store.load_public(digest)
        if stored is None:
            raise ParticipantError(
                "expected the public examples of an earlier message in the store, found none; "
                "start the run anew"
            )

        def public(of_round: int) -> torch.Tensor:
            places = public_indices(seed, of_round, len(stored), images)
            return participants.data.normalisation.apply(stored.numpy()[places])

        agreed = None
        if wire.CONSENSUS in task.transfer:
            consensus = task.transfer[wire.CONSENSUS].float()
            agreed = Examples(public(int(config["consensus-round"])), consensus)
        return cls(
            model,
            initial,
            participants,
            store,
            seed,
            server_round,
            str(config["strategy"]),
            OptimiserSettings.model_validate_json(str(config["digest"])),
            PlainLocal.model_validate_json(str(config["local"])),
            agreed,
            public(server_round),
        )

    def run(self, members: Sequence[int]) -> Iterator[tuple[Trained, torch.Tensor]]:
        """Do a cohort's work.

        Yields
        ------
        tuple
            Some of the participants, trained, and their logits on this round's public examples, float16
            [R, N, C]. Steps are those of digesting and of training.
        """
        states = [self._model_of(member) for member in members]
        steps = [0] * len(members)
        if self.agreed is not None:
            states, steps = self._digested(members, states, self.agreed)
        examples, sizes = self.participants.gather(members)
        seeds = derive_many(self.seed, "train", self.server_round, members)
        for trained in train_cohort(
            self.model, states, examples, sizes, self.local, PLAIN, seeds, setup=self.participants.setup
        ):
            logits = predict_stack(self.model, trained.states, self.asked).to(torch.float16)
            for row, place in enumerate(trained.indices):
                if bool(logits[row].isfinite().all()):  # otherwise the server leaves this round's work out
                    self.store.save(members[place], self.server_round, state_at(trained.states, row))
            results = [
                TrainResult(result.loss, result.steps + steps[place], result.examples)
                for place, result in zip(trained.indices, trained.results, strict=True)
            ]
            yield Trained(trained.states, trained.indices, results), logits

    def _model_of(self, member: int) -> State:
        kept = self.store.load(member, before=self.server_round)
        if kept is not None:
            return kept
        if self.initial is None:
            raise ParticipantError(
                f"expected the model of participant {member}, which answered before, in the store, found "
                "none; start the run anew"
            )
        return self.initial(member)

    def _digested(
        self, members: Sequence[int], states: list[State], agreed: Examples
    ) -> tuple[list[State], list[int]]:
        """Return the participants' states, trained towards the consensus, and the steps that it took."""
        digested, steps = list(states), [0] * len(members)
        for trained in train_cohort(
            self.model,
            states,
            agreed,
            [len(agreed)] * len(members),
            self.digest,
            digest_loss(self.strategy),
            derive_many(self.seed, "digest", self.server_round, members),
            setup=self.participants.setup,
            shared=True,
        ):
            for place, state, result in trained.each():
                digested[place], steps[place] = state, result.steps
        return digested, steps
