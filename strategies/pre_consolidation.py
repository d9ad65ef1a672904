"""PreConsolidation: a warm start for any Flower strategy.

Before the first round, participants train teachers and upload each once; the server distils them into one
student (Alballa et al., arXiv 2402.14922; vanilla KD: Hinton et al. 2015, arXiv 1503.02531), which is where
the wrapped strategy starts. It is not a new aggregation rule, so it composes with FedAvg, FedProx, FedAvgM,
FedAdam, FedYogi, Krum and others. Its messages are those of :mod:`kdfed.messages`.

Deviation: Flower's ``Strategy.start`` samples nodes with Python's global generator and has no early stop;
here the arm runner samples participants, stops, and counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx, Result, Strategy

from kdfed.config import sampled_count
from kdfed.data import Loadable
from kdfed.distill import KDMethod
from kdfed.errors import ConfigError, Mistake
from kdfed.listeners import FlowerLog, Listener
from kdfed.local import ProximalLocal
from kdfed.messages import DEVICE_DATA
from kdfed.private.flwr import log_start
from strategies.arm import ArmRunner
from strategies.arm_config import ArmConfig
from strategies.around import OwnModel, arm_around
from strategies.result import ArmResult
from strategies.wrapped import layers, minima

log = logging.getLogger("flwr")

_TAKEN = {"seed", "model", "local", "teachers", "statistics", "projection-seed", DEVICE_DATA}
"""Keys that kdfed puts into ``config``, beside Flower's ``server-round``."""


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
        self._started = False

    @classmethod
    def around(
        cls,
        strategy: Strategy,
        *,
        model: OwnModel,
        participants: int,
        transfer: Loadable,
        validation: Loadable | None = None,
        teacher_epochs: int = 10,
        consolidation: KDMethod | None = None,
        start: str = "consolidated",
        sampled: int | float | Literal["all"] = "all",
        targets: tuple[float, ...] = (),
        seed: int = 0,
        listeners: tuple[Listener, ...] = (),
    ) -> Self:
        """Wrap the strategy of a Flower app whose clients train by :func:`clients.teacher.teacher`.

        Parameters
        ----------
        strategy
            Any Flower strategy, as in ``PreConsolidation(strategy, config)``.
        model
            The app's model: the class or function itself (``Net``), called without arguments, its
            ``"package.module:Net"``, or ``ModelSettings`` with options. It may also be a builder of kdfed's,
            which takes (input_shape, classes, **options). It is what ``initial_arrays`` hold.
        participants
            How many nodes take part, 1 or larger: the run waits until so many are connected.
        transfer
            On what teachers and student are compared: examples of the server's own, of no participant, and
            not those of ``evaluate_fn``. A data set or DataLoader as the app's model is trained on, of
            (inputs, label) or of dicts with a label, or ``kdfed.data.Examples``. Labels are used only if
            ``consolidation`` says so.
        validation
            On what ensemble, student and rounds are evaluated. Default: a fifth of ``transfer``, drawn with
            the seed, which is then not distilled on.
        teacher_epochs
            How often a participant's train handler is called for its teacher.
        consolidation
            How teachers become one student. Default: vanilla KD with Adam, of at least 60 epochs and 1,000
            steps (:func:`strategies.around.default_consolidation`).
        start
            ``consolidated``; ``random`` runs the same arm without the warm start, ``averaged`` averages the
            teachers' weights, ``server`` trains on the labels of ``validation`` alone, ``file:PATH`` starts
            from a .safetensors file.
        sampled
            Participants sampled a round: a number, a share in (0, 1), or all.
        targets
            Accuracies in (0, 1] on ``validation``; the run ends when all are reached.
        seed
            Of everything that kdfed draws.
        listeners
            Who else follows the run.

        Raises
        ------
        ConfigError
            If the strategy cannot be wrapped, or the model cannot be named, built, trained or averaged.
        DataError
            If data hold something else than inputs and classes that the model has outputs for.
        """
        config = arm_around(
            strategy,
            model=model,
            participants=participants,
            transfer=transfer,
            validation=validation,
            teacher_epochs=teacher_epochs,
            consolidation=consolidation,
            start=start,
            sampled=sampled,
            targets=targets,
            seed=seed,
            listeners=listeners,
        )
        return cls(strategy, config)

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

        Raises
        ------
        ConfigError
            If ``train_config`` or ``evaluate_config`` has a key of kdfed's, which would replace it.

        Notes
        -----
        In a ServerApp of your own, progress is logged as Flower's strategies log theirs.
        """
        self._started = True
        given = {"train_config": train_config, "evaluate_config": evaluate_config}
        taken = [
            Mistake(name, f"expected other keys than kdfed's own, got {key!r}; rename it")
            for name, record in given.items()
            for key in sorted(_TAKEN & set(record or ()))
        ]
        if taken:
            raise ConfigError(type(self).__name__, taken)
        config = self.config
        if config.is_given:
            log.info("Starting %s strategy:", type(self).__name__)
            log_start(num_rounds, initial_arrays, train_config, evaluate_config)
            self.summary()
            config = replace(config, listeners=(FlowerLog(), *config.listeners))
        runner = ArmRunner(self.strategy, config, grid)
        result = runner.run(initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        if config.is_given:
            log.info("Final results:")
            for line in ("", *Result.__repr__(result).splitlines(), ""):
                log.info("\t%s", line)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate to the wrapped strategy.

        Raises
        ------
        ConfigError
            If :meth:`start` was never called: a strategy around this one brings its own, which knows no warm
            start.
        """
        if not self._started:
            problem = (
                "expected PreConsolidation outermost, because only its own start() makes the warm start; got "
                "a strategy around it: put that one inside, as PreConsolidation(Outer(FedAvg(...)), ...)"
            )
            raise ConfigError(type(self).__name__, [Mistake("strategy", problem)])
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
        """Log what comes before the first round, and the wrapped strategy's settings."""
        arm, data = self.config.arm, self.config.data
        log.info("\t├──> Start: %s, around %s", arm.start, type(self.strategy).__name__)
        log.info(
            "\t│\t├── Participants: %d, sampled a round: %s", arm.partition.participants, arm.server.sampled
        )
        log.info("\t│\t├── Teachers: %d epochs", arm.teachers.epochs)
        log.info("\t│\t├── Consolidation: %s, %d epochs", arm.consolidation.method, arm.consolidation.epochs)
        log.info("\t│\t└── Examples: %d transfer, %d validation", len(data.transfer), len(data.validation))
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
