"""Keys: that they are what Flower reads, belong together, and are secret."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simulations.deploy.checking.findings import Finding, fine, reason, wrong
from simulations.deploy.secret import OWNER_ONLY


def check_secret(file: Path, what: str) -> Finding:
    """Say whether a file is readable to its owner only."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        return wrong(what, f"expected a file {file}: {reason(error)}")
    if mode & OWNER_ONLY:
        return wrong(
            what, f"expected {file} to be readable to its owner only, got mode {mode:04o}; chmod 600 {file}"
        )
    return fine(what, "is readable to its owner only")


def check_device_key(private: Path, public: Path | None) -> Iterator[Finding]:
    """Yield what is so of a device's key.

    Parameters
    ----------
    private
        The device's own.
    public
        What the SuperLink registers. Default: it is not looked at.
    """
    what = "key"
    secret = check_secret(private, what)
    yield secret
    if not private.exists():
        return
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), None)
    except OSError as error:
        yield wrong(
            what, f"expected {private} to be readable: {reason(error)}; chown it to the user who runs kdfed"
        )
        return
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        yield wrong(
            what,
            f"expected a key in OpenSSH's format without a passphrase in {private}: {error}; rewrite one in "
            f'another format with ssh-keygen -p -N "" -f {private}',
        )
        return
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name.startswith("secp")):
        yield wrong(
            what,
            f"expected a key on a NIST curve, as ssh-keygen -t ecdsa -b 384 makes it, got "
            f"{type(key).__name__} in {private}; make one of these, and register it",
        )
        return
    if public is not None:
        yield _check_pair(key, public)


def _check_pair(key: ec.EllipticCurvePrivateKey, public: Path) -> Finding:
    try:
        theirs = serialization.load_ssh_public_key(public.read_bytes())
    except OSError as error:
        return wrong("key.pub", f"expected a file {public}: {reason(error)}; ssh-keygen -y -f key > key.pub")
    except (ValueError, UnsupportedAlgorithm) as error:
        return wrong("key.pub", f"expected a public key of OpenSSH in {public}: {error}")
    if theirs != key.public_key():
        return wrong(
            "key.pub",
            f"expected {public} to belong to the key beside it, got that of another; ssh-keygen -y -f key > "
            "key.pub, and register it",
        )
    return fine("key.pub", "belongs to the key")
