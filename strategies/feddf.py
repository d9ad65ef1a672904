"""FedDF: the average of a round's models, distilled from all of them on the server's transfer set.

Deviations from the source: the ensemble, the temperature and the optimiser are settings (the source has the
mean of logits at temperature 1, and Adam), and ``when: first`` distils after the first round only. All models
have one architecture.

References
----------
Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning", arXiv 2006.07242,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from kdfed.choosing import Choosing
from kdfed.consolidate import consolidate
from kdfed.distill import VanillaConsolidation
from kdfed.distill.method import soft_refusals, view_refusals
from kdfed.ensembles import AnyEnsemble, MeanLogits
from kdfed.errors import LogitsError, RunError
from kdfed.messages import ARRAYS, state_of_record
from kdfed.metrics import SERVER_STEPS
from kdfed.models import State, load_state, state_of
from kdfed.seeding import derive
from kdfed.server import ServerBase
from kdfed.settings import DistillationSettings, Passes, Rate, Share, Temperature
from kdfed.thing import Refusal, within
from strategies.arm_config import ArmConfig


class FedDFDistillation(DistillationSettings, Choosing):
    """How FedDF distils a round's models into their average."""

    ensemble: AnyEnsemble = MeanLogits()
    """How the models' outputs become one target."""
    temperature: Temperature = 1.0
    """Temperature T of the distillation term, above 0."""
    weight: Share = 1.0
    """Weight w of the distillation term; 1 - w goes to cross entropy. Below 1 only with ``labels``."""
    epochs: Passes = 5
    """Passes over the transfer set."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """torch.optim optimiser; its state starts afresh each time."""
    lr: Rate = 0.001
    """Learning rate, above 0."""


class FedDFServer(ServerBase):
    """FedAvg, whose average is distilled from the round's models on the transfer set (Lin et al. 2020)."""

    strategy: Literal["feddf"] = "feddf"
    """The strategy."""
    when: Literal["every", "first"] = "every"
    """Distil after every round, or after the first only."""
    distillation: FedDFDistillation = FedDFDistillation()
    """How."""

    whole_models: ClassVar[bool] = True
    uses_server_labels: ClassVar[bool | None] = False  # beside what its distillation does

    def server_labels(self) -> frozenset[str]:
        """Return those of the distillation."""
        return self.method().server_labels()

    def method(self) -> VanillaConsolidation:
        """Return the KD method that the distillation is."""
        return VanillaConsolidation.model_construct(**dict(self.distillation))  # checked already

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse what teachers alone tell, and what does not go together in a distillation."""
        yield from super().refusals(arm)
        distillation = self.distillation
        for refusal in soft_refusals(distillation, arm.data.task):
            yield within(refusal, ".distillation")
        for refusal in view_refusals(distillation, arm.model.backbone is not None):
            yield within(refusal, ".distillation")
        if distillation.ensemble.needs_label_counts:
            yield Refusal(
                ".distillation.ensemble",
                f"expected an ensemble that needs no label counts, which only teachers send, got "
                f"{distillation.ensemble.ensemble!r}",
            )

    def build(self, config: ArmConfig) -> Strategy:
        """Return FedDF."""
        return FedDF(config, **config.flower)


class FedDF(FedAvg):
    """FedAvg with ensemble distillation.

    Parameters
    ----------
    config
        The arm; its server settings must be those of FedDF.
    options
        FedAvg's.
    """

    def __init__(self, config: ArmConfig, **options: Any) -> None:
        super().__init__(**options)
        assert isinstance(config.arm.server, FedDFServer), config.arm.server
        self._config, self._settings = config, config.arm.server

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models as FedAvg does, then distil them into the average."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None or (self._settings.when == "first" and server_round > 1):
            return arrays, metrics
        states = [state_of_record(reply.content, ARRAYS) for reply in replies if reply.has_content()]
        try:
            state, steps = self._distil(server_round, dict(arrays.to_torch_state_dict()), states)
        except LogitsError as error:
            senders = [reply.metadata.src_node_id for reply in replies if reply.has_content()]
            who = ", ".join(str(senders[index]) for index in error.teachers)
            raise RunError(
                f"round {server_round}: expected finite logits of the participants' models, got infinity or "
                f"NaN from participant {who}; lower local.lr or server.update-bound"
            ) from error
        return ArrayRecord(dict(state)), MetricRecord({**(metrics or {}), SERVER_STEPS: steps})

    def _distil(self, server_round: int, average: State, states: list[State]) -> tuple[State, int]:
        config, data = self._config, self._config.data
        student, *teachers = (
            config.build(config.arm.model, "feddf").to(config.setup.device) for _ in range(1 + len(states))
        )
        for model, state in zip((student, *teachers), (average, *states), strict=True):
            load_state(model, state)
        seed, method = derive(config.seed, "feddf", server_round), self._settings.method()
        transfer = data.transfer
        if config.arm.model.backbone is not None and method.augmentation:
            images, method = config.views_of(config.stored_transfer, method, seed)
            transfer = config.read(images, config.arm.model)
        result = consolidate(
            student,
            teachers,
            transfer,
            data.validation,
            method,
            seed,
            setup=config.setup,
        )
        return state_of(student), result.steps
