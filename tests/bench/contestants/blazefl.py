"""BlazeFL with threads, which its documentation recommends on free-threaded Python.

The trainer is its own FedAvg example with momentum; participants' tensors are indexed directly, which is
faster than its DataLoader. Its ``serialize_model`` refuses models in channels_last; ``pack`` does not.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from blazefl.core import ThreadPoolClientTrainer
from work import Work

from contestants.bare_loop import train
from contestants.gate import Gate
from kdfed.models import load_state


@dataclass
class Downlink:
    model_parameters: torch.Tensor


@dataclass
class Uplink:
    cid: int
    model_parameters: torch.Tensor
    data_size: int
    steps: int


class Trainer(ThreadPoolClientTrainer[Uplink, Downlink]):
    def __init__(self, work: Work) -> None:
        self.num_parallels = work.workers
        self.device, self.device_count = "cpu", 0
        self.cache: list[Uplink] = []
        self.stop_event = threading.Event()
        self.work = work
        self.shards = work.shards()
        self.own = threading.local()

    def worker(self, cid: int, device: str, payload: Downlink, stop_event: threading.Event) -> Uplink:
        if not hasattr(self.own, "model"):
            torch.set_num_threads(1)
            self.own.model = self.work.net()
        unpack(self.own.model, payload.model_parameters)
        steps = train(self.own.model, self.shards[cid], self.work)
        return Uplink(cid, pack(self.own.model), len(self.shards[cid]), steps)

    def uplink_package(self) -> list[Uplink]:
        package, self.cache = self.cache, []
        return package


def pack(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in model.state_dict().values()])


def unpack(model: torch.nn.Module, packed: torch.Tensor) -> None:
    values = list(model.state_dict().values())
    for value, part in zip(values, packed.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view(value.shape))


def main(work: Work, gate: Gate) -> None:
    model = work.net()
    load_state(model, work.initial_state())
    trainer = Trainer(work)
    total = sum(map(len, trainer.shards))
    while True:
        gate.wait()
        trainer.local_process(Downlink(pack(model)), list(range(work.participants)))
        replies = trainer.uplink_package()
        mean = torch.zeros_like(replies[0].model_parameters)
        for reply in replies:
            mean.add_(reply.model_parameters, alpha=reply.data_size / total)
        unpack(model, mean)
        gate.done(model.state_dict, sum(reply.steps for reply in replies))
