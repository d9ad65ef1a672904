"""The ``flower`` engine: ``flwr run simulations`` on a SuperLink of its own.

The SuperLink belongs to this run alone: its own FLWR_HOME, its own free port, killed with every process
beneath it (Ray's daemons included) when the run ends, fails, is interrupted or is itself killed. So two runs
never meet, and no other checkout's SuperLink is reused. Nothing is downloaded: the Flower app has no
dependencies, and the SuperLink is told to install none.

``flwr run`` exits 0 once a run is submitted, whatever becomes of it. The run's status is therefore asked from
the SuperLink (what ``flwr ls --run-id`` prints, without starting a Python process for every question).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdfed.config import Experiment
from kdfed.errors import KdfedError, Mistake, RunError
from kdfed.events import FOLDER, OVERWRITE, PROGRESS, Event, OnEvent
from kdfed.private.flwr import COMPLETED, HEALTH, Control, submitted, superlink_environment
from kdfed.private.ray import GPU_WARNING, TEMPORARY_FOLDER
from kdfed.records import Failure
from simulations.engines.checks import missing_packages, no_place, refuse, refuse_devices
from simulations.engines.gpus import gpu_share
from simulations.engines.home import MARK, temporary_home
from simulations.engines.loopback import bypass_proxies
from simulations.engines.process_state import preserved
from simulations.signals import held

if TYPE_CHECKING:
    from kdfed.records import RunFolder

APP = Path(__file__).resolve().parents[1]
"""The Flower app: the folder of this package, which holds ``pyproject.toml`` and the experiments."""

START_SECONDS = 120.0
"""How long the SuperLink may take to answer (a cold disk takes 40 s)."""

POLL_SECONDS = 0.2
"""Between two looks at the events; the status is asked every fifth time, and every time once they end."""

LOG_LINES = 15
"""Lines of Flower's log that an error quotes."""


def check(experiment: Experiment, *, nodes: int, address: str | None = None) -> None:
    """Refuse what this machine cannot run, before anything is started or written.

    Parameters
    ----------
    experiment, nodes
        As in :func:`run`.
    address
        Not used: the command gives it to the ray engine only.

    Raises
    ------
    ConfigError
        If a package or a command of Flower's is missing, or there is no place for temporary files.
    """
    refuse_devices(experiment)
    absent = [
        Mistake("--engine", f"the flower engine needs Flower's command {command}: is flwr installed here?")
        for command in (_commands() / "flower-superlink", _commands() / "flwr")
        if shutil.which(command) is None
    ]
    refuse([*missing_packages("flower", "ray", "psutil"), *absent, *no_place()])


@preserved()
def run(experiment: Experiment, folder: RunFolder, *, nodes: int, on_event: OnEvent) -> None:
    """Run an experiment through Flower's simulation runtime.

    Parameters
    ----------
    experiment
        The experiment that ``folder`` was opened for.
    folder
        Receives the records, written by the ServerApp.
    nodes
        Simulated Flower nodes, each a worker process; work is dealt to any of them.
    on_event
        Called with every event of the run.

    Raises
    ------
    ConfigError
        If this machine cannot run it; see :func:`check`.
    RunError
        If Flower did not start, or the run did not end as ``finished:completed``. Its message names the
        file that keeps Flower's log.
    """
    check(experiment, nodes=nodes)
    bypass_proxies(os.environ)
    folder.hand_over()  # the ServerApp's process writes
    failures: list[Failure] = []
    try:
        with temporary_home() as home:
            try:
                _run(experiment, folder, home, nodes, on_event, failures)
            except RunError as error:
                raise RunError(f"{error}\nFlower's log: {_keep_log(home, folder.path)}") from error
    except BaseException as error:
        with held():
            _conclude(experiment, folder, failures, isinstance(error, Exception))
        raise


def _conclude(experiment: Experiment, folder: RunFolder, failures: Sequence[Failure], failed: bool) -> None:
    """Sum up what a ServerApp recorded that was killed before it could do so."""
    if folder.has_summary or not folder.has_outcomes:
        return
    from simulations.server_app import conclude

    with suppress(KdfedError), folder:  # what ended the run is told, whatever becomes of its summary
        folder.hold(patience=10.0)  # a killed process lets go of its files a little later
        conclude(experiment, folder, "flower", failures, "failed" if failed else "interrupted")


def _run(
    experiment: Experiment,
    folder: RunFolder,
    home: Path,
    nodes: int,
    on_event: OnEvent,
    failures: list[Failure],
) -> None:
    events = _Events(home / "events.jsonl", on_event, failures)
    environment = _environment(home, experiment.threads, events.path)
    if folder.overwrites:
        environment[OVERWRITE] = "1"
    if experiment.folder is not None:
        environment[FOLDER] = str(experiment.folder)
    # The run folder is the ServerApp's to change: until then it keeps what it holds.
    (home / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    address = f"127.0.0.1:{_free_port()}"
    with _superlink(home, address, environment) as superlink:
        run_id = _submit(home, folder.path, environment, _federation(experiment, nodes))
        status, details = _follow(superlink, address, run_id, events, home / "superlink.log")
    if status != COMPLETED:
        reason = events.failure or details or _tail(home / "superlink.log")
        raise RunError(f"the run ended as {status}: {reason}")


# ----------------------------------------------------------------------------- Flower's processes


def _environment(home: Path, threads: int, events: Path) -> dict[str, str]:
    """Return the environment of the SuperLink, which the ServerApp and the Ray actors inherit."""
    return {
        **os.environ,
        # Flower starts its own commands by name: they must be those of this Python.
        "PATH": os.pathsep.join([str(_commands()), os.environ.get("PATH", "")]),
        MARK: str(home),
        **superlink_environment(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        GPU_WARNING: "0",
        TEMPORARY_FOLDER: str(home),
        "RAY_ADDRESS": "local",  # a cluster of one's own, not whichever is running
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        PROGRESS: str(events),
    }


def _commands() -> Path:
    return Path(sys.executable).parent


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def _superlink(home: Path, address: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a SuperLink as the leader of its own session, wait until it answers, and stop it on leaving."""
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{address}"\ninsecure = true\n'
    )
    host, port = address.split(":")
    command = [str(_commands() / "flower-superlink"), "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--host", host, "--port", port]
    with (home / "superlink.log").open("wb") as log:
        try:
            superlink = subprocess.Popen(  # noqa: S603
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise RunError(f"cannot start Flower's SuperLink: {error}; is flwr installed here?") from error
    try:
        _wait_until_ready(superlink, address, home / "superlink.log")
        yield superlink
    finally:
        superlink.kill()
        superlink.wait()


def _wait_until_ready(superlink: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(address):
        if superlink.poll() is not None:
            raise RunError(f"Flower's SuperLink did not start: {_tail(log)}")
        if time.monotonic() > deadline:
            raise RunError(f"Flower's SuperLink did not answer on {address} for {START_SECONDS:g} seconds")
        time.sleep(0.1)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}{HEALTH}", timeout=2) as reply:
            answered: bool = reply.status == 200
            return answered
    except (urllib.error.URLError, OSError):
        return False


def _federation(experiment: Experiment, nodes: int) -> str:
    """Return Flower's simulation settings: one worker process a node, also where there are fewer cores."""
    import torch

    gpus = gpu_share(experiment.device, torch.cuda.device_count(), nodes)
    return (
        f"num-supernodes={nodes} client-resources-num-cpus=1 client-resources-num-gpus={gpus} "
        f"init-args-num-cpus={nodes}"
    )


def _submit(home: Path, folder: Path, environment: dict[str, str], federation: str) -> int:
    """Hand the app to the SuperLink with ``flwr run`` and return the run's id."""
    settings = {"experiment": str(home / "experiment.yaml"), "out": str(folder)}
    run_config = home / "run-config.toml"  # a file, because Flower's key=value form has no escapes
    run_config.write_text(
        "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items()),
        encoding="utf-8",
    )
    command = [str(_commands() / "flwr"), "run", str(APP), "local", "--format", "json"]
    command += ["--run-config", str(run_config), "--federation-config", federation]
    reply = subprocess.run(  # noqa: S603
        command, env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    run_id, reason = submitted(reply.stdout)
    if run_id is None:
        raise RunError(f"Flower did not take the run: {reason or (reply.stderr + reply.stdout).strip()}")
    return run_id


def _follow(
    superlink: subprocess.Popen[bytes], address: str, run_id: int, events: _Events, log: Path
) -> tuple[str, str]:
    """Pass events on until the run has finished; return its status and Flower's reason.

    The run's own log is added to the SuperLink's when it failed.
    """
    with closing(Control(address)) as control:
        for turn in itertools.count():
            events.read()
            if superlink.poll() is not None:
                return "lost", f"Flower's SuperLink ended with exit code {superlink.returncode}"
            if events.ended or turn % 5 == 0:
                state = control.state(run_id)
                if state.finished:
                    break
            time.sleep(POLL_SECONDS)
        events.read()
        if state.text != COMPLETED:
            with log.open("a", encoding="utf-8") as file:
                file.writelines(control.log(run_id))
        return state.text, state.details


class _Events:
    """Follows the JSON-lines file to which the ServerApp appends its events."""

    def __init__(self, path: Path, on_event: OnEvent, failures: list[Failure]) -> None:
        self.path = path
        self.failures = failures
        self.failure = ""
        self.ended = False
        self._on_event = on_event
        self._position = 0
        self._phases: dict[tuple[str, int], str] = {}
        path.touch()

    def read(self) -> None:
        """Pass on what was appended since the last call; half a line waits for its rest."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                event = Event(**json.loads(line))
                if event.phase == "failed" and event.message:
                    self.failure = event.message
                    if event.arm:
                        phase = self._phases.get((event.arm, event.seed), "start")
                        self.failures.append(Failure(event.arm, event.seed, phase, event.message))
                self._phases[event.arm, event.seed] = event.phase
                self.ended = event.arm == "" and event.phase in ("done", "failed")
                self._on_event(event)


# ----------------------------------------------------------------------------- its log


def _keep_log(home: Path, folder: Path) -> str:
    """Copy Flower's log into the run folder, and say where it lies."""
    kept, log = folder / ".kdfed" / "flower.log", home / "superlink.log"
    try:
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(log.read_bytes() if log.exists() else b"")
    except OSError as error:
        return f"it could not be kept: {error}"
    return str(kept)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LOG_LINES:]) or "its log is empty"
