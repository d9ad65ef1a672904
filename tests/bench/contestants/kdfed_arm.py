"""What kdfed's contestants share: one arm over a grid, as every engine runs it.

The gate stands before a round's messages are made. It must not stand where the arm evaluates: that happens
while participants of the next round train already, and they would go on while others have their turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from work import SEED, Work

from contestants.gate import Gate
from kdfed.messages import Simulation
from strategies.arm import ArmRunner
from strategies.arm_config import ArmConfig, ServerData
from strategies.catalogue import make_strategy


def run(work: Work, gate: Gate, grid: Grid) -> None:
    """Run rounds until the gate closes. Messages, checks, aggregation and records are within their time."""
    experiment, data = work.experiment, work.data
    arm = experiment.arm("cold")
    server = ServerData(
        transfer=data.examples(data.splits.transfer),
        validation=data.examples(data.splits.validation),
        transfer_inputs=data.dataset.inputs[data.splits.transfer],
        classes=data.classes,
        task=data.task,
    )
    config = ArmConfig(
        arm=arm,
        data=server,
        seed=SEED,
        name="cold",
        simulation=Simulation.of(arm, SEED),
    )
    strategy = make_strategy(config)
    runner = ArmRunner(strategy, config, grid)
    configure_train = strategy.configure_train
    steps = 0

    def gated(server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        nonlocal steps
        total = runner.ledger.totals().local_steps
        if server_round > 1:
            gate.done(arrays.to_torch_state_dict, total - steps)
        steps = total
        gate.wait()
        return configure_train(server_round, arrays, config, grid)

    # On the instance: to kdfed, a subclass of FedAvg would be a strategy that wants single models.
    strategy.configure_train = gated
    runner.run(ArrayRecord(work.initial_state()), arm.rounds.horizon, arm.server.deadlines.train)
