"""What is looked at in which folder: a device's, the SuperLink's, or a whole deployment's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from pydantic import Field, ValidationError

from clients.device_folder import FILE, DeviceFolder, read_node_file
from kdfed.errors import ConfigError, Mistake
from kdfed.settings import Settings, Text
from simulations.deploy.checking.certificates import check_authority, check_dates, check_server, load
from simulations.deploy.checking.data import check_data
from simulations.deploy.checking.findings import Finding, fine, note, reason, wrong
from simulations.deploy.checking.keys import check_device_key, check_secret
from simulations.deploy.checking.machine import (
    check_clock,
    check_disk,
    check_memory,
    check_processor,
    check_torch,
    check_versions,
)
from simulations.deploy.checking.network import check_port, check_superlink, split
from simulations.deploy.layout import (
    AUTHORITY,
    CA_CERTIFICATE,
    CA_KEY,
    DEPLOYMENT,
    DEVICES,
    MADE,
    PUBLIC_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    START,
    STATE,
    SUPERLINK,
    is_deployment,
    is_device,
    is_superlink,
    unit_of,
)
from simulations.deploy.reading import read_deployment
from simulations.deploy.settings import Port, is_loopback

RENEW = "on the machine of the deployment: kdfed deploy renew DIR, copy superlink/server.crt, restart"
NEW = "make a new deployment: kdfed deploy init"


def check(folder: Path, now: datetime | None = None) -> list[Finding]:
    """Return everything that was looked at in a folder.

    Parameters
    ----------
    folder
        Of a device, of the SuperLink, or of a whole deployment.
    now
        Default: the time.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    now = now or datetime.now(UTC)
    if is_deployment(folder):
        return list(_check_deployment(folder, now))
    if is_device(folder):
        return [*_check_machine(_made(folder).versions), *_check_own(folder, now)]
    if is_superlink(folder):
        return [*_check_machine(_made(folder).versions), *_check_superlink_machine(folder, now)]
    made = (folder / SUPERLINK).exists() or (folder / DEVICES).exists()
    hint = (
        f"; it has no {DEPLOYMENT}, which kdfed deploy init wrote last and does not write again: restore it "
        "from a copy, or move the folder away and make a new deployment"
    )
    raise ConfigError(
        "the command line",
        [
            Mistake(
                "DIR",
                f"expected a deployment ({DEPLOYMENT}), or the folder of a device ({FILE}) or of a SuperLink "
                f"({START}), got {folder}{hint if made else ''}",
            )
        ],
    )


# ----------------------------------------------------------------------------- a whole deployment


def _check_deployment(folder: Path, now: datetime) -> Iterator[Finding]:
    deployment = read_deployment(folder)
    plan = deployment.plan
    superlink = folder / SUPERLINK
    yield from _check_machine(deployment.versions)
    if not deployment.insecure:
        yield check_secret(folder / AUTHORITY / CA_KEY, "the authority's key")
        yield from _check_server_files(superlink, now, plan.superlink.certified)
        yield _check_same(folder / AUTHORITY / CA_CERTIFICATE, superlink / CA_CERTIFICATE).of(SUPERLINK)
    authority = None if deployment.insecure else superlink / CA_CERTIFICATE
    yield from _check_reachable(plan.superlink.address, authority, must_run=False)
    if plan.superlink.is_local:
        yield check_port(plan.superlink.port, plan.superlink.bound_to)
    for participant in plan.participants:
        device = folder / DEVICES / participant.name
        if not is_device(device):
            yield wrong(
                participant.name,
                f"expected {device / FILE}, got no such file; restore the folder from a copy, or from the "
                "device. Where its key is lost, add the device to the participants' file under another name",
            )
            continue
        for finding in _check_device(device, now, here=plan.superlink.is_local, name=participant.name):
            yield finding.of(participant.name)
        if not deployment.insecure:
            same = _check_same(folder / AUTHORITY / CA_CERTIFICATE, device / CA_CERTIFICATE)
            yield same.of(participant.name)


def _check_same(first: Path, second: Path) -> Finding:
    """Say whether two files are the same certificate."""
    try:
        if first.read_bytes().strip() == second.read_bytes().strip():
            return fine("ca.crt", "is the deployment's")
    except OSError as error:
        return wrong(
            "ca.crt", f"expected {error.filename} to be readable: {reason(error)}; copy {first} there"
        )
    return wrong("ca.crt", f"expected {second} to be {first}, got another one; copy it")


class _Made(Settings):
    """``made.json``: what a folder was made for."""

    versions: dict[Text, Text] = Field(default={})
    listen: Text | None = None
    port: Port | None = None


def _made(folder: Path) -> _Made:
    """Return what a folder was made for; nothing where it does not say."""
    try:
        return _Made.model_validate_json((folder / MADE).read_bytes())
    except (OSError, ValidationError):
        return _Made()


def _check_machine(versions: Mapping[str, str]) -> Iterator[Finding]:
    yield check_processor()
    if not versions:
        yield note("versions", f"no {MADE} says which ones this machine should have")
    yield from check_versions(versions)


# ----------------------------------------------------------------------------- the SuperLink's machine


def _check_superlink_machine(folder: Path, now: datetime) -> Iterator[Finding]:
    yield from check_torch(None)
    if (folder / SERVER_CERTIFICATE).exists():
        yield from _check_server_files(folder, now, ())
    else:
        yield note("TLS", "none: this SuperLink is for one machine alone")
    made = _made(folder)
    if made.listen is not None and made.port is not None:
        yield check_port(made.port, made.listen)
    yield check_memory(running=False)
    yield from check_disk([folder / STATE])


def _check_server_files(folder: Path, now: datetime, hosts: tuple[str, ...]) -> Iterator[Finding]:
    """Yield what is so of a SuperLink's certificate and key; without ``hosts`` of the names in it."""
    yield check_secret(folder / SERVER_KEY, "the SuperLink's key")
    dated = (
        (CA_CERTIFICATE, "the authority's certificate", NEW),
        (SERVER_CERTIFICATE, "the SuperLink's certificate", RENEW),
    )
    for name, what, change in dated:
        certificate = load(folder / name, what)
        if isinstance(certificate, Finding):
            yield certificate
            continue
        yield check_dates(certificate, what, change, now)
        if name == CA_CERTIFICATE and (problem := check_authority(certificate, what)) is not None:
            yield problem
        if name == SERVER_CERTIFICATE:
            names = hosts or _names_in(certificate)
            yield from check_server(folder / name, folder / SERVER_KEY, folder / CA_CERTIFICATE, names)


def _names_in(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names if "*" not in str(name.value))


# ----------------------------------------------------------------------------- a device


def _check_own(folder: Path, now: datetime) -> Iterator[Finding]:
    """Yield what is so of a device's folder on its own machine, from which the SuperLink must be reached."""
    yield from _check_device(folder, now, here=True)
    try:
        device = read_node_file(folder)
    except ConfigError:  # said already
        return
    authority = None
    if not device.insecure and device.root_certificates is not None:
        authority = folder / device.root_certificates
    if device.insecure or device.root_certificates is not None:
        yield from _check_reachable(device.superlink, authority, must_run=True)


def _check_device(folder: Path, now: datetime, *, here: bool, name: str | None = None) -> Iterator[Finding]:
    """Yield what is so of a device's folder.

    Parameters
    ----------
    folder
        The device's.
    now
        The time.
    here
        Whether this machine is the device.
    name
        The participant that it should be. Default: any.
    """
    try:
        device = read_node_file(folder)
    except ConfigError as error:
        for mistake in error.mistakes:
            yield wrong(FILE, str(mistake))
        return
    if name is not None and device.node_config.participant != name:
        got = device.node_config.participant
        yield wrong(FILE, f"expected the participant {name!r}, got {got!r}; correct node-config.participant")
    yield from _check_trust(folder, device, now)
    if here:
        yield from _check_device_machine(folder, device)


def _check_trust(folder: Path, device: DeviceFolder, now: datetime) -> Iterator[Finding]:
    """Yield what is so of a device's certificate and key."""
    host, _ = split(device.superlink)
    if device.insecure:
        if is_loopback(host):
            yield note("TLS", "none: for experiments on this machine alone")
        else:
            yield wrong(
                "TLS",
                f"expected TLS and a key for {host}, which is another machine, got insecure: true; remove it",
            )
        return
    if device.root_certificates is None:
        yield note("ca.crt", "none: the SuperLink's certificate is checked against the system's authorities")
    else:
        certificate = load(folder / device.root_certificates, "ca.crt")
        if isinstance(certificate, Finding):
            yield certificate
        else:
            yield check_dates(certificate, "ca.crt", NEW, now)
            yield check_clock(certificate.not_valid_before_utc, now)
            if (problem := check_authority(certificate, "ca.crt")) is not None:
                yield problem
    if device.key is None:
        yield wrong(FILE, "expected a key, without which a SuperLink with authentication refuses; set key")
        return
    public = folder / PUBLIC_KEY
    yield from check_device_key(folder / device.key, public if public.exists() else None)


def _check_device_machine(folder: Path, device: DeviceFolder) -> Iterator[Finding]:
    """Yield what is so of the machine on which a device's folder lies."""
    config = device.node_config
    yield from check_torch(config.device)
    port = check_port(device.port)
    yield port
    yield check_memory(running=port.level == "note")
    yield from check_data(config.data, folder)
    kept = [folder / STATE]
    if config.store is not None:
        store = folder / Path(config.store).expanduser()
        kept.append(store)
        yield _check_store(store, folder / unit_of(config.participant))
    if config.teacher is not None:
        yield _check_teacher(folder / Path(config.teacher).expanduser())
    yield from check_disk(kept)


def _check_reachable(address: str, authority: Path | None, *, must_run: bool) -> Iterator[Finding]:
    if authority is not None and not authority.is_file():
        return  # said already
    yield from check_superlink(address, authority, must_run=must_run)


def _check_store(store: Path, unit: Path) -> Finding:
    if not store.exists() and unit.is_file() and str(store) in unit.read_text(errors="replace"):
        return note("store", f"{store} is not there yet: {unit.name} makes it when it starts")
    if not store.is_dir():
        got = "a file" if store.exists() else "nothing there"
        return wrong("store", f"expected a folder {store}, got {got}; make it, or correct node-config.store")
    if not os.access(store, os.W_OK | os.X_OK):
        return wrong("store", f"expected {store} to be writable; let the user who runs kdfed write it")
    return fine("store", f"{store} is writable")


def _check_teacher(teacher: Path) -> Finding:
    try:
        with teacher.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        return wrong(
            "teacher", f"expected {teacher} to be readable: {reason(error)}; correct node-config.teacher"
        )
    return fine("teacher", f"{teacher} is there")
