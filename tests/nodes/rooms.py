"""Three devices with digits of their own beside a real SuperLink, and the runs that are handed in there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdfed.records import RunFolder
from simulations.deploy.flower import Flower
from simulations.server_app import run_experiment
from tests.devices import DeviceGrid, on_devices, write_npz
from tests.nodes.faulty import BEGUN, FAULTS
from tests.nodes.federation import ROOT, Device, Federation, supernode
from tests.processes import free_port, until

PATIENCE = 240.0
NAMES = ["east", "north", "south"]
COLD = {"cold": {"start": "random"}}
CONSOLIDATED = {"consolidated": {"start": "consolidated"}}


class Run:
    """A run that was handed in.

    Parameters
    ----------
    rooms
        Where.
    out
        Its folder.
    run_id
        The SuperLink's number for it.
    """

    def __init__(self, rooms: Rooms, out: Path, run_id: str = "") -> None:
        self.rooms, self.out, self.run_id = rooms, out, run_id

    def again(self) -> Run:
        """Hand it in again, with the same folder."""
        file = self.out.with_name(self.out.name.replace("run-", "experiment-") + ".yaml")
        run_id = self.rooms.whole.hand_in(self.rooms.app, experiment=str(file), out=str(self.out))
        return Run(self.rooms, self.out, run_id)

    def rows(self) -> list[dict[str, Any]]:
        """Return what it has written down of its rounds so far."""
        file = self.out / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def round(self, number: int) -> dict[str, Any]:
        """Return what was written down of a round, once it is."""

        def found() -> dict[str, Any] | None:
            return next((row for row in self.rows() if row["round"] == number), None)

        row: dict[str, Any] = self.rooms.wait(found, f"round {number}")
        return row

    def ended(self) -> list[dict[str, Any]]:
        """Return what was written down of all rounds, once it has ended with a report."""
        self.rooms.wait((self.out / "report.html").exists, "a report")
        return self.rows()

    def roster(self) -> dict[str, Any]:
        """Return who takes part."""
        found: dict[str, Any] = json.loads((self.out / "roster.json").read_text())
        return found

    def node_of(self, name: str) -> str:
        """Return the node that a participant is."""
        (node,) = [one["node"] for one in self.roster()["participants"] if one["name"] == name]
        return str(node)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found

    def hashes(self) -> dict[str, str]:
        """Return each arm's hash of the weights."""
        lines = (self.out / "outcomes.jsonl").read_text().splitlines()
        return {entry["arm"]: entry["weights_sha256"] for entry in map(json.loads, lines)}

    def said(self, text: str) -> None:
        """Wait until its log has a text."""
        file = self.out / ".kdfed" / "log"
        self.rooms.wait(lambda: file.exists() and text in file.read_text(), f"{text!r} in the log")


class Rooms:
    """A federation of three devices with digits of their own.

    Parameters
    ----------
    whole
        The SuperLink.
    home
        A folder.
    app
        The devices' ClientApp; the ServerApp is kdfed's own.
    """

    def __init__(self, whole: Federation, home: Path, app: str = "tests.nodes.faulty:app") -> None:
        self.whole, self.home = whole, home
        self.devices: dict[str, Device] = {}
        self.app = home / "app"
        self.app.mkdir()
        settings = (ROOT / "simulations" / "pyproject.toml").read_text()
        assert "clients.client_app:app" in settings
        settings = settings.replace("clients.client_app:app", app)
        (self.app / "pyproject.toml").write_text(settings)
        shutil.copy(ROOT / "simulations" / "quickstart.yaml", self.app)

    def start(
        self,
        *names: str,
        inside: Mapping[str, Sequence[str]] | None = None,
        superlinks: Mapping[str, str] | None = None,
    ) -> None:
        """Start devices and wait until they are ready.

        Parameters
        ----------
        inside
            What stands before the command of some.
        superlinks
            Where some reach the SuperLink.
        """
        for name in names:
            file = self.home / f"{name}.npz"
            if not file.exists():
                write_npz(name, file)
            self.devices[name] = self.whole.device(
                name,
                free_port(),
                data=f"npz:{file}",
                inside=(inside or {}).get(name, ()),
                superlink=(superlinks or {}).get(name),
            )
        for name in names:
            self.devices[name].ready()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Return a condition's value once it is true; where it never is, tell what the SuperLink said."""
        try:
            return until(condition, PATIENCE, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.whole.log()[-4000:]}") from error

    def run(self, app: Path | None = None, **changes: Any) -> Run:
        """Hand in an experiment on the devices."""
        number = time.monotonic_ns()
        file, out = self.home / f"experiment-{number}.yaml", self.home / f"run-{number}"
        file.write_text(on_devices(**changes).to_yaml())
        run_id = self.whole.hand_in(app or self.app, experiment=str(file), out=str(out))
        return Run(self, out, run_id)

    def tell(self, name: str, message: str, fault: str) -> Path:
        """Tell a device what to do when a message comes."""
        file = self.home / name / FAULTS / message
        file.parent.mkdir(exist_ok=True)
        file.with_name(message + BEGUN).unlink(missing_ok=True)
        file.write_text(fault)
        return file

    def begun(self, name: str, message: str) -> None:
        """Wait until a device holds a message."""
        file = self.home / name / FAULTS / (message + BEGUN)
        self.wait(file.exists, f"{name} to get {message}")

    def online(self) -> set[str]:
        """Return the nodes that the SuperLink takes for present."""
        flower = Flower("local", self.home / "flower")
        return {node.node_id for node in flower.nodes() if node.status == "online"}

    def kill(self, name: str) -> None:
        """Kill a device's SuperNode, without a word to the SuperLink; what is left of the device ends too."""
        device = self.devices[name]
        supernode(device).kill()
        assert device.process.wait(60) == 1


def absent(row: dict[str, Any]) -> list[tuple[int, str]]:
    """Return who is left out, and why."""
    return [(one["participant"], one["reason"]) for one in row["absent"]]


def hashes_in_process(
    rooms: Rooms, folder: Path, change: Callable[..., Any] | None = None, **changes: Any
) -> dict[str, str]:
    """Return each arm's hash of the weights, where the devices are in this process."""
    configs = {
        number: {"participant": name, "data": f"npz:{rooms.home / name}.npz"}
        for number, name in enumerate(NAMES, 11)
    }
    grid = DeviceGrid(configs, **({} if change is None else {"change": change}))
    experiment = on_devices(**changes)
    run = RunFolder.open_for(folder / "twin", experiment)
    run_experiment(grid, experiment, run, "flower", report=False)
    return {outcome.arm: outcome.weights_sha256 for outcome in run.read_outcomes()}
