"""Flower strategies by the names that an experiment uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from kdfed import wire
from kdfed.config import ProximalLocal, ServerBase
from kdfed.errors import unknown
from strategies.ds_fl import DSFL
from strategies.feddf import FedDF
from strategies.fedmd import FedMD
from strategies.logits import LogitsStrategy

if TYPE_CHECKING:
    from strategies.arm import ArmConfig

STRATEGIES: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "feddf": FedDF,
    "fedmd": FedMD,
    "ds_fl": DSFL,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
}

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
        and strategy.train_metrics_aggr_fn is aggregate_metricrecords
        and not any(callable(getattr(type(strategy), name, None)) for name in vars(strategy))
    )


SERVER_OPTIMISERS: tuple[type[Strategy], ...] = (FedAvgM, FedAdagrad, FedAdam, FedYogi)
"""Strategies that take a step from the mean. Buffers (BatchNorm's statistics) must not take it: a running
variance could turn negative."""


def make_strategy(config: ArmConfig) -> FedAvg:
    """Build the strategy of an arm; sampling and minima are the arm runner's, evaluation is the server's.

    Raises
    ------
    KdfedError
        If no strategy is registered under the name.
    """
    arm = config.arm
    if arm.server.strategy not in STRATEGIES:
        raise unknown("server.strategy", arm.server.strategy, STRATEGIES, "strategies.catalogue.STRATEGIES")
    kind = STRATEGIES[arm.server.strategy]
    shared = set(ServerBase.model_fields) | {"strategy"}
    options: dict[str, Any] = {name: value for name, value in dict(arm.server).items() if name not in shared}
    if issubclass(kind, FedDF | LogitsStrategy):
        options = {"config": config}
    if isinstance(arm.local, ProximalLocal) and kind is FedProx:
        options["proximal_mu"] = arm.local.mu
    return kind(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=0,
        min_available_nodes=1,
        **options,
    )
