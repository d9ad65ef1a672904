"""Units and scripts are what systemd and the shell accept, and do what they say."""

from __future__ import annotations

import configparser
import getpass
import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from simulations.deploy.programs import (
    RESTART_SECONDS,
    device_environment,
    device_unit,
    install_commands,
    superlink_command,
    superlink_unit,
)
from simulations.deploy.settings import Plan
from simulations.deploy.writing import initialise
from tests.simulations.deploy.conftest import LOCAL, PLAN

VERSIONS = {"kdfed": "0.1.0", "flwr": "1.42.0", "torch": "2.9.0+cpu"}


def program(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A deployment whose machines' folder is here, with something that can be run as kdfed."""
    top = tmp_path / "top"
    row = {**PLAN["participants"][0], "store": '/srv/a %b "c" $d'}
    plan = Plan.model_validate({**PLAN, "participants": [row], "install": str(top)})
    initialise(tmp_path / "deployment", plan)
    program(top / "venv" / "bin" / "kdfed")
    shutil.copytree(tmp_path / "deployment" / "superlink", top / "superlink")
    shutil.copytree(tmp_path / "deployment" / "devices" / "north", top / "north")
    return top


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["north", "superlink"])
def test_systemd_accepts_the_units(installed, name):
    unit = installed / name / f"kdfed-{name}.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=120
    )
    ours = [line for line in done.stderr.splitlines() if "kdfed" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_would_see_a_mistake(installed):
    unit = installed / "north" / "kdfed-north.service"
    unit.write_text(unit.read_text().replace("venv/bin/kdfed", "venv/bin/absent"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "absent is not executable" in done.stderr


def test_a_crash_waits_for_flower_and_a_wrong_file_is_not_tried_again():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    plan = Plan.model_validate(PLAN)
    unit.read_string(device_unit(plan, plan.participants[0]))
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert int(service["RestartSec"]) == RESTART_SECONDS > 60
    assert service["RestartPreventExitStatus"] == "2"
    assert service["SuccessExitStatus"].split() == ["130", "143"]
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_what_is_kept_stays_in_the_one_folder_that_can_be_written():
    plan = Plan.model_validate(PLAN)
    lines = device_environment(plan, plan.participants[1]).splitlines()
    values = dict(line.split("=", 1) for line in lines)
    assert values["HOME"] == values["FLWR_HOME"] == "/opt/kdfed/south/state"
    assert values["OMP_NUM_THREADS"] == "2"
    assert values["PATH"].startswith("/opt/kdfed/venv/bin:")
    assert 'ReadWritePaths="/opt/kdfed/south"' in device_unit(plan, plan.participants[1])
    unit = superlink_unit(plan)
    assert "Environment=HOME=/opt/kdfed/superlink/state" in unit
    assert 'ReadWritePaths="/opt/kdfed/superlink"' in unit


@pytest.mark.parametrize("name", ["store", 'a %b "c" $d\\e', "it's"])
def test_the_unit_makes_a_store_that_is_not_there_and_leaves_one_that_is(name, tmp_path):
    """A path under ReadWritePaths that is absent keeps a unit from starting."""
    store, user = tmp_path / "kept" / name, getpass.getuser()
    row = {**PLAN["participants"][0], "store": str(store)}
    plan = Plan.model_validate({**PLAN, "participants": [row], "user": user})
    lines = device_unit(plan, plan.participants[0]).splitlines()
    (making,) = [place for place, line in enumerate(lines) if line.startswith("ExecStartPre=")]
    (starting,) = [place for place, line in enumerate(lines) if line.startswith("ExecStart=")]
    assert making < starting
    command = lines[making].removeprefix("ExecStartPre=+")  # as root, outside of what the unit may write
    words = [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(command)]
    subprocess.run(words, check=True)
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert store.owner() == user
    (store / "mine").touch()
    store.chmod(0o750)
    subprocess.run(words, check=True)
    assert stat.S_IMODE(store.stat().st_mode) == 0o750
    assert (store / "mine").exists()


def test_a_device_that_keeps_nothing_makes_nothing():
    plan = Plan.model_validate(PLAN)
    assert plan.participants[0].store is None
    assert "ExecStartPre" not in device_unit(plan, plan.participants[0])


def test_tls_and_authentication_are_on_unless_it_is_insecure():
    secure = superlink_command(Plan.model_validate(PLAN), insecure=False)
    assert "--enable-supernode-auth" in secure
    assert {"--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"} <= set(secure)
    assert "--insecure" not in secure
    insecure = superlink_command(Plan.model_validate(LOCAL), insecure=True)
    assert insecure[-1] == "--insecure"
    assert not any("ssl" in word or "auth" in word for word in insecure)


def test_the_cpu_wheel_of_the_same_pytorch_is_named_and_a_gpu_gets_the_other():
    torch, kdfed = install_commands("pip", VERSIONS, "edge", "wheels")
    assert torch == "pip install torch==2.9.0 --index-url https://download.pytorch.org/whl/cpu"
    assert kdfed == "pip install --find-links wheels 'kdfed[edge]==0.1.0' flwr==1.42.0"
    assert install_commands("pip", VERSIONS, "edge", "wheels", gpu=True)[0] == "pip install torch==2.9.0"


# ----------------------------------------------------------------------------- scripts are run, with stubs


def stubs(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which commands only write down how they were called."""
    for name in names:
        program(folder / name, f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "{folder}/calls"\n')
    return {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}


def test_the_start_script_starts_the_superlink_in_its_folder(deployed, tmp_path):
    folder = deployed(install=str(tmp_path / "absent")) / "superlink"
    os.rmdir(folder / "state")
    stub = tmp_path / "stubs" / "flower-superlink"
    program(stub, '#!/bin/sh\nprintf "%s\\n" "$PWD" "$FLWR_HOME" "$*"\n')
    environment = {**os.environ, "PATH": f"{stub.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", str(folder / "start.sh")], env=environment, capture_output=True, text=True, check=True, cwd="/"
    )
    where, home, words = done.stdout.splitlines()
    assert (where, home) == (str(folder), str(folder / "state"))
    assert f"--ssl-keyfile {folder}/server.key" in words
    assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """A home with a device's copied folder, the folder where it goes, and stubs for what needs a root."""
    top = tmp_path / "top"
    plan = Plan.model_validate({**PLAN, "install": str(top)})
    initialise(tmp_path / "deployment", plan)
    home = tmp_path / "home"
    shutil.copytree(tmp_path / "deployment" / "devices" / "north", home / "north")
    (home / "wheels").mkdir()
    program(top / "venv" / "bin" / "python", f'#!/bin/sh\necho "python $*" >> "{tmp_path}/stubs/calls"\n')
    names = ("useradd", "chown", "install", "systemctl", "id")
    return home, top, stubs(tmp_path / "stubs", *names)


def test_installing_moves_the_folder_and_starts_nothing(machine, tmp_path):
    home, top, environment = machine
    subprocess.run(["sh", "north/install.sh"], env=environment, cwd=home, check=True, capture_output=True)
    assert not (home / "north").exists()
    assert stat.S_IMODE((top / "north" / "key").stat().st_mode) == 0o600
    calls = (tmp_path / "stubs" / "calls").read_text()
    assert f"chown -R kdfed: {top}/north" in calls
    assert f"--find-links {home}/wheels kdfed[edge]==" in calls
    assert "systemctl daemon-reload" in calls
    assert "start" not in calls
    again = subprocess.run(
        ["sh", f"{top}/north/install.sh"], env=environment, check=True, capture_output=True
    )
    assert b"systemctl enable --now kdfed-north.service" in again.stdout


def test_installing_never_writes_over_a_folder(machine):
    home, top, environment = machine
    (top / "north").mkdir()
    done = subprocess.run(
        ["sh", "north/install.sh"], env=environment, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert (home / "north" / "key").exists()
    assert list((top / "north").iterdir()) == []
