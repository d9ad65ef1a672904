"""Devices in this process: nodes with a node-config and data of their own, and a simulation that is alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from PIL import Image

from clients.client_app import app as client_app
from kdfed.data import Dataset, PreparedData, load_source, prepare
from kdfed.partition import Partition, partition_of
from kdfed.settings import DataSettings
from simulations.engines.in_process_grid import InProcessGrid
from simulations.experiments import build_experiment, merge

CLASSES = [str(digit) for digit in range(10)]
OWNERS = {"east": (0, 3, 7), "north": (1, 5, 8, 9), "south": (2, 4, 6)}
"""Who holds which digits: nobody shares one."""

EVERYTHING = f"{__name__}:everybodys"
EASTS = f"{__name__}:easts"

SPLITS = {"test": 0.1, "evaluation": 0.2, "validation": 0.1, "transfer": 0.2}
MEAN, STD = 0.31, 0.37

EXPERIMENT: dict[str, Any] = {
    "name": "three-devices",
    "seeds": [3],
    "device": "cpu",
    "model": {"name": "mlp", "options": {"hidden": [16]}},
    "local": {"mode": "plain", "epochs": 1, "batch-size": 8, "lr": 0.1},
    "teachers": {"epochs": 2, "batch-size": 8, "lr": 0.1},
    "consolidation": {"epochs": 3, "batch-size": 16, "lr": 0.1},
    "server": {"strategy": "fedavg", "cohort-size": 1},
    "rounds": {"horizon": 2},
    "targets": [0.5],
    "arms": {"cold": {"start": "random"}, "consolidated": {"start": "consolidated"}},
}


@lru_cache(maxsize=1)
def _digits() -> Dataset:
    return load_source(DataSettings(source="digits", limit=500))


def everybodys(settings: DataSettings) -> Dataset:
    """Return 500 digits, in the order of their classes, with the column ``owner``."""
    digits = _digits()
    order = np.argsort(digits.labels, kind="stable")
    owner = {digit: name for name, own in OWNERS.items() for digit in own}
    owners = np.array([owner[int(label)] for label in digits.labels[order]])
    return Dataset(
        digits.inputs[order], digits.labels[order], digits.class_names, values_of=lambda name: owners
    )


def easts(settings: DataSettings) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Return what the device ``east`` holds: a function that is installed there."""
    inputs, labels = held("east")
    return inputs, labels, CLASSES


def simulated(**changes: Any) -> Any:
    """Return the simulation that is alike, with some keys replaced: each owner's digits are a participant."""
    data = {
        "source": EVERYTHING,
        "splits": SPLITS,
        "normalise": {"mean": [MEAN], "std": [STD]},
        "classes": CLASSES,
    }
    values = {**EXPERIMENT, "data": data, "partition": {"kind": "column", "column": "owner"}}
    return _built(values, changes)


def on_devices(**changes: Any) -> Any:
    """Return the experiment on devices, with some keys replaced."""
    values = {
        **EXPERIMENT,
        "data": {
            "source": "devices",
            "classes": CLASSES,
            "shape": [1, 8, 8],
            "normalise": {"mean": [MEAN], "std": [STD]},
        },
        "partition": {"kind": "devices", "participants": len(OWNERS)},
        "server-data": {"source": EVERYTHING, "splits": SPLITS},
    }
    return _built(values, changes)


def _built(values: dict[str, Any], changes: dict[str, Any]) -> Any:
    values["arms"] = changes.pop("arms", values["arms"])
    return build_experiment(merge(values, changes))


def _dealt() -> tuple[PreparedData, Partition]:
    experiment = simulated()
    data = prepare(experiment.data)
    return data, partition_of(data, experiment.partition, 0)


def held(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs, uint8 [N, 1, 8, 8], and labels that an owner holds."""
    data, partition = _dealt()
    indices = partition.indices[sorted(OWNERS).index(name)]
    return data.dataset.inputs[indices], data.dataset.labels[indices]


def write_folder(name: str, folder: Path) -> str:
    """Write an owner's digits as images in one sub-folder a class; return the node-config's ``data``."""
    for place, (image, label) in enumerate(zip(*held(name), strict=True)):
        file = folder / CLASSES[label] / f"{place:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file)
    return f"folder:{folder}"


def write_npz(name: str, file: Path) -> str:
    """Write an owner's digits as arrays; return the node-config's ``data``."""
    inputs, labels = held(name)
    np.savez(file, inputs=inputs, labels=labels)
    return f"npz:{file}"


def node_configs(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the node-configs of three devices whose data are of three kinds, by node id."""
    store = str(folder / "store")
    return {
        31: {"participant": "south", "data": write_folder("south", folder / "south"), "store": store},
        12: {"participant": "east", "data": EASTS, "store": store},
        20: {"participant": "north", "data": write_npz("north", folder / "north.npz"), "store": store},
    }


@dataclass
class Seen:
    """A message that went through a grid."""

    node: int
    type: str
    down: RecordDict
    up: RecordDict | None = None
    error: str = ""


class DeviceGrid(InProcessGrid):
    """A grid whose nodes are devices: each is the ClientApp with a node-config of its own.

    Parameters
    ----------
    configs
        Node-configs by node id.
    change
        Is given (node, message type, reply), and returns what is answered instead; None for no answer yet.
    """

    def __init__(
        self,
        configs: Mapping[int, Mapping[str, Any]],
        app: ClientApp = client_app,
        change: Callable[[int, str, Message], Message | None] = lambda node, kind, reply: reply,
    ) -> None:
        super().__init__(app, 1)
        self.change = change
        self.seen: list[Seen] = []
        self._done: dict[str, Message] = {}
        self._contexts = {}
        for node, config in configs.items():
            self.connect(node, config)

    def connect(self, node: int, config: Mapping[str, Any]) -> None:
        """Have a device come."""
        self._contexts[node] = Context(1, node, dict(config), RecordDict(), {})

    def leave(self, node: int) -> None:
        """Have a device go."""
        del self._contexts[node]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle messages; those of which the answer is withheld stay pending."""
        wanted = [message_id for message_id in message_ids if message_id in self._pending]
        replies = []
        for message_id in wanted:
            message = self._pending[message_id]
            metadata = message.metadata
            if message_id not in self._done:
                self._done[message_id] = self._handle(message)
            reply = self._done[message_id]
            seen = Seen(metadata.dst_node_id, metadata.message_type, deepcopy(message.content))
            if reply.has_error():
                seen.error = reply.error.reason
            else:
                seen.up = deepcopy(reply.content)
            changed = self.change(metadata.dst_node_id, metadata.message_type, reply)
            if changed is None:
                continue
            del self._pending[message_id]
            self.seen.append(seen)
            replies.append(changed)
        return replies


@dataclass
class Withheld:
    """Withholds the answers of some nodes to some types of messages, while it is told to."""

    nodes: set[int]
    types: set[str] = field(default_factory=lambda: {"train"})

    def __call__(self, node: int, kind: str, reply: Message) -> Message | None:
        """Return the reply, or nothing."""
        return None if node in self.nodes and kind in self.types else reply
