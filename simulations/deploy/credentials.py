"""Certificates and keys, made with the library with which Flower reads them.

=========================  ==============================================================================
certificate authority      P-384; signs nothing but the SuperLink's certificate, of no length below it
SuperLink                  P-384; its certificate names hosts and addresses (subject alternative names)
device                     P-384, OpenSSH's format, which ``flower-supernode`` and ``flwr supernode
                           register`` read
=========================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kdfed.errors import one_line
from simulations.deploy.settings import is_address

AUTHORITY_DAYS = 3650
"""How long the certificate authority is valid: a deployment does not live longer."""

EARLIER = timedelta(minutes=5)
"""By which a certificate is valid before it is made: clocks differ."""


class Pair(NamedTuple):
    """A private key, and what is public of it: PEM."""

    private: bytes
    public: bytes


def new_authority(now: datetime | None = None) -> Pair:
    """Return a certificate authority: its key and its own certificate."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("kdfed certificate authority")
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return Pair(_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def new_key() -> bytes:
    """Return a private key for the SuperLink."""
    return _pem(ec.generate_private_key(ec.SECP384R1()))


def certificate_for(
    authority: Pair, key: bytes, hosts: Sequence[str], days: int, now: datetime | None = None
) -> bytes:
    """Return a certificate for a server's key.

    Parameters
    ----------
    authority
        Who signs it.
    key
        The server's private key.
    hosts
        Names and IP addresses of the server.
    days
        How long it is valid, at most as long as the authority's own.
    now
        Default: the time.

    Raises
    ------
    ValueError
        If one of them is none, or the authority's key is not that of its certificate.
    """
    issuer = read_certificate(authority.public)
    signer, own = read_key(authority.private), read_key(key)
    if issuer.public_key() != signer.public_key():
        raise ValueError("expected the key of the authority's certificate, got another one")
    names = [x509.IPAddress(ip_address(host)) if is_address(host) else x509.DNSName(host) for host in hosts]
    certificate = (
        _builder(_name("kdfed SuperLink"), issuer.subject, own.public_key(), days, now, issuer)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key that was made here.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"expected a private key, PEM, without a password: {one_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"expected a key of an elliptic curve, got {type(key).__name__}")
    return key


def read_certificate(content: bytes) -> x509.Certificate:
    """Read a certificate.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ValueError(f"expected a certificate, PEM: {one_line(error)}") from error


def new_device_key(comment: str) -> Pair:
    """Return a device's key in OpenSSH's format, as ``ssh-keygen -t ecdsa -b 384`` makes it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return Pair(private, public + f" {comment}\n".encode())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime | None,
    above: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(end if above is None else min(end, above.not_valid_after_utc))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
