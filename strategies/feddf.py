r"""FedDF: the average of a round's models, distilled from all of them on the server's transfer set.

Round r sends :math:`x_r` and gets models whose weighted mean is :math:`a_r`. With momentum m and a share
:math:`w_r = s\,d^{r-1}` (``mix``),

.. math::

    v_r &= m\,v_{r-1} + (x_r - a_r), \qquad y_r = x_r - v_r \\
    x_{r+1} &= (1 - w_r)\,y_r + w_r\,\mathrm{distilled}(y_r)

so the momentum is that of the averages: where the distillation leads is no part of v, but :math:`x_r` is what
was sent, and hence the place from which the next step is measured. Without momentum :math:`y_r = a_r`. Below
w = 0.01 nothing is distilled, and :math:`x_{r+1} = y_r`. Buffers (BatchNorm's statistics) have no momentum.

Deviations from the source: the ensemble, the temperature and the optimiser are settings (the source has the
mean of logits at temperature 1, and Adam); ``when: first`` distils after the first round only; the source has
neither momentum nor ``mix`` (it takes the distilled model itself). All models have one architecture.

References
----------
Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning", arXiv 2006.07242,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM, Strategy
from pydantic import Field

from kdfed.arrays import spec_of
from kdfed.averaging import average_states
from kdfed.choosing import Choosing
from kdfed.distill import VanillaConsolidation
from kdfed.distill.method import soft_refusals, view_refusals
from kdfed.ensembles import AnyEnsemble, MeanLogits
from kdfed.errors import LogitsError, RunError
from kdfed.messages import ARRAYS, state_of_record
from kdfed.metrics import SERVER_STEPS
from kdfed.models import State, buffer_keys
from kdfed.seeding import derive
from kdfed.server import ServerBase
from kdfed.settings import DistillationSettings, Momentum, Passes, Rate, Settings, Share, Temperature
from kdfed.thing import Refusal, within
from strategies.arm_config import ArmConfig
from strategies.distilling import distilled
from strategies.wrapped import repaired

LEAST_SHARE = 0.01
"""Share of the distilled model below which nothing is distilled."""


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


class MixSettings(Settings):
    """How much of the distilled model is in the next one; the rest is the average that it started from."""

    start: Annotated[float, Field(ge=LEAST_SHARE, le=1)] = 1.0
    """Its share after the first round, in [0.01, 1]; 1 is the distilled model itself."""
    decay: Share = 1.0
    """By what the share is multiplied from round to round, in [0, 1]. Once it is below 0.01, nothing is
    distilled any more."""

    def share(self, server_round: int) -> float:
        """Return the share after a round, from 1; 0 where nothing is distilled."""
        share = self.start * self.decay ** (server_round - 1)
        return share if share >= LEAST_SHARE else 0.0


class FedDFServer(ServerBase):
    """FedAvg, whose average is distilled from the round's models on the transfer set (Lin et al. 2020)."""

    strategy: Literal["feddf"] = "feddf"
    """The strategy."""
    when: Literal["every", "first"] = "every"
    """Distil after every round, or after the first only."""
    momentum: Momentum = 0.0
    """Server momentum of the averages beneath, in [0, 1), as that of ``fedavgm``; 0 is FedAvg."""
    mix: MixSettings = MixSettings()
    """How much of the distilled model is taken, and for how long."""
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
        if self.when == "first" and self.mix.decay != 1:
            yield Refusal(
                ".mix.decay", "has no effect with when: first; remove it, or use when: every", (".when",)
            )
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
        momentum = self._settings.momentum
        self._optimiser = FedAvgM(**options, server_momentum=momentum) if momentum else None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model, from which the momentum's step is measured."""
        if self._optimiser is not None:
            self._optimiser.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models, then distil them into the average."""
        replies = list(replies)
        arrays, metrics = self._averaged(server_round, replies)
        share = self._settings.mix.share(server_round)
        if arrays is None or share == 0 or (self._settings.when == "first" and server_round > 1):
            return arrays, metrics
        average = dict(arrays.to_torch_state_dict())
        states = [state_of_record(reply.content, ARRAYS) for reply in replies if reply.has_content()]
        try:
            state, steps = self._distil(server_round, average, states)
        except LogitsError as error:
            senders = [reply.metadata.src_node_id for reply in replies if reply.has_content()]
            who = ", ".join(str(senders[index]) for index in error.teachers)
            raise RunError(
                f"round {server_round}: expected finite logits of the participants' models, got infinity or "
                f"NaN from participant {who}; lower local.lr or server.update-bound"
            ) from error
        if share < 1:
            state = average_states([state, average], [share, 1 - share])
        return ArrayRecord(dict(state)), MetricRecord({**(metrics or {}), SERVER_STEPS: steps})

    def _averaged(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the models, with a step of the server's momentum if there is one."""
        if self._optimiser is None:
            return super().aggregate_train(server_round, replies)
        sent = self._optimiser.current_arrays
        arrays, metrics = self._optimiser.aggregate_train(server_round, replies)
        if arrays is None or sent is None:
            return arrays, metrics
        spec = spec_of(sent.to_torch_state_dict())
        buffers = buffer_keys(self._config.build(self._config.arm.model, "feddf"))
        return ArrayRecord(dict(repaired(self._optimiser, arrays, replies, spec, buffers))), metrics

    def _distil(self, server_round: int, average: State, states: list[State]) -> tuple[State, int]:
        seed = derive(self._config.seed, "feddf", server_round)
        return distilled(self._config, average, states, self._settings.method(), seed)
