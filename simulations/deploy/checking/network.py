"""Ports and the SuperLink, as seen from here."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path

from simulations.deploy.checking.findings import Finding, fine, note, reason, wrong

PATIENCE = 5.0
"""Seconds for a connection."""

BEHIND, AHEAD = 300.0, 4.0
"""Seconds by which a device's clock may be behind and ahead of the SuperLink's: it signs the time, and Flower
refuses what is older than 305 s or more than 5 s early."""

HEALTH = "/health"
"""Where a SuperLink says that it runs."""


def split(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_superlink(address: str, authority: Path | None, *, must_run: bool) -> Iterator[Finding]:
    """Yield whether a SuperLink answers, with a certificate that is accepted, and agrees about the time.

    Parameters
    ----------
    address
        ``HOST:PORT``.
    authority
        What its certificate is checked against; None: without TLS.
    must_run
        Whether it is wrong that nothing answers.
    """
    what, (host, port) = "the SuperLink", split(address)
    nothing = wrong if must_run else note
    try:
        date = _date_told(host, port, authority)
    except socket.gaierror as error:
        yield wrong(
            what, f"expected {host} to be the name of a machine: {error.strerror}; correct DNS or hosts"
        )
    except ssl.SSLCertVerificationError as error:
        yield wrong(
            what,
            f"{address} answers, but its certificate is refused: {error.verify_message}; copy the "
            "deployment's ca.crt here, or restart the SuperLink with its own server.crt",
        )
    except ssl.SSLError as error:
        yield wrong(
            what,
            f"expected TLS at {address}, got something else ({error.reason}); start the SuperLink's start.sh",
        )
    except TimeoutError:
        yield nothing(
            what,
            f"nothing answers at {address} within {PATIENCE:.0f} s; open port {port} in its firewall, or "
            "start its machine",
        )
    except ConnectionRefusedError:
        yield nothing(what, f"nothing listens at {address}; start the SuperLink")
    except (OSError, ValueError) as error:
        yield nothing(what, f"expected a SuperLink at {address}: {reason(error)}; see what listens there")
    else:
        yield fine(what, f"answers at {address}")
        if date is not None:
            yield _check_clock(date)


def _date_told(host: str, port: int, authority: Path | None) -> datetime | None:
    """Return the time that a SuperLink tells.

    Raises
    ------
    OSError
        If it does not answer; ``ssl.SSLError`` if its certificate is not accepted.
    ValueError
        If something else answers.
    """
    with socket.create_connection((host, port), PATIENCE) as plain:
        if authority is None:
            return _ask(plain, host)
        context = ssl.create_default_context(cafile=str(authority))
        with context.wrap_socket(plain, server_hostname=host) as secured:
            return _ask(secured, host)


def _ask(connection: socket.socket, host: str) -> datetime | None:
    connection.sendall(f"GET {HEALTH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < 65536:
        part = connection.recv(4096)
        if not part:
            break
        answer += part
    status, *headers = answer.decode("latin-1").split("\r\n")
    if not status.startswith("HTTP/1.1 200"):
        raise ValueError(f"it answered {status[:60]!r} to {HEALTH}")
    for header in headers:
        name, _, value = header.partition(":")
        if name.lower() == "date":
            return parsedate_to_datetime(value.strip())
    return None


def _check_clock(date: datetime) -> Finding:
    ahead = (datetime.now(UTC) - date.astimezone(UTC)).total_seconds() - 0.5
    if -BEHIND < ahead < AHEAD:
        return fine("clock", "agrees with the SuperLink's")
    where = "ahead of" if ahead > 0 else "behind"
    return wrong(
        "clock",
        f"expected the SuperLink's time, got a clock that is {abs(ahead):.0f} s {where} it, with which "
        "Flower refuses the key; on both machines: timedatectl set-ntp true",
    )


def check_port(port: int, host: str = "127.0.0.1") -> Finding:
    """Say whether a port of this machine is free; a port that is in use is a note."""
    what = f"port {port}"
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return note(what, "is in use: by kdfed, if it runs; else choose another one")
            if error.errno == errno.EACCES:
                return wrong(what, f"expected a port that anybody can use, got {port}; choose one above 1023")
            return wrong(what, f"cannot be used at {host}: {reason(error)}; correct superlink.listen")
    return fine(what, "is free")
