"""Certificates and keys are what Flower and OpenSSL read."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simulations.deploy.credentials import (
    certificate_for,
    new_authority,
    new_device_key,
    new_key,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_a_devices_key_is_one_that_ssh_reads():
    pair = new_device_key("north")
    private = serialization.load_ssh_private_key(pair.private, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert serialization.load_ssh_public_key(pair.public) == private.public_key()
    assert pair.public.endswith(b" north\n")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_makes_the_same_public_key(tmp_path):
    pair, file = new_device_key("north"), tmp_path / "key"
    file.touch(mode=0o600)
    file.write_bytes(pair.private)
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], capture_output=True, check=True)
    assert done.stdout.split()[:2] == pair.public.split()[:2]


def test_two_keys_are_never_the_same():
    assert new_device_key("a") != new_device_key("a")
    assert new_key() != new_key()


def test_a_certificate_names_hosts_and_addresses_and_is_signed_by_its_authority():
    authority, key = new_authority(NOW), new_key()
    certificate = x509.load_pem_x509_certificate(
        certificate_for(authority, key, ["fl.example.org", "192.0.2.7", "::1"], 30, NOW)
    )
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.public))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
    own = serialization.load_pem_private_key(key, None)
    assert certificate.public_key() == own.public_key()


def test_a_certificate_is_valid_a_little_earlier_and_never_longer_than_its_authority():
    authority = new_authority(NOW)
    late = NOW + timedelta(days=3600)
    certificate = x509.load_pem_x509_certificate(certificate_for(authority, new_key(), ["x"], 825, late))
    above = x509.load_pem_x509_certificate(authority.public)
    assert certificate.not_valid_after_utc == above.not_valid_after_utc
    assert certificate.not_valid_before_utc < late
