"""Flower's own simulation runtime: one ClientApp a participant and FedAvg, as Flower's tutorials have them.

What its users can do for speed is done: one core an actor, no client evaluation, data kept by each actor.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from work import Work

from contestants.bare_loop import train
from contestants.gate import Finished, Gate
from kdfed.data import Examples

WORK = "KDFED_BENCH_WORK"

client = ClientApp()


@cache
def mine() -> tuple[Work, torch.nn.Module, list[Examples]]:
    torch.set_num_threads(1)
    work = Work.read(os.environ[WORK])
    return work, work.net(), work.shards()


@client.train()
def fit(message: Message, context: Context) -> Message:
    work, model, shards = mine()
    shard = shards[int(context.node_config["partition-id"])]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    steps = train(model, shard, work)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(shard), "steps": steps}),
        }
    )
    return Message(content, reply_to=message)


def add_steps(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
    return MetricRecord({"steps": sum(reply["metrics"]["steps"] for reply in replies)})


def main(work: Work, gate: Gate) -> None:
    from flwr.simulation import run_simulation

    os.environ[WORK] = work.write()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = Steps(
            fraction_evaluate=0.0,
            min_evaluate_nodes=0,
            min_train_nodes=work.participants,
            min_available_nodes=work.participants,
            train_metrics_aggr_fn=add_steps,
        )

        def evaluate(server_round: int, arrays: ArrayRecord) -> None:
            if server_round > 0:
                gate.done(arrays.to_torch_state_dict, strategy.steps)
            gate.wait()

        try:
            strategy.start(
                grid,
                ArrayRecord(work.initial_state()),
                num_rounds=10_000,
                train_config=ConfigRecord(),
                evaluate_fn=evaluate,
            )
        except Finished:
            return

    run_simulation(
        server,
        client,
        num_supernodes=work.participants,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": work.workers, "include_dashboard": False},
        },
    )


class Steps(FedAvg):
    """FedAvg that keeps the sum of local steps."""

    steps = 0

    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.steps = int(metrics["steps"]) if metrics is not None else 0
        return arrays, metrics
