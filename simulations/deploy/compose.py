"""Everything on one host, in containers: the files that ``docker compose`` reads.

The containers use the host's network, so that names, addresses and ports are those of the deployment. Folders
lie in them where they would lie on a machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from simulations.deploy.layout import DEVICES, ENVIRONMENT, START, STATE, SUPERLINK, WHEELS
from simulations.deploy.programs import install_commands
from simulations.deploy.reading import to_yaml
from simulations.deploy.settings import DATA_KINDS, ParticipantSettings, Plan

COMPOSE = "compose.yaml"


def compose_files(plan: Plan, versions: Mapping[str, str]) -> dict[str, str]:
    """Return the files of a deployment in containers, by name."""
    return {
        COMPOSE: f"# Everything on this host: docker compose up --build\n{to_yaml(compose(plan))}",
        "Dockerfile": _dockerfile(versions),
        # No key is sent to Docker, and none is in an image.
        ".dockerignore": f"*\n!{WHEELS}\n",
        ".env": f"# Who owns the keys.\nKDFED_USER={os.getuid()}:{os.getgid()}\n",
    }


def compose(plan: Plan) -> dict[str, Any]:
    """Return what ``compose.yaml`` says."""
    folder = f"{plan.install}/{SUPERLINK}"
    services: dict[str, Any] = {
        SUPERLINK: {
            **_service("sim"),
            "command": ["sh", f"{folder}/{START}"],
            "working_dir": folder,
            "environment": {"HOME": f"{folder}/{STATE}"},
            "volumes": [_bind(f"./{SUPERLINK}", folder)],
        }
    }
    for participant in plan.participants:
        folder = f"{plan.install}/{participant.name}"
        services[_service_name(participant.name)] = {
            **_service("edge"),
            "command": ["kdfed", "node", folder],
            "working_dir": folder,
            "env_file": [f"./{DEVICES}/{participant.name}/{ENVIRONMENT}"],
            "depends_on": [SUPERLINK],
            "volumes": [_bind(f"./{DEVICES}/{participant.name}", folder), *_data_of(participant)],
        }
    return {"name": "kdfed", "services": services}


def _service(extra: str) -> dict[str, Any]:
    return {
        "image": f"kdfed-{extra}",
        "build": {"context": ".", "args": {"EXTRA": extra}},
        "network_mode": "host",
        "user": "${KDFED_USER}",
        "restart": "on-failure",
        "stop_grace_period": "60s",
        "init": True,
    }


def _service_name(name: str) -> str:
    return f"device-{name}"


def _bind(source: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    """Return a folder or file of the host's in a container; one that is not there is an error."""
    bound = {"type": "bind", "source": _literal(source), "target": _literal(target)}
    return {**bound, **({"read_only": True} if read_only else {}), "bind": {"create_host_path": False}}


def _literal(text: str) -> str:
    return text.replace("$", "$$")  # compose would put a variable in its place


def _data_of(participant: ParticipantSettings) -> list[dict[str, Any]]:
    """Return what of the host's a device reads and writes, at the same place in its container."""
    kind, _, path = participant.data.partition(":")
    read = [path] if kind in DATA_KINDS else []
    read += [participant.teacher] if participant.teacher else []
    written = [participant.store] if participant.store else []
    return [_bind(one, one, read_only=True) for one in read] + [_bind(one, one) for one in written]


def _dockerfile(versions: Mapping[str, str]) -> str:
    major, minor, _ = platform.python_version_tuple()
    torch, kdfed = install_commands("pip", versions, "EXTRA", f"/{WHEELS}")
    kdfed = kdfed.replace("'kdfed[EXTRA]", '"kdfed[$EXTRA]').replace(
        f"=={versions['kdfed']}'", f'=={versions["kdfed"]}"'
    )
    return f"""\
FROM python:{major}.{minor}-slim
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN {torch}
COPY {WHEELS} /{WHEELS}
ARG EXTRA
RUN {kdfed}
"""
