"""What kdfed's contestants share: one arm over a grid, as every engine runs it."""

from __future__ import annotations

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from work import SEED, Work

from contestants.gate import Gate
from kdfed import wire
from kdfed.records import RoundRecord
from strategies.arm import ArmConfig, ServerData
from strategies.catalogue import make_strategy
from strategies.pre_consolidation import PreConsolidation


def run(work: Work, gate: Gate, grid: Grid) -> None:
    """Run rounds until the gate closes. Messages, checks, aggregation and records are within their time."""
    experiment, data = work.experiment, work.data
    arm = experiment.arm("cold")
    validation = data.examples(data.splits.validation)
    server = ServerData(
        transfer=data.examples(data.splits.transfer),
        validation=validation,
        test=None,
        transfer_inputs=data.dataset.inputs[data.splits.transfer],
        classes=data.classes,
    )
    latest: list[ArrayRecord] = []
    steps = 0

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        latest[:] = [arrays]

    def on_record(record: RoundRecord) -> None:
        nonlocal steps
        if record.round > 0:
            gate.done(latest[0].to_torch_state_dict, record.local_steps - steps)
        steps = record.local_steps
        gate.wait()

    config = ArmConfig(
        arm=arm,
        data=server,
        seed=SEED,
        name="cold",
        simulation=wire.simulation_record(arm, SEED),
        on_record=on_record,
    )
    PreConsolidation(make_strategy(arm), config).start(
        grid, ArrayRecord(work.initial_state()), arm.rounds.max, arm.server.deadlines.train, evaluate_fn=keep
    )
