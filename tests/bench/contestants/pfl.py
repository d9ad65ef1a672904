"""pfl (Apple's pfl-research): its simulated backend with tensors in memory.

With two workers there are two processes, as pfl has them: each trains its share of the users, balanced by
their number of examples, and statistics are summed over ``torch.distributed``. pfl cuts a user's batches
once, so they are not shuffled again every epoch.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import torch
from work import MOMENTUM, RATE, Work

from contestants.gate import Finished, Gate
from kdfed.models import load_state

ADDRESSES, RANK = "PFL_WORKER_ADDRESSES", "PFL_WORKER_RANK"


class Module(torch.nn.Module):
    """A model with the two methods that pfl asks for."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        self.steps = 0

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.train()
        self.steps += 1
        return torch.nn.functional.cross_entropy(self.net(inputs), labels)

    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {}


class Others:
    """The processes of the other ranks; none with one worker."""

    def __init__(self, work: Work) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        if work.workers == 1:
            return
        addresses = ",".join(f"localhost:{_free_port()}" for _ in range(work.workers))
        os.environ.update({ADDRESSES: addresses, RANK: "0"})
        for rank in range(1, work.workers):
            process = subprocess.Popen(
                [sys.executable, "-m", "contestants", "pfl", work.write()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, RANK: str(rank)},
            )
            self.processes.append(process)

    def tell(self, command: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(command + "\n")
            process.stdin.flush()

    def hear(self) -> list[dict[str, Any]]:
        return [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]


def main(work: Work, gate: Gate) -> None:
    leads = RANK not in os.environ
    others = Others(work) if leads else Others(Work("cnn", 1))
    if not leads:
        gate.judge = None
    # pfl starts torch.distributed when it is imported, so the other ranks must run already.
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    module = Module(work.net())
    load_state(module.net, work.initial_state())
    users = {
        str(index): PyTorchTensorDataset((shard.inputs, shard.labels), user_id=str(index))
        for index, shard in enumerate(work.shards())
    }
    data = FederatedDataset(
        users.__getitem__,
        MinimizeReuseUserSampler(list(users)),
        user_id_to_weight={user: len(examples) for user, examples in users.items()},
    )
    model = PyTorchModel(
        module,
        local_optimizer_create=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM),
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )

    def wait() -> None:
        try:
            gate.wait()
        except Finished:
            others.tell("finish")
            raise
        others.tell("round")

    class Turns(TrainingProcessCallback):
        def on_train_begin(self, *, model: Any) -> Any:
            others.hear()
            wait()
            return Metrics()

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            gate.done(
                module.net.state_dict, lambda: module.steps + sum(answer["steps"] for answer in others.hear())
            )
            module.steps = 0
            wait()
            return False, Metrics()

    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=10_000,
            evaluation_frequency=10_000,
            train_cohort_size=work.participants,
            val_cohort_size=None,
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_batch_size=work.batch, local_num_epochs=work.epochs, local_learning_rate=RATE
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Turns()],
        send_metrics_to_platform=False,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
