"""Certificates are judged as a client would, and dates, names and keys are told apart."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from simulations.deploy.checking import certificates
from simulations.deploy.checking.certificates import check_authority, check_dates, check_server, load
from simulations.deploy.checking.findings import Finding
from simulations.deploy.credentials import certificate_for, new_authority, new_key

NOW = datetime.now(UTC)


class Files:
    """A server's certificate and key, and its authority, in files."""

    def __init__(self, folder, hosts=("fl.example.org", "192.0.2.7"), now=NOW, days=100):
        self.authority, key = new_authority(now), new_key()
        self.certificate, self.key, self.root = (
            folder / "server.crt",
            folder / "server.key",
            folder / "ca.crt",
        )
        self.certificate.write_bytes(certificate_for(self.authority, key, hosts, days, now))
        self.key.write_bytes(key)
        self.root.write_bytes(self.authority.public)

    def check(self, *hosts):
        return [(one.level, one.text) for one in check_server(self.certificate, self.key, self.root, hosts)]


def test_a_certificate_is_accepted_by_all_its_names(tmp_path):
    hosts = ("fl.example.org", "192.0.2.7")
    assert Files(tmp_path).check(*hosts) == [("fine", "is accepted as fl.example.org, 192.0.2.7")]


def test_names_that_are_missing_are_told_together(tmp_path):
    ((level, text),) = Files(tmp_path).check("fl.example.org", "other.org", "192.0.2.8")
    assert level == "wrong"
    assert text.startswith("expected it to name other.org, 192.0.2.8, got fl.example.org, 192.0.2.7;")


def test_a_certificate_of_another_authority_is_refused_once(tmp_path):
    files = Files(tmp_path)
    files.root.write_bytes(new_authority(NOW).public)
    ((level, text),) = files.check("fl.example.org", "192.0.2.7")
    assert level == "wrong"
    assert text.startswith(f"expected one that {files.root} signed, got one that is refused: ")


def test_a_certificate_of_another_key_is_refused(tmp_path):
    files = Files(tmp_path)
    files.key.write_bytes(new_key())
    ((level, text),) = files.check("fl.example.org")
    assert (level, "got that of another" in text) == ("wrong", True)


@pytest.mark.parametrize("what", ["certificate", "key", "root"])
@pytest.mark.parametrize("content", [b"nothing", None])
def test_what_is_missing_or_no_pem_is_wrong(tmp_path, what, content):
    files = Files(tmp_path)
    file = getattr(files, what)
    file.unlink() if content is None else file.write_bytes(content)
    ((level, text),) = files.check("fl.example.org")
    assert level == "wrong"
    assert str(file) in text


def test_dates_do_not_hide_what_else_is_wrong(tmp_path):
    long_ago = NOW - timedelta(days=1000)
    files = Files(tmp_path, now=long_ago, days=10)
    assert files.check("fl.example.org")[0][0] == "fine"
    assert "expected it to name other.org" in files.check("other.org")[0][1]


@pytest.mark.parametrize(
    ("later", "level", "word"),
    [
        (timedelta(days=-1), "wrong", "expected a clock after"),
        (timedelta(days=1), "fine", "valid until"),
        (timedelta(days=80), "note", "expires on"),
        (timedelta(days=101), "wrong", "it expired on"),
    ],
)
def test_dates_are_told_with_what_to_do(tmp_path, later, level, word):
    certificate = load(Files(tmp_path).certificate, "it")
    assert isinstance(certificate, x509.Certificate)
    found = check_dates(certificate, "it", "renew it", NOW + later)
    assert found.level == level
    assert word in found.text
    if level in ("note", "wrong") and later > timedelta(0):
        assert "renew it" in found.text


def test_a_servers_certificate_is_no_authority(tmp_path):
    files = Files(tmp_path)
    for file, level in ((files.certificate, "wrong"), (files.root, None)):
        certificate = load(file, "it")
        assert isinstance(certificate, x509.Certificate)
        problem = check_authority(certificate, "it")
        assert (problem.level if problem else None) == level


def test_a_file_without_a_certificate_is_a_finding(tmp_path):
    (tmp_path / "x").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for name in ("x", "absent"):
        assert isinstance(load(tmp_path / name, "it"), Finding)


def test_certificates_keep_to_the_standard_that_newer_pythons_insist_on(tmp_path, monkeypatch):
    """Python 3.13 sets this flag by itself: extensions must be there, and critical where they have to be."""
    made = ssl.create_default_context

    def strict(**keywords):
        context = made(**keywords)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(certificates.ssl, "create_default_context", strict)
    assert [level for level, _ in Files(tmp_path).check("fl.example.org", "192.0.2.7")] == ["fine"]
