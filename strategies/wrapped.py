"""What kdfed must know of the Flower strategy that an arm wraps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)

from kdfed.arrays import Spec
from kdfed.averaging import average_states
from kdfed.messages import ARRAYS, METRICS, record_of, state_of_record
from kdfed.metrics import NUM_EXAMPLES, number
from kdfed.models import State
from kdfed.private.flwr import CLIPPING_NORM, aggregate_metrics

WEIGHTED_MEANS: frozenset[type[Strategy]] = frozenset(
    {FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi}
)
"""Strategies to which a cohort's weighted mean is as good as its members. A subclass is not one of them:
it may look at single models."""

CLIPS_ON_CLIENTS: tuple[type[Strategy], ...] = (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
)
"""Strategies that tell participants how far to clip, for a mod of their ClientApp."""

PRIVATE: tuple[type[Strategy], ...] = (
    *CLIPS_ON_CLIENTS,
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
)
"""Flower's strategies of differential privacy. They cover rounds, and no teacher."""

SERVER_OPTIMISERS: tuple[type[Strategy], ...] = (FedAvgM, FedAdagrad, FedAdam, FedYogi)
"""Strategies that take a step from the mean. Buffers (BatchNorm's statistics) must not take it: a running
variance could turn negative."""


@runtime_checkable
class OwnReplies(Protocol):
    """A strategy whose participants send back something else than the model."""

    def reply_spec(self, server_round: int) -> Spec:
        """Return shapes and dtypes of what a participant sends back in a round."""


def takes_means(strategy: Strategy) -> bool:
    """Tell whether a strategy may be given means: it is in :data:`WEIGHTED_MEANS`, and nothing is changed.

    A weight other than ``num-examples``, a function of one's own that aggregates metrics, or a method that
    was replaced on the object wants every participant's reply.
    """
    return (
        type(strategy) in WEIGHTED_MEANS
        and isinstance(strategy, FedAvg)
        and strategy.weighted_by_key == NUM_EXAMPLES
        and strategy.train_metrics_aggr_fn is aggregate_metrics
        and not any(callable(getattr(type(strategy), name, None)) for name in vars(strategy))
    )


def layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy, the one that it wraps (as differential privacy does), and so on inwards."""
    return _inwards(strategy, lambda layer: [getattr(layer, "strategy", None)])


def _inwards(strategy: Strategy, held_by: Callable[[Strategy], Iterable[object]]) -> list[Strategy]:
    """Return a strategy, the strategies that it holds, and so on; each once."""
    found: list[Strategy] = []
    waiting: list[object] = [strategy]
    while waiting:
        inner = waiting.pop(0)
        if isinstance(inner, Strategy) and not any(inner is one for one in found):
            found.append(inner)
            waiting += held_by(inner)
    return found


def weight_key(strategy: Strategy) -> str:
    """Return the metric by which a strategy, or the one inside it, weighs replies."""
    weighing = [layer for layer in layers(strategy) if isinstance(layer, FedAvg)]
    return weighing[0].weighted_by_key if weighing else NUM_EXAMPLES


def minima(strategy: Strategy, trip: Literal["train", "evaluate"]) -> dict[str, int]:
    """Return below how many nodes a Flower strategy would wait for ever, by the option that says so.

    Empty where it makes no such trip. Whatever strategy it holds may be one that it asks, under any name.
    """
    least: dict[str, int] = {}
    for layer in _inwards(strategy, lambda layer: list(vars(layer).values())):
        if _number(layer, f"fraction_{trip}", 1.0) > 0:
            for option in ("min_available_nodes", f"min_{trip}_nodes"):
                if (count := int(_number(layer, option, 0))) > 0:
                    least[option] = max(least.get(option, 0), count)
    return least


def _number(strategy: Strategy, option: str, default: float) -> float:
    """Return an option that is called as FedAvg calls it, whoever has it."""
    value = getattr(strategy, option, default)
    return value if isinstance(value, int | float) else default


def teacher_config(strategy: Strategy, train_config: ConfigRecord | None) -> ConfigRecord:
    """Return what a train handler finds in ``config`` beside kdfed's settings, for a teacher.

    What a strategy adds to bind a round does not bind a teacher: the weight of FedProx's proximal term is 0,
    and the norm to which a mod clips is infinite. The mods answer an error where there is none.
    """
    config = ConfigRecord(dict(train_config or {}))
    for layer in layers(strategy):
        if isinstance(layer, FedProx):
            config["proximal-mu"] = 0.0
        if isinstance(layer, CLIPS_ON_CLIENTS):
            config[CLIPPING_NORM] = math.inf
    return config


def repaired(
    strategy: Strategy,
    arrays: ArrayRecord,
    replies: Sequence[Message],
    spec: Mapping[str, tuple[tuple[int, ...], str]],
    buffers: Collection[str],
) -> State:
    """Undo what Flower's arithmetic does to a model: float64 counters, server steps on buffers.

    Parameters
    ----------
    strategy
        That aggregated.
    arrays
        What it returned.
    replies
        What it was given.
    spec
        Shapes and dtypes of the model.
    buffers
        Which of its arrays are buffers: their mean is taken as it is.
    """
    state = dict(arrays.to_torch_state_dict())
    if buffers and any(isinstance(layer, SERVER_OPTIMISERS) for layer in layers(strategy)):
        states = [state_of_record(reply.content, ARRAYS) for reply in replies]
        key = weight_key(strategy)
        weights = [number(record_of(reply.content, METRICS, MetricRecord), key) for reply in replies]
        mean = average_states(states, weights)
        state.update({key: mean[key] for key in buffers})
    result: State = {}
    for key, (_, dtype) in spec.items():
        wanted, value = getattr(torch, dtype), state[key]
        if value.is_floating_point() and not wanted.is_floating_point:
            value = value.round()
        result[key] = value.to(wanted)
    return result
