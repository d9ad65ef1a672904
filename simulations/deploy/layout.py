"""What a deployment's folder holds.

::

    DIR/                   owner-only; the operator's, it never leaves this machine as a whole
      deployment.yaml      what it was made of, written last
      README.md            what to run where
      authority/           ca.key, ca.crt: signs the SuperLink's certificate; secret
      operator/            config.toml: Flower's connection, for `flwr run`; nodes.json: who is registered
      superlink/           ca.crt, server.crt, server.key, start.sh, environment, unit, install.sh, state/
      devices/NAME/        node.yaml, ca.crt, key, key.pub, environment, unit, install.sh, README.md, state/
      wheels/              kdfed's wheel
      compose.yaml         everything on one host, with Dockerfile, .dockerignore and .env
"""

from __future__ import annotations

from pathlib import Path

from clients.device_folder import FILE

DEPLOYMENT = "deployment.yaml"
AUTHORITY = "authority"
OPERATOR = "operator"
SUPERLINK = "superlink"
DEVICES = "devices"
WHEELS = "wheels"
STATE = "state"
NODES = "nodes.json"
CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
SERVER_CERTIFICATE = "server.crt"
SERVER_KEY = "server.key"
DEVICE_KEY = "key"
PUBLIC_KEY = "key.pub"
ENVIRONMENT = "environment"
MADE = "made.json"
START = "start.sh"
INSTALL = "install.sh"
README = "README.md"
CONFIG = "config.toml"

CONNECTION = "kdfed"
"""The name of the SuperLink in the operator's Flower configuration."""


def unit_of(name: str) -> str:
    """Return the file name of the systemd unit of a device, or of ``superlink``."""
    return f"kdfed-{name}.service"


def is_deployment(folder: Path) -> bool:
    """Tell whether a folder is a whole deployment."""
    return (folder / DEPLOYMENT).is_file()


def is_device(folder: Path) -> bool:
    """Tell whether a folder is that of a device."""
    return (folder / FILE).is_file()


def is_superlink(folder: Path) -> bool:
    """Tell whether a folder is that of the SuperLink."""
    return (folder / START).is_file()
