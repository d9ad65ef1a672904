"""Who is there of the devices: their names, their numbers, and the nodes that they are now.

A device says its name at hello. Names are numbered once, in their order, so that the same devices have the
same numbers in every arm, seed and restart; a node id only lasts as long as Flower lets it. ``roster.json``
in the run folder keeps all three.

Whoever cannot take part (another version, other inputs, a name that is taken) is refused by name, and costs
nobody else anything. Whoever has left is not asked, and is greeted again when it is back.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from kdfed.device_data import DeviceData
from kdfed.errors import MessageError, RecordError, RunError, one_line
from kdfed.ledger import Ledger
from kdfed.messages import DeviceHelloReply, Hello, versions, versions_of_device
from kdfed.reasons import Once
from kdfed.records import write_atomically
from kdfed.settings import NAME_OF_PARTICIPANT
from strategies.inbox import bytes_of, pass_warnings_on
from strategies.present import Present

log = logging.getLogger("kdfed.strategies")

FILE = "roster.json"
SCHEMA = 1

_ALIKE = {"kdfed": 3, "flwr": 2, "torch": 1}
"""How many parts of a version must be the server's: messages are kdfed's own, arrays are NumPy's."""

_NAMED = re.compile(rf"participant '({NAME_OF_PARTICIPANT.pattern})'")
"""Where an error of a device's says whose it is."""

_LOOK = 0.2  # seconds between two looks while nobody can start yet


@dataclass
class Device:
    """One participant, as it said last.

    Parameters
    ----------
    name, number
        Which participant it is.
    node
        The node that it is, or was last.
    told
        What it told of itself; None where only its name and number are known, from an earlier start.
    """

    name: str
    number: int
    node: int
    told: DeviceHelloReply | None = None

    def entry(self) -> dict[str, Any]:
        """Return its entry in ``roster.json``."""
        told = self.told
        more: dict[str, Any] = {}
        if told is not None:
            more = {
                "examples": told.examples,
                "versions": dict(told.versions),
                "device": told.device,
                "memory": told.memory,
            }
        return {"name": self.name, "number": self.number, "node": str(self.node), **more}


@dataclass(frozen=True)
class Rules:
    """Who may take part, and when a run starts.

    Parameters
    ----------
    participants
        How many devices there are.
    quorum
        With how many a run starts.
    grace
        Seconds that the others have once a quorum is there.
    least, most
        Examples of one device.
    """

    participants: int
    quorum: int
    grace: float
    least: int
    most: int

    @classmethod
    def of(cls, arm: Any) -> Rules:
        """Return the rules of a :class:`kdfed.config.Arm`."""
        server, partition = arm.server, arm.partition
        quorum = partition.participants if server.quorum is None else server.quorum
        return cls(
            partition.participants,
            quorum,
            server.grace_seconds,
            partition.min_examples,
            server.max_examples,
        )


class Roster:
    """The devices of one run: all its arms and seeds.

    Parameters
    ----------
    path
        ``roster.json``; what it says of an earlier start is kept. Default: nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.devices: dict[str, Device] = {}
        self.refused: dict[int, tuple[str, str]] = {}  # node: name, reason
        for entry in self._read():
            device = Device(entry["name"], entry["number"], int(entry["node"]))
            self.devices[device.name] = device

    def _read(self) -> list[dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return []
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            entries = [
                {"name": str(e["name"]), "number": e["number"], "node": int(e["node"])}
                for e in found["participants"]
            ]
            numbers: list[Any] = [entry["number"] for entry in entries]
            names = {entry["name"] for entry in entries}
            whole = all(type(number) is int for number in numbers)
            if found["schema"] != SCHEMA or not whole or sorted(numbers) != list(range(len(numbers))):
                raise ValueError(f"schema {found['schema']}, numbers {numbers[:10]}")
            if len(names) != len(entries) or not all(map(NAME_OF_PARTICIPANT.fullmatch, names)):
                raise ValueError(f"names {sorted(names)[:10]} of {len(entries)} participants")
            return entries
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise RecordError(
                f"expected the roster of an earlier start in {self.path}, got {one_line(repr(error), 200)}; "
                "remove the file, and devices are numbered anew"
            ) from error

    def admit(self, told: Mapping[str, tuple[int, DeviceHelloReply]]) -> None:
        """Give numbers to names that are new, in their order; the others keep theirs."""
        for name in sorted(told):
            node, reply = told[name]
            known = self.devices.get(name)
            number = len(self.devices) if known is None else known.number
            self.devices[name] = Device(name, number, node, reply)
            self.refused.pop(node, None)

    def refuse(self, node: int, name: str, reason: str) -> None:
        """Remember why a node cannot take part."""
        self.refused[node] = name, reason

    @property
    def names(self) -> dict[int, str]:
        """The names by number."""
        return {device.number: device.name for device in self.devices.values()}

    def name_of(self, participant: int) -> str:
        """Return the name of a participant; its number where no device had it yet."""
        return self.names.get(participant, str(participant))

    def write(self) -> None:
        """Write ``roster.json``."""
        if self.path is None:
            return
        devices = sorted(self.devices.values(), key=lambda device: device.number)
        content = {
            "schema": SCHEMA,
            "participants": [device.entry() for device in devices],
            "refused": [
                {"name": name or None, "node": str(node), "reason": reason}
                for node, (name, reason) in sorted(self.refused.items())
            ],
        }
        write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Devices:
    """What an arm needs whose participants are devices.

    Parameters
    ----------
    data
        What they must make of their examples.
    roster
        Of the run.
    """

    data: DeviceData
    roster: Roster


class Greeting:
    """Says hello to the devices of one arm, and to those that come later.

    Parameters
    ----------
    devices
        What they are told, and who is known already.
    rules
        Who may take part.
    network
        Whose nodes they are.
    deadline
        Seconds that a device has for its answer.
    ledger
        Counts every hello.
    log
        Gets who is refused and why, each distinct text once.

    Raises
    ------
    RecordError
        If the roster knows more devices than take part.
    """

    def __init__(
        self, devices: Devices, rules: Rules, network: Grid, deadline: float, ledger: Ledger, log: Once
    ) -> None:
        self._devices, self._rules, self._network = devices, rules, network
        self._deadline, self._ledger, self._log = deadline, ledger, log
        self._content = Hello(versions(), devices.data).to_record()
        self._asked: set[int] = set()
        self._open: dict[str, int] = {}  # message: node
        self._online: set[int] = set()
        self._left: dict[int, int] = {}  # participant: the node that it was
        self._told: dict[str, tuple[int, DeviceHelloReply]] = {}
        self._doubles: dict[str, dict[int, DeviceHelloReply]] = {}
        self._started = False
        known = len(devices.roster.devices)
        if known > rules.participants:
            raise RecordError(
                f"expected at most the {rules.participants} devices of partition.participants in "
                f"{devices.roster.path}, got {known}; remove the file, and devices are numbered anew"
            )
        held = np.zeros(rules.participants, dtype=np.int64)
        self.present = Present(held=held, roster={}, update=self.update, why_absent=self.why_absent)

    # ------------------------------------------------------------------ before the first exchange

    def wait(self) -> Present:
        """Greet whoever connects until a run can start.

        Everybody is there, or a quorum is, and the others have had their seconds of grace.

        Raises
        ------
        RunError
            If there is no quorum in time. Who was refused is told, and why.
        """
        now = time.monotonic()
        end, grace_ends = now + self._deadline, float("inf")
        while True:
            self._look()
            now = time.monotonic()
            if len(self._told) >= self._rules.participants:
                break
            if len(self._told) >= self._rules.quorum:
                grace_ends = min(grace_ends, now + self._rules.grace)
                if now >= min(end, grace_ends):
                    break
            elif now >= end:
                self._devices.roster.write()
                raise RunError(self._nobody_starts())
            time.sleep(_LOOK)
        self._started = True
        self._join()
        return self.present

    def _nobody_starts(self) -> str:
        rules, names = self._rules, ", ".join(sorted(self._told)) or "nobody"
        wanted = f"{rules.quorum} devices (server.quorum)"
        if rules.quorum == rules.participants:
            wanted = f"all {rules.participants} devices (partition.participants)"
        refused = "; ".join(
            f"{name or 'a device'} at node {node}: {reason}"
            for node, (name, reason) in sorted(self._devices.roster.refused.items())[:5]
        )
        waiting = len(self._open)
        return (
            f"expected {wanted} within {self._deadline:g} seconds (server.deadlines.hello), got "
            f"{len(self._told)}: {names}. Refused: {refused or 'nobody'}. Have not answered hello: {waiting} "
            "nodes"
        )

    # ------------------------------------------------------------------ and before every other one

    def update(self) -> None:
        """Greet who came since the last look, take in who answered, and leave out who has gone.

        Nobody is waited for.
        """
        self._look()
        self._join()
        self._leave()

    def why_absent(self, participant: int) -> str:
        """Say why a participant has no node."""
        names = self._devices.roster.names
        if participant not in names:
            others = [name or "one without a name" for name, _ in self._devices.roster.refused.values()]
            more = f"; refused: {', '.join(others[:5])} ({FILE} says why)" if others else ""
            return f"no device of this number has come yet{more}"
        own = names[participant]
        for name, reason in self._devices.roster.refused.values():
            if name == own:
                return f"{own} is refused: {reason}"
        if participant in self._left:
            return f"{own} has left: its node {self._left[participant]} is offline"
        return f"{own} has not come yet"

    def _join(self) -> None:
        """Give those that were admitted their numbers, and participants their nodes."""
        roster, present = self._devices.roster, self.present
        assert present.roster is not None
        assert present.held is not None
        if not self._told:
            return
        roster.admit(self._told)
        for name, (node, reply) in self._told.items():
            number = roster.devices[name].number
            present.roster[number] = node
            present.held[number] = reply.examples
            for gone in [other for other in roster.refused if other not in self._online]:
                if roster.refused[gone][0] == name:  # it was this one, before
                    del roster.refused[gone]
        self._told = {}
        roster.write()

    def _leave(self) -> None:
        """Take the nodes of participants that are offline: nothing is sent to them, and nothing counted."""
        present = self.present.roster
        assert present is not None
        for number in [number for number, node in present.items() if node not in self._online]:
            self._left[number] = present.pop(number)

    # ------------------------------------------------------------------ hello

    def _look(self) -> None:
        self._online = set(self._network.get_node_ids())
        self._asked &= self._online  # who comes back is greeted again
        for node in sorted(self._online - self._asked):
            sent = Message(self._content, node, Hello.type, ttl=self._deadline)
            self._asked.add(node)
            (message_id,) = list(self._network.push_messages([sent])) or [""]
            if message_id:
                self._open[message_id] = node
                self._ledger.down("hello", bytes_of(self._content))
        replies = list(self._network.pull_messages(list(self._open))) if self._open else []
        found = [(self._open.pop(reply.metadata.reply_to_message_id, None), reply) for reply in replies]
        refused = len(self._devices.roster.refused)
        for node, reply in sorted(((n, r) for n, r in found if n is not None), key=lambda one: one[0]):
            self._take(node, reply)
        self._take_doubles()
        self._told = {name: one for name, one in self._told.items() if one[0] in self._online}
        if len(self._devices.roster.refused) > refused:
            self._devices.roster.write()

    def _take(self, node: int, reply: Message) -> None:
        """Take an answer: who can take part is told of, who cannot is refused."""
        if reply.has_error():
            reason = str(reply.error.reason)
            named = _NAMED.search(reason)
            self._refuse(node, "" if named is None else named[1], f"error reply: {reason}")
            return
        pass_warnings_on(reply.content, self._log)
        try:
            told = DeviceHelloReply.from_record(reply.content)
        except MessageError as error:
            self._refuse(node, "", str(error))
            return
        problem = self._problem_with(told)
        if problem is not None:
            self._refuse(node, told.participant, problem)
            return
        self._ledger.up("hello", bytes_of(reply.content), 0)
        theirs = told.versions.get("torch", "")
        if theirs.partition("+")[0] != versions()["torch"].partition("+")[0]:
            self._log.warn(
                f"participant {told.participant}",
                f"its torch is {theirs}, the server's is {versions()['torch']}: its results differ in bits",
            )
        self._offer(node, told)

    def _offer(self, node: int, told: DeviceHelloReply) -> None:
        """Admit a device, unless its name is somebody else's who is there, or all slots are taken."""
        name, roster = told.participant, self._devices.roster
        holder = self._node_of(name)
        if holder is not None and holder != node and holder in self._online:
            self._doubles.setdefault(name, {})[node] = told
            self._refuse(
                node,
                name,
                f"expected one device of each name, {name!r} is node {holder} already; give it another "
                "'participant' in its node-config",
            )
            return
        taken = {*roster.devices, *self._told}
        if name not in taken and len(taken) >= self._rules.participants:
            self._refuse(
                node,
                name,
                f"expected the {self._rules.participants} devices of partition.participants, which are "
                f"{one_line(', '.join(sorted(taken)), 200)}; raise it, or use one of these names",
            )
            return
        self._told[name] = node, told

    def _take_doubles(self) -> None:
        """Admit a device whose name was taken by a node that has left."""
        for name, waiting in list(self._doubles.items()):
            for node, told in sorted(waiting.items()):
                if node not in self._online:
                    del waiting[node]
                elif (holder := self._node_of(name)) is None or holder not in self._online:
                    del waiting[node]
                    self._told[name] = node, told
                    break

    def _node_of(self, name: str) -> int | None:
        if name in self._told:
            return self._told[name][0]
        device = self._devices.roster.devices.get(name)
        if device is None or self.present.roster is None:
            return None
        return self.present.roster.get(device.number)

    def _refuse(self, node: int, name: str, reason: str) -> None:
        who = f"participant {name}" if name else f"the device at node {node}"
        line = self._log.warn(f"hello: without {who}", reason)
        self._devices.roster.refuse(node, name, line)

    def _problem_with(self, told: DeviceHelloReply) -> str | None:
        """Say why a device cannot take part; None where it can."""
        ours = versions_of_device()
        others = [
            f"{name} {told.versions.get(name, 'none')}, not {ours[name]}"
            for name, parts in _ALIKE.items()
            if _parts(told.versions.get(name, ""), parts) != _parts(ours[name], parts)
        ]
        if others:
            return f"expected versions like the server's, got {'; '.join(others)}: install the same"
        if told.shape != self._devices.data.shape:
            return (
                f"expected inputs of the shape {list(self._devices.data.shape)}, got {list(told.shape)}: "
                "correct its data"
            )
        if not self._rules.least <= told.examples <= self._rules.most:
            return (
                f"expected from {self._rules.least} (partition.min-examples) to {self._rules.most} examples "
                f"(server.max-examples), got {told.examples}"
            )
        return None


def _parts(version: str, count: int) -> list[str]:
    """Return the first parts of a version, without what stands behind a plus."""
    return version.partition("+")[0].split(".")[:count]
