"""Strategies by the names that an experiment uses: one file a strategy, named here."""

from __future__ import annotations

from dataclasses import replace

from flwr.serverapp.strategy import Strategy

from kdfed.errors import KdfedError, shown
from kdfed.family import Family
from kdfed.server import ServerBase
from strategies.arm_config import ArmConfig
from strategies.ds_fl import DSFLServer
from strategies.fedadagrad import FedAdagradServer
from strategies.fedadam import FedAdamServer
from strategies.fedavg import FedAvgServer
from strategies.fedavgm import FedAvgMServer
from strategies.feddf import FedDFServer
from strategies.fedmd import FedMDServer
from strategies.fedmedian import FedMedianServer
from strategies.fedprox import FedProxServer
from strategies.fedtrimmedavg import FedTrimmedAvgServer
from strategies.fedyogi import FedYogiServer
from strategies.krum import KrumServer
from strategies.scaffold import ScaffoldServer

STRATEGIES: Family[ServerBase] = Family(
    "strategy",
    "server.strategy",
    ServerBase,
    {
        "fedavg": FedAvgServer,
        "fedprox": FedProxServer,
        "fedavgm": FedAvgMServer,
        "fedadagrad": FedAdagradServer,
        "fedadam": FedAdamServer,
        "fedyogi": FedYogiServer,
        "scaffold": ScaffoldServer,
        "feddf": FedDFServer,
        "fedmd": FedMDServer,
        "ds_fl": DSFLServer,
        "fedmedian": FedMedianServer,
        "fedtrimmedavg": FedTrimmedAvgServer,
        "krum": KrumServer,
    },
    default="fedavg",
)
"""What can stand in ``server.strategy``."""


def make_strategy(config: ArmConfig) -> Strategy:
    """Build the strategy of an arm.

    It is shown no other labels of the server than it says that it uses, and nothing that rounds are counted
    on.

    Raises
    ------
    KdfedError
        If what was built is none of Flower's message API.
    """
    data = config.data.showing(config.arm.server.server_labels())
    strategy = config.arm.server.build(replace(config, data=data, held_out=None))
    if not isinstance(strategy, Strategy):
        raise KdfedError(
            f"server.strategy {config.arm.server.strategy!r}: expected build to return a Strategy of "
            f"flwr.serverapp.strategy, got {shown(strategy)}"
        )
    return strategy
