"""What machines run: systemd units, the SuperLink's start command, installation and environment."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from kdfed.private.flwr import silent_environment, superlink_environment
from simulations.deploy.layout import (
    CA_CERTIFICATE,
    ENVIRONMENT,
    INSTALL,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    START,
    STATE,
    SUPERLINK,
    unit_of,
)
from simulations.deploy.settings import ParticipantSettings, Plan

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
"""PyTorch without CUDA: a twentieth of the size."""

RESTART_SECONDS = 70
"""After a crash Flower refuses the same key until the node's heartbeat has expired, 60 s later."""

_COMMON = """\
KillMode=mixed
TimeoutStopSec=60
# Stopped by SIGINT or SIGTERM, kdfed ends with 130 or 143.
SuccessExitStatus=130 143
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
"""


def device_unit(plan: Plan, participant: ParticipantSettings) -> str:
    """Return the systemd unit of a device."""
    folder = f"{plan.install}/{participant.name}"
    writable = [folder, *([participant.store] if participant.store else [])]
    return f"""\
[Unit]
Description=kdfed, participant {participant.name}
Documentation=file:{folder}/README.md
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={plan.user}
WorkingDirectory={folder}
EnvironmentFile={folder}/{ENVIRONMENT}
{_making(participant.store, plan.user)}ExecStart={plan.install}/venv/bin/kdfed node {folder}
Restart=on-failure
# After a crash Flower refuses this key for 60 s. A stop and a start by hand need no wait.
RestartSec={RESTART_SECONDS}
# A wrong node.yaml does not mend itself.
RestartPreventExitStatus=2
{_COMMON}ReadWritePaths={" ".join(map(_quoted, writable))}

[Install]
WantedBy=multi-user.target
"""


def _making(store: str | None, user: str) -> str:
    """Return the line of a unit that makes a participant's store, as root; one that is there stays as it is.

    A path that is absent and may be written keeps a unit from starting.
    """
    if store is None:
        return ""
    command = f"[ -d {shlex.quote(store)} ] || install -d -m 700 -o {user} {shlex.quote(store)}"
    return f"ExecStartPre=+/bin/sh -c {_quoted(command).replace('$', '$$')}\n"


def superlink_unit(plan: Plan) -> str:
    """Return the systemd unit of the SuperLink."""
    folder = f"{plan.install}/{SUPERLINK}"
    return f"""\
[Unit]
Description=Flower SuperLink for kdfed
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={plan.user}
WorkingDirectory={folder}
# Caches go there; nothing else can be written.
Environment=HOME={folder}/{STATE}
ExecStart={folder}/{START}
Restart=on-failure
RestartSec=10
{_COMMON}ReadWritePaths={_quoted(folder)}

[Install]
WantedBy=multi-user.target
"""


def _quoted(path: str) -> str:
    """Return a path, or another word, as a unit holds it in quotes."""
    inner = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{inner}"'


def superlink_command(plan: Plan, *, insecure: bool) -> list[str]:
    """Return the words that start the SuperLink; ``$PWD`` in them is its folder."""
    command = ["flower-superlink", "--host", plan.superlink.bound_to, "--port", str(plan.superlink.port)]
    command += ["--database", f"$PWD/{STATE}/superlink.db"]
    if insecure:
        return [*command, "--insecure"]
    files = {
        "--ssl-certfile": SERVER_CERTIFICATE,
        "--ssl-keyfile": SERVER_KEY,
        "--ssl-ca-certfile": CA_CERTIFICATE,
    }
    for option, file in files.items():
        command += [option, f"$PWD/{file}"]
    return [*command, "--enable-supernode-auth"]


def start_script(plan: Plan, *, insecure: bool) -> str:
    """Return the shell script that starts the SuperLink."""
    words = [f'"{word}"' if "$" in word else word for word in superlink_command(plan, insecure=insecure)]
    variables = superlink_environment(Path("$PWD") / STATE)
    exports = "".join(f'export {name}="{value}"\n' for name, value in variables.items())
    return f"""\
#!/bin/sh
# Starts the SuperLink. It runs until it is stopped; what it has to remember is in {STATE}/.
set -eu
umask 077
cd -- "$(dirname -- "$0")"
mkdir -p {STATE}
export PATH="{plan.install}/venv/bin:$PATH"
# What an app needs is installed already: Flower would fetch it anew for every run.
{exports}exec {" ".join(words)}
"""


def device_environment(plan: Plan, participant: ParticipantSettings) -> str:
    """Return the environment of a device's processes, as systemd and Docker read it."""
    values = {
        "PATH": f"{plan.install}/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "FLWR_HOME": f"{plan.install}/{participant.name}/{STATE}",
        "HOME": f"{plan.install}/{participant.name}/{STATE}",  # caches; nothing else can be written
        "OMP_NUM_THREADS": str(participant.threads),
        **silent_environment(),
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def install_commands(
    pip: str, versions: Mapping[str, str], extra: str, wheels: str, *, gpu: bool = False
) -> list[str]:
    """Return the two commands that install kdfed: PyTorch first, so that its size is chosen.

    Parameters
    ----------
    pip
        The command ``pip``.
    versions
        Of kdfed, flwr and torch.
    extra
        Of kdfed: ``edge`` on a device, ``sim`` beside the SuperLink.
    wheels
        The folder with kdfed's wheel, quoted for a shell where it must be.
    gpu
        Whether PyTorch is to be the one with CUDA.
    """
    torch = f"torch=={versions['torch'].partition('+')[0]}"
    index = "" if gpu else f" --index-url {CPU_WHEELS}"
    package = shlex.quote(f"kdfed[{extra}]=={versions['kdfed']}")
    return [
        f"{pip} install {torch}{index}",
        f"{pip} install --find-links {wheels} {package} flwr=={versions['flwr']}",
    ]


def install_script(plan: Plan, name: str, versions: Mapping[str, str], *, gpu: bool = False) -> str:
    """Return the shell script that installs kdfed on a machine.

    Parameters
    ----------
    plan
        The deployment.
    name
        Of the participant, or ``superlink``.
    versions, gpu
        As of :func:`install_commands`.
    """
    top, folder = plan.install, f"{plan.install}/{name}"
    pip = f"{top}/venv/bin/python -m pip"
    extra = "sim" if name == SUPERLINK else "edge"
    commands = "\n".join(install_commands(pip, versions, extra, '"$wheels"', gpu=gpu))
    return f"""\
#!/bin/sh
# Run it as root: sudo sh {INSTALL}. It makes the user {plan.user}, moves this folder to {folder},
# installs kdfed in {top}/venv and the systemd unit {unit_of(name)}. It starts nothing. It can be run again.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
wheels=$(dirname -- "$here")/wheels
id -u {plan.user} >/dev/null 2>&1 || useradd --system --shell /usr/sbin/nologin --home-dir {top} {plan.user}
mkdir -p {top}
if [ "$here" != {folder} ]; then
    if [ -e {folder} ]; then
        echo "{folder} is there already: run {folder}/{INSTALL}, or move that folder away" >&2
        exit 1
    fi
    mv -- "$here" {folder}
fi
chown -R {plan.user}: {folder}
[ -x {top}/venv/bin/python ] || python3 -m venv {top}/venv
{commands}
install -m 644 {folder}/{unit_of(name)} /etc/systemd/system/
systemctl daemon-reload
echo "installed: systemctl enable --now {unit_of(name)}"
"""
