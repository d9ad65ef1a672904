r"""SCAFFOLD: FedAvg whose participants correct their gradients by where all of them go.

================ ========= =================================================================
record           direction content
================ ========= =================================================================
``arrays``       down, up  the model, as ever
``control``      down      the server's control variate c, of every weight
================ ========= =================================================================

A participant adds :math:`c - c_i` to each gradient, and keeps its own control variate :math:`c_i^+`
(:mod:`kdfed.controls`) for its next round. With shares :math:`p_i` of the examples of this round's S of N
participants,

.. math:: x \leftarrow \sum_i p_i y_i, \qquad
          c \leftarrow c + \frac{S}{N} \sum_i p_i (c_i^+ - c_i) = c + \frac{S}{N} \Big(\sum_i p_i g_i - c\Big)

where :math:`g_i = (x - y_i) / (\eta\,k(K_i))`, because :math:`c_i^+ = c_i - c + g_i`. The server knows all of
:math:`g_i`, so participants send no control variates: a round costs what FedAvg costs, and c down.

Deviations from the source: means are weighted by examples, as FedAvg's are (its are not), so that c stays the
mean of the :math:`c_i` where everybody takes part; the server's step size is 1; :math:`c_i^+ - c_i` is
computed by the server instead of being sent; SGD may have momentum, of which the source says nothing.

References
----------
Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv 1910.06378,
algorithm 1, option II.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from kdfed.averaging import average_states
from kdfed.controls import mean_gradient
from kdfed.errors import RunError
from kdfed.messages import ARRAYS, CONTROL, METRICS, record_of, state_of_record
from kdfed.metrics import LOCAL_STEPS, NUM_EXAMPLES, number
from kdfed.models import State, buffer_keys
from kdfed.server import ServerBase
from kdfed.thing import Refusal
from strategies.arm_config import ArmConfig


class ScaffoldServer(ServerBase):
    """FedAvg with control variates (Karimireddy et al. 2020): for participants that train with SGD."""

    strategy: Literal["scaffold"] = "scaffold"
    """The strategy."""

    needs_classes: ClassVar[str] = ""
    whole_models: ClassVar[bool] = True
    uses_server_labels: ClassVar[bool | None] = False

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse training of which a control variate is no mean of gradients."""
        yield from super().refusals(arm)
        if arm.local.optimizer != "sgd":
            yield Refusal(
                "local.optimizer",
                f"expected 'sgd' with strategy 'scaffold', whose control variates are means of gradients, "
                f"got {arm.local.optimizer!r}",
                (".strategy",),
            )
        if arm.local.personal_model(arm.model) is not None:
            yield Refusal(
                "local.mode",
                f"expected a mode that trains the received model alone with strategy 'scaffold', got "
                f"{arm.local.mode!r}",
                (".strategy",),
            )

    def build(self, config: ArmConfig) -> Strategy:
        """Return SCAFFOLD."""
        return Scaffold(config, **config.flower)


class Scaffold(FedAvg):
    """FedAvg with control variates.

    Parameters
    ----------
    config
        The arm.
    options
        FedAvg's.
    """

    def __init__(self, config: ArmConfig, **options: Any) -> None:
        super().__init__(**options)
        self._config = config
        self._sent: State = {}
        self.control: State = {}
        """c, of every weight; empty before the first round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model as FedAvg does, and the control variate beside it."""
        self._sent = dict(arrays.to_torch_state_dict())
        if not self.control:
            buffers = buffer_keys(self._config.build(self._config.arm.model, "scaffold"))
            weights = {key: value for key, value in self._sent.items() if key not in buffers}
            self.control = {key: torch.zeros_like(value) for key, value in weights.items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        record = ArrayRecord(dict(self.control))
        for message in messages:
            message.content[CONTROL] = record
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models as FedAvg does, and move the control variate."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            self._move(server_round, [reply for reply in replies if reply.has_content()])
        return arrays, metrics

    def _move(self, server_round: int, replies: list[Message]) -> None:
        local = self._config.arm.local.at_round(server_round)
        controls, weights = list[State](), list[float]()
        for reply in replies:
            numbers = record_of(reply.content, METRICS, MetricRecord)
            steps = cast("int", numbers.get(LOCAL_STEPS, 0))
            if steps > 0:
                trained = state_of_record(reply.content, ARRAYS)
                controls.append(
                    mean_gradient(self._sent, trained, self.control, local.lr, local.momentum, steps)
                )
                weights.append(number(numbers, NUM_EXAMPLES))
        if not controls:
            raise RunError(
                f"round {server_round}: expected {LOCAL_STEPS} in the participants' metrics, by which "
                "control variates are counted, got none; use clients.client_app, or another server.strategy"
            )
        mean, share = (
            average_states(controls, weights),
            len(controls) / self._config.arm.partition.participants,
        )
        self.control = {key: value + share * (mean[key] - value) for key, value in self.control.items()}
