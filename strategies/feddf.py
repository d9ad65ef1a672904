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

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from kdfed import wire
from kdfed.config import FedDFServer, VanillaConsolidation
from kdfed.consolidate import consolidate
from kdfed.device import resolve_device
from kdfed.errors import LogitsError, RunError
from kdfed.models import State, load_state, state_of
from kdfed.seeding import derive

if TYPE_CHECKING:
    from strategies.arm import ArmConfig


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
        self._device = resolve_device(config.arm.device)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models as FedAvg does, then distil them into the average."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None or (self._settings.when == "first" and server_round > 1):
            return arrays, metrics
        states = [
            dict(reply.content.array_records[wire.ARRAYS].to_torch_state_dict())
            for reply in replies
            if reply.has_content()
        ]
        try:
            state, steps = self._distil(server_round, dict(arrays.to_torch_state_dict()), states)
        except LogitsError as error:
            senders = [reply.metadata.src_node_id for reply in replies if reply.has_content()]
            who = ", ".join(str(senders[place]) for place in error.places)
            raise RunError(
                f"round {server_round}: expected finite logits of the participants' models, got infinity or "
                f"NaN from participant {who}; lower local.lr or server.update-bound"
            ) from error
        return ArrayRecord(dict(state)), MetricRecord({**(metrics or {}), wire.SERVER_STEPS: steps})

    def _distil(self, server_round: int, average: State, states: list[State]) -> tuple[State, int]:
        config, data = self._config, self._config.data
        student, *teachers = (
            config.build(config.arm.model, "feddf").to(self._device) for _ in range(1 + len(states))
        )
        for model, state in zip((student, *teachers), (average, *states), strict=True):
            load_state(model, state)
        result = consolidate(
            student,
            teachers,
            data.transfer.to(self._device),
            data.validation.to(self._device),
            VanillaConsolidation(**self._settings.distillation.model_dump()),
            derive(config.seed, "feddf", server_round),
            task=data.task,
        )
        return state_of(student), result.steps
