"""fluke (PyPI ``fluke-fl``): its FastDataLoader, everything in memory, no client evaluation.

Clients are not persistent: otherwise their momentum would go on from round to round, which is other work.
"""

from __future__ import annotations

import torch
from fluke import FlukeENV
from fluke.algorithms import CentralizedFL
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server
from fluke.utils import FederationObserver
from work import MOMENTUM, RATE, Work

from contestants.gate import Gate
from kdfed.models import load_state


class CountingLoss(torch.nn.CrossEntropyLoss):
    """Cross entropy that knows how often it was asked."""

    steps = 0

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        CountingLoss.steps += 1
        return super().forward(logits, labels)


class Turns(FederationObserver):
    """Opens the gate before each round."""

    def __init__(self, gate: Gate, server: Server) -> None:
        self.gate, self.server = gate, server

    def start_round(self, round: int, global_model: torch.nn.Module) -> None:
        CountingLoss.steps = 0
        self.gate.wait()

    def end_round(self, round: int) -> None:
        self.gate.done(self.server.model.state_dict, CountingLoss.steps)


def main(work: Work, gate: Gate) -> None:
    FlukeENV().set_inmemory(True)
    FlukeENV().set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    optimiser = OptimizerConfigurator({"name": "SGD", "lr": RATE, "momentum": MOMENTUM})
    classes = work.data.classes
    clients = [
        Client(
            index=index,
            train_set=FastDataLoader(
                shard.inputs,
                shard.labels,
                num_labels=classes,
                batch_size=work.batch,
                shuffle=True,
                skip_singleton=False,
            ),
            test_set=None,
            optimizer_cfg=optimiser,
            loss_fn=CountingLoss(),
            local_epochs=work.epochs,
            persistency=False,
        )
        for index, shard in enumerate(work.shards())
    ]
    net = work.net()
    load_state(net, work.initial_state())
    server = Server(net, None, clients, weighted=True)
    federation = CentralizedFL(len(clients), None, {}, clients=clients, server=server)
    federation.set_callbacks(Turns(gate, server))
    federation.run(n_rounds=10_000, eligible_perc=1.0)
