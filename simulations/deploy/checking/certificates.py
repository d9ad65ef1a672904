"""Certificates: their dates, their names, and whether a client would accept them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from simulations.deploy.checking.findings import Finding, fine, note, reason, wrong

SOON = timedelta(days=30)
"""Before its end a certificate is worth a note."""

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL: dates are told apart from the rest


def load(file: Path, what: str) -> x509.Certificate | Finding:
    """Return the certificate in a file, or why there is none."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        return wrong(what, f"expected a certificate in {file}: {reason(error)}; copy it from the deployment")
    except ValueError:
        return wrong(what, f"expected a certificate in PEM in {file}, got something else; copy it again")


def check_dates(certificate: x509.Certificate, what: str, change: str, now: datetime) -> Finding:
    """Say whether a certificate is valid now.

    Parameters
    ----------
    certificate, what
        The certificate, and how it is called.
    change
        What to do once it has expired.
    now
        The time, with a zone.
    """
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        return wrong(
            what,
            f"expected a clock after {start:%Y-%m-%d %H:%M} UTC, when it becomes valid, got "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC; set this machine's clock: timedatectl set-ntp true",
        )
    if now > end:
        return wrong(
            what,
            f"it expired on {end:%Y-%m-%d}, and this machine's clock says {now:%Y-%m-%d}; {change}",
        )
    if now > end - SOON:
        return note(what, f"it expires on {end:%Y-%m-%d}; {change}")
    return fine(what, f"valid until {end:%Y-%m-%d}")


def check_authority(certificate: x509.Certificate, what: str) -> Finding | None:
    """Say what is wrong with a certificate that others are checked against; None where nothing is."""
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if is_authority:
        return None
    return wrong(
        what,
        "expected the certificate of an authority, got one that signs no other (a server's own?); copy "
        "ca.crt from the deployment",
    )


def check_server(certificate: Path, key: Path, authority: Path, hosts: Sequence[str]) -> Iterator[Finding]:
    """Yield whether a client that trusts the authority would accept a server, for each of its hosts.

    A connection is tried in memory, so this is what Python and OpenSSL will say, dates apart.

    Parameters
    ----------
    certificate, key
        The server's.
    authority
        What clients trust.
    hosts
        Names and addresses by which they reach it.
    """
    what = "the SuperLink's certificate"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield wrong(
                what,
                f"expected the certificate of the key {key.name}, got that of another; write a new one: "
                "kdfed deploy renew DIR",
            )
        else:
            yield wrong(what, f"expected a certificate and a key in PEM, {certificate} and {key}: {error}")
        return
    except OSError as error:
        yield wrong(what, f"expected {certificate} and {key} to be readable: {reason(error)}")
        return
    try:
        client = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        yield wrong(what, f"expected a certificate in PEM in {authority}: {reason(error)}")
        return
    client.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    refused: dict[str, list[str]] = {}
    for host in hosts:
        refusal = _refusal(server, client, host)
        if refusal is not None:
            refused.setdefault("names" if "mismatch" in refusal else refusal, []).append(host)
    names = refused.pop("names", [])
    if names:
        yield wrong(
            what,
            f"expected it to name {', '.join(names)}, got {_named(certificate)}; change superlink.hosts and "
            "make a new deployment, or reach the SuperLink by a name that it has",
        )
    for refusal in refused:
        yield wrong(
            what,
            f"expected one that {authority} signed, got one that is refused: {refusal}; copy the "
            "deployment's ca.crt and server.crt again",
        )
    if not names and not refused:
        yield fine(what, f"is accepted as {', '.join(hosts)}")


def _refusal(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str | None:
    """Return why a client refuses a server as ``host``; None where it does not."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        waiting = 0
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
            except ssl.SSLCertVerificationError as error:
                return str(error.verify_message)
            except ssl.SSLError as error:
                return str(error.reason or error)
        if not waiting:
            return None
    return "the two could not agree on a connection"


def _named(file: Path) -> str:
    """Return what a certificate names."""
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "none"
    return ", ".join(str(name.value) for name in names)
