"""Writing a deployment: all of it or nothing, and never over a key.

A new deployment is made under another name and renamed at the end; so is every folder of a new participant in
an old one. ``deployment.yaml`` is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from clients.device_folder import FILE, DeviceFolder
from kdfed.errors import ConfigError, Mistake, RunFolderError, shown
from kdfed.settings import kebab
from simulations.deploy.compose import compose_files
from simulations.deploy.credentials import (
    Pair,
    certificate_for,
    new_authority,
    new_device_key,
    new_key,
    read_certificate,
    read_key,
)
from simulations.deploy.layout import (
    AUTHORITY,
    CA_CERTIFICATE,
    CA_KEY,
    CONFIG,
    DEPLOYMENT,
    DEVICE_KEY,
    DEVICES,
    ENVIRONMENT,
    INSTALL,
    MADE,
    OPERATOR,
    PUBLIC_KEY,
    README,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    START,
    STATE,
    SUPERLINK,
    WHEELS,
    is_deployment,
    unit_of,
)
from simulations.deploy.pages import connection, device_readme, top_readme
from simulations.deploy.programs import (
    device_environment,
    device_unit,
    install_script,
    start_script,
    superlink_unit,
)
from simulations.deploy.reading import read_deployment, to_yaml
from simulations.deploy.secret import make_private_folder, whole_folder, write_open, write_secret
from simulations.deploy.settings import Deployment, ParticipantSettings, Plan


class Written(NamedTuple):
    """Names of the participants whose folders were written, and of those whose folders were kept."""

    made: tuple[str, ...]
    kept: tuple[str, ...]


def installed_versions() -> dict[str, str]:
    """Return the versions that the machines of a deployment should have."""
    return {package: version(package) for package in ("kdfed", "flwr", "torch")}


def initialise(folder: Path, plan: Plan, *, insecure: bool = False) -> Written:
    """Write a deployment, or the new participants of one that is there.

    Parameters
    ----------
    folder
        Absolute. It is not there yet, or is a deployment.
    plan
        The participants' file.
    insecure
        Without TLS and keys.

    Raises
    ------
    RunFolderError
        If the folder is something else, or cannot be written.
    ConfigError
        If the file says something else of what is there than what it was made of.
    """
    with _told(folder):
        if is_deployment(folder):
            return _extend(folder, plan, insecure=insecure)
        if os.path.lexists(folder):
            raise RunFolderError(
                f"expected a place where nothing is, or a deployment (a folder with {DEPLOYMENT}), got "
                f"{folder}; name another folder"
            )
        deployment = Deployment(plan=plan.with_ports(), insecure=insecure, versions=installed_versions())
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as part:
            _write_all(part, folder, deployment)
    return Written(tuple(one.name for one in plan.participants), ())


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{folder}: expected a folder that can be written: {error.strerror or error}; choose another "
            "place, or make room"
        ) from error


def _write_all(part: Path, folder: Path, deployment: Deployment) -> None:
    """Write a whole deployment into ``part``, which becomes ``folder``."""
    plan, insecure = deployment.plan, deployment.insecure
    for name in (SUPERLINK, DEVICES, OPERATOR, WHEELS):
        make_private_folder(part / name)
    superlink = part / SUPERLINK
    certificate = b""
    if not insecure:
        authority, key = new_authority(), new_key()
        certificate = authority.public
        make_private_folder(part / AUTHORITY)
        write_secret(part / AUTHORITY / CA_KEY, authority.private)
        write_open(part / AUTHORITY / CA_CERTIFICATE, certificate.decode())
        write_secret(superlink / SERVER_KEY, key)
        signed = certificate_for(authority, key, plan.superlink.certified, plan.certificate_days)
        write_open(superlink / SERVER_CERTIFICATE, signed.decode())
        write_open(superlink / CA_CERTIFICATE, certificate.decode())
    make_private_folder(superlink / STATE)
    write_open(superlink / START, start_script(plan, insecure=insecure), runs=True)
    write_open(superlink / INSTALL, install_script(plan, SUPERLINK, deployment.versions), runs=True)
    write_open(superlink / unit_of(SUPERLINK), superlink_unit(plan))
    listens = {"listen": plan.superlink.bound_to, "port": plan.superlink.port}
    write_open(superlink / MADE, _json({"versions": deployment.versions, **listens}))
    write_open(part / OPERATOR / CONFIG, connection(plan, folder, insecure=insecure))
    for participant in plan.participants:
        with whole_folder(part / DEVICES / participant.name) as device:
            _write_device(device, deployment, participant, certificate)
    _write_top(part, folder, deployment)


def _write_device(
    folder: Path, deployment: Deployment, participant: ParticipantSettings, authority: bytes
) -> None:
    plan, insecure = deployment.plan, deployment.insecure
    if not insecure:
        pair = new_device_key(participant.name)
        write_secret(folder / DEVICE_KEY, pair.private)
        write_open(folder / PUBLIC_KEY, pair.public.decode())
        write_open(folder / CA_CERTIFICATE, authority.decode())
    make_private_folder(folder / STATE)
    write_open(folder / ENVIRONMENT, device_environment(plan, participant))
    write_open(folder / unit_of(participant.name), device_unit(plan, participant))
    gpu = participant.device.startswith("cuda")
    script = install_script(plan, participant.name, deployment.versions, gpu=gpu)
    write_open(folder / INSTALL, script, runs=True)
    write_open(folder / README, device_readme(plan, participant, deployment.versions, insecure=insecure))
    write_open(folder / MADE, _json({"versions": deployment.versions}))
    write_open(folder / FILE, _node_file(deployment, participant))


def _node_file(deployment: Deployment, participant: ParticipantSettings) -> str:
    """Return ``node.yaml``, without keys that have no value."""
    assert participant.port is not None, "the plan has ports"
    insecure = deployment.insecure
    node = DeviceFolder(
        superlink=deployment.plan.superlink.address,
        insecure=insecure,
        root_certificates=None if insecure else Path(CA_CERTIFICATE),
        key=None if insecure else Path(DEVICE_KEY),
        port=participant.port,
        node_config=participant.node_config,
    )
    values = node.model_dump(mode="json")
    values["node-config"] = {
        key: value for key, value in values["node-config"].items() if value not in (None, "")
    }
    return f"# What the device of {participant.name} is. No message can change it.\n{to_yaml(values)}"


def _write_top(part: Path, folder: Path, deployment: Deployment) -> None:
    """Write what is about all participants; ``deployment.yaml`` last."""
    plan = deployment.plan
    files = compose_files(plan, deployment.versions)
    files[README] = top_readme(plan, folder, deployment.versions, insecure=deployment.insecure)
    values = deployment.model_dump(mode="json", exclude_none=True)
    files[DEPLOYMENT] = (
        f"# Written by kdfed deploy init, last of all files. Do not change it.\n{to_yaml(values)}"
    )
    for name, text in files.items():
        new = part / f".{name}.part"
        write_open(new, text)
        new.replace(part / name)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"


# ----------------------------------------------------------------------------- what is there already


def _extend(folder: Path, plan: Plan, *, insecure: bool) -> Written:
    """Write the folders of participants who are new."""
    old = read_deployment(folder)
    there = {one.name: one for one in old.plan.participants}
    _refuse_changes(folder, old, plan, insecure=insecure)
    new = [one for one in plan.participants if one.name not in there]
    ports = {one.port for one in old.plan.participants if one.port is not None}
    fresh = plan.model_copy(update={"participants": tuple(new)}).with_ports(ports).participants
    grown = old.plan.model_copy(update={"participants": (*old.plan.participants, *fresh)})
    deployment = old.model_copy(update={"plan": grown})
    authority = b"" if old.insecure else _read(folder / AUTHORITY / CA_CERTIFICATE, read_certificate)
    made = []
    for participant in fresh:
        device = folder / DEVICES / participant.name
        if os.path.lexists(device):  # an earlier call was interrupted after it: it is whole
            _refuse_other(device, deployment, participant)
            continue
        with whole_folder(device) as part:
            _write_device(part, deployment, participant, authority)
        made.append(participant.name)
    if fresh:
        _write_top(folder, folder, deployment)
    kept = [one.name for one in grown.participants if one.name not in made]
    return Written(tuple(made), tuple(kept))


def _refuse_other(device: Path, deployment: Deployment, participant: ParticipantSettings) -> None:
    """Refuse the folder of a participant who is new, but for one that was made of the same settings."""
    file = device / FILE
    if not file.is_file() or file.read_text(encoding="utf-8") != _node_file(deployment, participant):
        raise RunFolderError(
            f"expected no folder of {participant.name!r}, who is new, got {device}, with other settings; "
            "move it away"
        )


def _refuse_changes(folder: Path, old: Deployment, plan: Plan, *, insecure: bool) -> None:
    """Refuse a file that says something else of what is there; a key and a folder are never written again."""
    mistakes = []
    if insecure != old.insecure:
        has = "no TLS and no keys" if old.insecure else "TLS and keys"
        mistakes.append(Mistake("--insecure", f"expected what the deployment has, {has}; make a new one"))
    for key in ("superlink", "install", "user", "certificate_days"):
        was, now = getattr(old.plan, key), getattr(plan, key)
        if was != now:
            mistakes.append(
                Mistake(
                    kebab(key),
                    f"expected what the deployment was made of, {_told_as(was)}, got {_told_as(now)}; "
                    "write that, or make a new deployment",
                )
            )
    there = {one.name: one for one in old.plan.participants}
    ports = {one.port: one.name for one in old.plan.participants}
    lower = {name.lower(): name for name in there}
    for place, one in enumerate(plan.participants):
        was = there.get(one.name)
        key = f"participants.{place}"
        if was is None:
            if one.name.lower() in lower:
                mistakes.append(
                    Mistake(
                        f"{key}.name",
                        f"expected distinct names, also in lower case, got {shown(one.name)}, "
                        f"and {shown(lower[one.name.lower()])} is there",
                    )
                )
            if one.port in ports:
                mistakes.append(
                    Mistake(
                        f"{key}.port",
                        f"expected a port of its own, got {one.port}, which is that of {ports[one.port]}",
                    )
                )
            continue
        same = was.model_copy(update={"port": one.port}) if one.port is None else was
        changed = [field for field in type(one).model_fields if getattr(one, field) != getattr(same, field)]
        if changed:
            node = folder / DEVICES / one.name / FILE
            mistakes.append(
                Mistake(
                    f"{key}.{changed[0]}",
                    f"{one.name} is there already, with {shown(getattr(was, changed[0]))}; "
                    f"what exists is kept: write that, and change {node} on the device",
                )
            )
    if mistakes:
        raise ConfigError(f"the deployment {folder}", mistakes)


def _told_as(value: Any) -> str:
    return shown(value.model_dump(mode="json") if hasattr(value, "model_dump") else value)


# ----------------------------------------------------------------------------- another certificate


def renew(folder: Path) -> Path:
    """Write another certificate for the SuperLink's key, valid from now on; return its file.

    Raises
    ------
    ConfigError
        If the folder is no deployment, or has no certificates.
    RunFolderError
        If a key or a certificate in it is missing or broken, or the new one cannot be written.
    """
    deployment = read_deployment(folder)
    if deployment.insecure:
        raise ConfigError(str(folder), [Mistake("", "expected a deployment with TLS, this one has none")])
    file, plan = folder / SUPERLINK / SERVER_CERTIFICATE, deployment.plan
    authority = Pair(
        _read(folder / AUTHORITY / CA_KEY, read_key),
        _read(folder / AUTHORITY / CA_CERTIFICATE, read_certificate),
    )
    key = _read(folder / SUPERLINK / SERVER_KEY, read_key)
    try:
        certificate = certificate_for(authority, key, plan.superlink.certified, plan.certificate_days)
    except ValueError as error:
        raise _lost(folder / AUTHORITY, str(error)) from error
    with _told(folder):
        part = file.with_name(f".{file.name}.part")
        write_open(part, certificate.decode())
        part.replace(file)
    return file


def _read(file: Path, reader: Callable[[bytes], object]) -> bytes:
    """Return a key or a certificate of a deployment, once it can be read.

    Raises
    ------
    RunFolderError
        If it cannot.
    """
    try:
        content = file.read_bytes()
        reader(content)
    except OSError as error:
        raise _lost(file, f"expected a file that can be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _lost(file, str(error)) from error
    return content


def _lost(place: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{place}: {why}; restore it from a copy. Without one make a new deployment elsewhere: devices trust "
        "what this authority signs, and nothing else"
    )
