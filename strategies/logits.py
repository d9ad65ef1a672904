"""Strategies that exchange logits in every round: what FedMD and DS-FL share.

The messages are :class:`kdfed.messages.QueryLogits` and :class:`kdfed.messages.Update`.

A sampled participant digests the last consensus, trains on its own examples, keeps its model in its store and
uploads its logits. The server combines them, and distils the consensus into a model of its own, which is what
is evaluated: so that these strategies stand beside those that average weights.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from kdfed.arrays import Spec
from kdfed.consensus import digest_loss, public_indices
from kdfed.data import Examples, PreparedData
from kdfed.limits import most_steps
from kdfed.messages import LOGITS, QueryLogits, Update
from kdfed.metrics import SERVER_STEPS
from kdfed.models import State, load_state, state_of
from kdfed.seeding import derive
from kdfed.server import ServerBase
from kdfed.settings import ModelSettings, OptimiserSettings, PositiveInt, several
from kdfed.thing import Refusal
from kdfed.train import fit
from strategies.arm_config import ArmConfig


class DigestSettings(OptimiserSettings):
    """How a consensus is distilled into a model on the public examples."""

    batch_size: PositiveInt = 32
    """Examples a step."""


class LogitsServer(ServerBase):
    """Participants exchange logits on the transfer set in every round, and keep their models."""

    images: PositiveInt | None = None
    """Public examples of a round, drawn anew each time. Default: the whole transfer set."""
    models: ModelSettings | Annotated[tuple[ModelSettings, ...], Field(min_length=1)] | None = None
    """The participants' architecture; a list is dealt to participants in turn. Default: the federated
    model."""
    digest: DigestSettings = DigestSettings()
    """How participants distil the consensus of the round before."""
    distillation: DigestSettings = DigestSettings()
    """How the server distils it into the model that is evaluated."""

    digest_loss: ClassVar[str]
    """The loss of digesting the consensus: a key of :data:`kdfed.consensus.DIGESTS`, or
    ``package.module:name``."""

    needs_classes: ClassVar[str] = "it needs classes"
    whole_models: ClassVar[bool] = True
    uses_server_labels: ClassVar[bool | None] = False

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for plain local training."""
        yield from super().refusals(arm)
        if arm.local.mode != "plain":
            yield Refusal(
                "local.mode",
                f"expected 'plain' with strategy {self.strategy!r}, whose participants receive no model, got "
                f"{arm.local.mode!r}",
                (".strategy",),
            )

    def misfits(self, arm: Any, data: PreparedData) -> Iterator[Refusal]:
        """Refuse more public examples than there are."""
        held = len(data.splits.transfer)
        if self.images is not None and self.images > held:
            yield Refusal(
                ".images",
                f"expected at most the {held} examples of the transfer split, got {self.images}; lower it or "
                "hold out more (data.splits.transfer)",
            )

    def most_steps(self, local: OptimiserSettings, examples: int, public: int) -> int:
        """Return the most optimiser steps of training and digesting."""
        digest = most_steps(self.digest.epochs, self.digest.batch_size, self.images or public)
        return super().most_steps(local, examples, public) + digest


class LogitsStrategy(FedAvg):
    """Participants send logits on public examples, never weights.

    Parameters
    ----------
    config
        The arm; its server settings must be those of the strategy.
    options
        FedAvg's.
    """

    def __init__(self, config: ArmConfig, **options: Any) -> None:
        super().__init__(**options)
        assert isinstance(config.arm.server, LogitsServer), config.arm.server
        self.config, self.settings = config, config.arm.server
        self._models = several(self.settings.models) or (config.arm.model,)
        self._public_sha256 = hashlib.sha256(config.data.transfer_inputs.tobytes()).hexdigest()
        self._hold: set[int] = set()  # participants that are known to have the public examples
        self._consensus: tuple[int, torch.Tensor] | None = None  # its round, float16 [M, C]
        self._start: State | None = None
        self._state = ArrayRecord()

    @abstractmethod
    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the consensus [N, C] of the participants' logits, float32 [K, N, C], in their order."""

    def reply_spec(self, server_round: int) -> Spec:
        """Return what a participant sends back in a round."""
        count = len(self._public_indices(server_round))
        return {LOGITS: ((count, self.config.data.classes), "float16")}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the sampled participants for their logits; those with the same content share it."""
        self._start = dict(arrays.to_torch_state_dict()) if self._start is None else self._start
        self._state = arrays
        contents: dict[tuple[int, bool], RecordDict] = {}
        messages = []
        for participant in grid.get_node_ids():
            key = (participant % len(self._models), participant in self._hold)
            if key not in contents:
                model = self._models[key[0]]
                contents[key] = self._content(server_round, model, key[1], self._start, config)
            messages.append(Message(contents[key], participant, QueryLogits.type))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine logits, and distil the consensus into the server's model."""
        replies = [reply for reply in replies if reply.has_content()]
        self._hold |= {reply.metadata.src_node_id for reply in replies}
        logits = [Update.from_record(reply.content).arrays[LOGITS] for reply in replies]
        consensus = self.combine(torch.stack(logits).float()).to(torch.float16)
        self._consensus = server_round, consensus
        model = self.config.build(self.config.arm.model, "logits").to(self.config.setup.device)
        load_state(model, dict(self._state.to_torch_state_dict()))
        public = self.config.data.transfer.inputs[torch.from_numpy(self._public_indices(server_round))]
        result = fit(
            model,
            Examples(public, consensus.float()),
            self.settings.distillation,
            digest_loss(self.settings.digest_loss),
            derive(self.config.seed, "logits", server_round),
        )
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return ArrayRecord(state_of(model)), MetricRecord({**metrics, SERVER_STEPS: result.steps})

    def _public_indices(self, server_round: int) -> Any:
        held = len(self.config.data.transfer_inputs)
        return public_indices(self.config.seed, server_round, held, self.settings.images)

    def _content(
        self,
        server_round: int,
        model: ModelSettings,
        holds: bool,
        start: State,
        config: Mapping[str, Any],
    ) -> RecordDict:
        """Return what participants of one architecture are sent, by whether they hold the public examples."""
        settings, arm = self.settings, self.config.arm
        return QueryLogits(
            seed=self.config.seed,
            server_round=server_round,
            model=model,
            local=arm.local.at_round(server_round),
            strategy=settings.digest_loss,
            digest=settings.digest,
            images=settings.images,
            count=len(self._public_indices(server_round)),
            public_sha256=self._public_sha256,
            inputs=None if holds else torch.from_numpy(self.config.data.transfer_inputs),
            consensus=self._consensus,
            arrays=start if not holds and model == arm.model else {},
            more=config,
        ).to_record()
