"""The READMEs of a deployment, and Flower's connection: what to run where, word for word."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from simulations.deploy.layout import (
    AUTHORITY,
    CA_CERTIFICATE,
    CA_KEY,
    CONNECTION,
    DEVICE_KEY,
    DEVICES,
    INSTALL,
    OPERATOR,
    PUBLIC_KEY,
    SERVER_KEY,
    START,
    SUPERLINK,
    WHEELS,
    unit_of,
)
from simulations.deploy.programs import RESTART_SECONDS, install_commands
from simulations.deploy.settings import ParticipantSettings, Plan, address_of


def connection(plan: Plan, folder: Path, *, insecure: bool) -> str:
    """Return Flower's ``config.toml``, with this SuperLink as its only connection.

    Parameters
    ----------
    plan
        The deployment.
    folder
        Its absolute folder: Flower wants absolute paths.
    insecure
        Whether it is without TLS.
    """
    certificate = json.dumps(str(folder / SUPERLINK / CA_CERTIFICATE), ensure_ascii=False)
    trust = "insecure = true" if insecure else f"root-certificates = {certificate}"
    return f"""\
# The SuperLink of this deployment. Use it with FLWR_HOME={folder / OPERATOR}, or copy the
# second section into ~/.flwr/config.toml.
[superlink]
default = "{CONNECTION}"

[superlink.{CONNECTION}]
address = "{plan.superlink.address}"
{trust}
"""


def top_readme(plan: Plan, folder: Path, versions: Mapping[str, str], *, insecure: bool) -> str:
    """Return the README of the whole deployment."""
    home, superlink = folder / OPERATOR, plan.superlink
    rows = "\n".join(
        f"| {one.name} | `{_cell(one.data)}` | {one.device} | {one.port} | `{DEVICES}/{one.name}/` |"
        for one in plan.participants
    )
    register = f"""\
## 3. Register the keys

Only devices whose keys are registered can connect. On this machine, once the SuperLink runs:

```bash
kdfed deploy register {_word(folder)}
```

It calls Flower's own command for every device that is not registered yet; by hand that is
`flwr supernode register {DEVICES}/NAME/{PUBLIC_KEY} {CONNECTION}`, with `FLWR_HOME` as below.
"""
    open_ = (
        "This deployment has no TLS and no keys, so nothing is registered. It is for this machine alone.\n"
    )
    open_here = f"## 3. Keys\n\n{open_}"
    secrets = (
        open_
        if insecure
        else f"""\
`{AUTHORITY}/{CA_KEY}` signs the SuperLink's certificate: it stays here. `{SUPERLINK}/{SERVER_KEY}` goes to
the SuperLink alone, `{DEVICES}/NAME/{DEVICE_KEY}` to its device alone. They are readable to their owner
only, and must stay so.

Whoever can reach port {superlink.port} of the SuperLink can start runs and register keys: let only your
devices and yourself reach it.
"""
    )
    host, first = superlink.hosts[0], plan.participants[0].name
    link_here = f"""\
This deployment is for this machine alone. Start the SuperLink in a terminal of its own, from an environment
with kdfed:

```bash
sh {_word(folder / SUPERLINK / START)}
```
"""
    link_there = f"""\
Copy its folder and the wheel to its machine, `{host}`, and install there. `scp -p` keeps the modes:

```bash
scp -pr {SUPERLINK} {WHEELS} {host}:
```

On that machine:

```bash
sudo sh {SUPERLINK}/{INSTALL}
sudo systemctl enable --now {unit_of(SUPERLINK)}
```

Without systemd: `sh {SUPERLINK}/{START}`.
"""
    devices_here = f"Start each in a terminal of its own: `kdfed node {_word(folder / DEVICES / first)}`\n"
    devices_there = f"""\
Copy each folder and the wheel to its device; its own README says the rest:

```bash
scp -pr {DEVICES}/{first} {WHEELS} DEVICE:
```
"""
    here = superlink.is_local
    top = str(folder / SUPERLINK) if here else f"{plan.install}/{SUPERLINK}"
    return f"""\
# A kdfed deployment

SuperLink: `{superlink.address}`; it listens on `{address_of(superlink.bound_to, superlink.port)}`.
{"No TLS." if insecure else "TLS, and keys for devices."}
Made with kdfed {versions["kdfed"]}, flwr {versions["flwr"]}, torch {versions["torch"]}.

| participant | data on its device | device | local port | folder |
| --- | --- | --- | --- | --- |
{rows}

## What is secret

{secrets}
## 1. kdfed's wheel

Machines install kdfed from `{WHEELS}/`, or from a package index where it has none. In a checkout of kdfed:

```bash
pip wheel --no-deps --wheel-dir {_word(folder / WHEELS)} .
```

## 2. The SuperLink

{link_here if here else link_there}
{open_here if insecure else register}
## 4. The devices

{devices_here if here else devices_there}
## 5. Look

```bash
kdfed deploy check {_word(folder)}
kdfed deploy status {_word(folder)}
```

## 6. Run an experiment

In a checkout of kdfed:

```bash
export FLWR_HOME={_word(home)}
flwr run simulations {CONNECTION} --stream \\
  --run-config "experiment='{top}/FILE.yaml' out='{top}/runs/NAME'"
```

Both paths are on the SuperLink's machine, which writes in its own folder alone.

## Everything on one host

`docker compose up --build` starts the SuperLink and all devices in containers, on this host's network. It
needs the wheel in `{WHEELS}/`. The commands for registering and running are the same.

## Another participant

Add it to the participants' file and run `kdfed deploy init` again: what is here is kept, and only what is
new is written.
"""


def device_readme(
    plan: Plan, participant: ParticipantSettings, versions: Mapping[str, str], *, insecure: bool
) -> str:
    """Return the README of a device's folder."""
    name, folder = participant.name, f"{plan.install}/{participant.name}"
    gpu = participant.device.startswith("cuda")
    commands = "\n".join(install_commands("pip", versions, "edge", WHEELS, gpu=gpu))
    secret = (
        "There is no key: this deployment is for one machine alone."
        if insecure
        else f"`{DEVICE_KEY}` is secret: whoever has it can answer as {name}. It is on this device alone."
    )
    return f"""\
# Participant {name}

This folder belongs on the device of {name}, whose examples are at `{participant.data}`. It connects to
`{plan.superlink.address}`. {secret}

## Install

You need Linux of 64 bits and Python 3.11 or newer. Copy this folder and, beside it, `{WHEELS}/` to the
device, then:

```bash
sudo sh {name}/{INSTALL}
```

That makes the user `{plan.user}`, moves the folder to `{folder}`, and installs kdfed in
`{plan.install}/venv` with these lines, which you can also run in an environment of your own:

```bash
{commands}
```

The user `{plan.user}` must be able to read the data.

## Check, then start

```bash
sudo -u {plan.user} {plan.install}/venv/bin/kdfed deploy check {folder}
sudo systemctl enable --now {unit_of(name)}
journalctl -u {unit_of(name)} -f
```

Without systemd: `kdfed node {folder}`.

## Stop, restart

`sudo systemctl restart {unit_of(name)}` needs no wait. After a crash the unit starts again
{RESTART_SECONDS} s later, because Flower refuses the key for 60 s.

## Change

What this device reads and runs is in `node.yaml`; no message can change it. Restart it afterwards.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def _word(path: Path) -> str:
    return shlex.quote(str(path))
