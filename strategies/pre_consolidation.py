"""PreConsolidation: a warm start for any Flower strategy.

Before the first round, participants train teachers and upload each once; the server distils them into one
student (Alballa et al., arXiv 2402.14922; vanilla KD: Hinton et al. 2015, arXiv 1503.02531), which is where
the wrapped strategy starts. It is not a new aggregation rule, so it composes with FedAvg, FedProx, FedAvgM,
FedAdam, FedYogi, Krum and others. Its messages are those of :mod:`kdfed.messages`.

Deviation: Flower's ``Strategy.start`` samples nodes with Python's global generator and has no early stop;
here the arm runner samples participants, stops, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from kdfed.config import sampled_count
from kdfed.errors import ConfigError, Mistake
from kdfed.local import ProximalLocal
from strategies.arm import ArmRunner
from strategies.arm_config import ArmConfig
from strategies.result import ArmResult
from strategies.wrapped import layers, minima


class PreConsolidation(Strategy):
    """Wraps a Flower strategy and starts it from ``config.arm.start``.

    Parameters
    ----------
    strategy
        Any Flower strategy. Those derived from FedAvg must have ``fraction_train=1``: kdfed samples.
    config
        The arm, its data and its listeners.

    Raises
    ------
    ConfigError
        If the strategy, or one that it wraps, would sample for training, wait for ever, or use another
        proximal term than ``arm.local``.
    """

    def __init__(self, strategy: Strategy, config: ArmConfig) -> None:
        mistakes = _check(strategy, config)
        if mistakes:
            raise ConfigError(type(strategy).__name__, mistakes)
        self.strategy = strategy
        self.config = config

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> ArmResult:
        """Run the whole arm; signature and meaning are those of Flower's ``Strategy.start``.

        Parameters
        ----------
        initial_arrays
            The common initial weights: the start of a cold arm, of teachers, and of the student.
        timeout
            Seconds until a reply of a federated round counts as late.
        """
        runner = ArmRunner(self.strategy, self.config, grid)
        return runner.run(initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate to the wrapped strategy."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate to the wrapped strategy."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate to the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate to the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the wrapped strategy's settings."""
        self.strategy.summary()


def _check(strategy: Strategy, config: ArmConfig) -> list[Mistake]:
    """Return what the strategy, and any that it wraps, cannot be given."""
    mistakes = []
    for layer in layers(strategy):
        if isinstance(layer, FedAvg):
            mistakes += _check_fractions(layer)
        if isinstance(layer, FedProx):
            local = config.arm.local
            if not isinstance(local, ProximalLocal) or local.mu != layer.proximal_mu:
                mistakes.append(
                    Mistake(
                        "proximal_mu",
                        f"expected arm.local of mode 'proximal' with mu {layer.proximal_mu}, got {local!r}",
                    )
                )
    drawn = sampled_count(config.arm)
    least = minima(strategy, "train") | minima(strategy, "evaluate")
    mistakes += [
        Mistake(
            option,
            f"expected at most the {drawn} participants sampled, got {count}: Flower would wait for ever",
        )
        for option, count in least.items()
        if count > drawn
    ]
    return mistakes


def _check_fractions(strategy: FedAvg) -> list[Mistake]:
    mistakes = []
    train, evaluate = strategy.fraction_train, strategy.fraction_evaluate
    if train != 1.0:
        mistakes.append(Mistake("fraction_train", f"expected 1.0, got {train}; set server.sampled instead"))
    if not 0 <= evaluate <= 1:
        mistakes.append(
            Mistake("fraction_evaluate", f"expected a share from 0 to 1 of the sampled, got {evaluate}")
        )
    return mistakes
