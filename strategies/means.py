"""Which strategies can do with means, and which take a step from one."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy

from kdfed import wire
from kdfed.private.flwr import aggregate_metrics

WEIGHTED_MEANS: frozenset[type[Strategy]] = frozenset(
    {FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi}
)
"""Strategies to which a cohort's weighted mean is as good as its members. A subclass is not one of them:
it may look at single models."""


def takes_means(strategy: Strategy) -> bool:
    """Tell whether a strategy may be given means: it is in :data:`WEIGHTED_MEANS`, and nothing is changed.

    A weight other than ``num-examples``, a function of one's own that aggregates metrics, or a method that
    was replaced on the object wants every participant's reply.
    """
    return (
        type(strategy) in WEIGHTED_MEANS
        and isinstance(strategy, FedAvg)
        and strategy.weighted_by_key == wire.NUM_EXAMPLES
        and strategy.train_metrics_aggr_fn is aggregate_metrics
        and not any(callable(getattr(type(strategy), name, None)) for name in vars(strategy))
    )


SERVER_OPTIMISERS: tuple[type[Strategy], ...] = (FedAvgM, FedAdagrad, FedAdam, FedYogi)
"""Strategies that take a step from the mean. Buffers (BatchNorm's statistics) must not take it: a running
variance could turn negative."""
