"""Keys belong together, are of a kind that Flower reads, and are secret."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from simulations.deploy.checking.keys import check_device_key, check_secret
from simulations.deploy.credentials import new_device_key, new_key
from simulations.deploy.secret import write_secret

OPENSSH = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)


@pytest.fixture
def files(tmp_path):
    pair = new_device_key("north")
    write_secret(tmp_path / "key", pair.private)
    (tmp_path / "key.pub").write_bytes(pair.public)
    return tmp_path / "key", tmp_path / "key.pub"


def levels(files):
    return [finding.level for finding in check_device_key(*files)]


def problems(files):
    return " ".join(finding.text for finding in check_device_key(*files) if finding.level == "wrong")


def test_a_pair_that_was_made_is_fine(files):
    assert levels(files) == ["fine", "fine"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610])
def test_a_key_that_others_can_read_is_wrong(files, mode):
    files[0].chmod(mode)
    assert f"got mode {mode:04o}; chmod 600 {files[0]}" in problems(files)
    assert check_secret(files[0], "key").level == "wrong"


def test_the_public_key_of_another_is_wrong(files):
    files[1].write_bytes(new_device_key("south").public)
    assert "to belong to the key beside it, got that of another" in problems(files)


def test_a_missing_public_key_can_be_made_again(files):
    files[1].unlink()
    assert "ssh-keygen -y -f key > key.pub" in problems(files)


def test_another_format_is_rewritten_with_ssh_keygen(files):
    files[0].write_bytes(new_key())
    assert "expected a key in OpenSSH's format" in problems(files)
    assert f'ssh-keygen -p -N "" -f {files[0]}' in problems(files)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_a_passphrase_is_wrong_because_nobody_types_it(files):
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(files[0])], check=True)
    assert "without a passphrase" in problems(files)


def test_another_kind_of_key_is_wrong(files):
    key = ed25519.Ed25519PrivateKey.generate()
    files[0].write_bytes(key.private_bytes(*OPENSSH, serialization.NoEncryption()))
    assert "expected a key on a NIST curve" in problems(files)
    assert "Ed25519" in problems(files)


def test_a_missing_key_is_one_finding(files):
    files[0].unlink()
    assert levels(files) == ["wrong"]
