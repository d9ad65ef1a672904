"""Ports, and SuperLinks that answer, do not, or are something else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from simulations.deploy.checking.network import check_port, check_superlink, split
from simulations.deploy.credentials import certificate_for, new_authority, new_key


@contextmanager
def listening(answer: bytes, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Answer one connection on a free port, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            plain, _ = server.accept()
            try:
                with plain if context is None else context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(4096)
                    connection.sendall(answer)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def healthy(ahead: float = 0) -> bytes:
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=ahead), usegmt=True)
    return f"HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.fixture
def trust(tmp_path):
    """Return a server's context, the authority that signed its certificate, and another one."""
    authority, key = new_authority(), new_key()
    for name, content in (
        ("server.crt", certificate_for(authority, key, ["127.0.0.1"], 10)),
        ("server.key", key),
        ("ca.crt", authority.public),
        ("other.crt", new_authority().public),
    ):
        (tmp_path / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    return context, tmp_path / "ca.crt", tmp_path / "other.crt"


def told(address, authority=None, must_run=True):
    return [(one.what, one.level, one.text) for one in check_superlink(address, authority, must_run=must_run)]


def test_a_superlink_that_answers_agrees_about_the_time(trust):
    context, authority, _ = trust
    with listening(healthy(), context) as address:
        assert told(address, authority) == [
            ("the SuperLink", "fine", f"answers at {address}"),
            ("clock", "fine", "agrees with the SuperLink's"),
        ]


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, "fine"), (-200, "fine"), (-320, "wrong"), (20, "wrong"), (7200, "wrong")]
)
def test_a_clock_with_which_flower_would_refuse_the_key_is_wrong(ahead, level):
    with listening(healthy(ahead)) as address:
        _, clock = told(address)
    assert clock[:2] == ("clock", level)
    if level == "wrong":
        assert ("ahead of" if ahead > 0 else "behind") in clock[2]


def test_a_certificate_of_another_authority_is_refused(trust):
    context, _, other = trust
    with listening(healthy(), context) as address:
        ((_, level, text),) = told(address, other)
    assert level == "wrong"
    assert "its certificate is refused" in text


def test_a_superlink_without_tls_is_something_else(trust):
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        ((_, level, text),) = told(address, trust[1])
    assert level == "wrong"
    assert "expected TLS" in text


def test_something_else_on_the_port_is_told():
    with listening(b"SSH-2.0-OpenSSH\r\n") as address:
        ((_, level, text),) = told(address)
    assert level == "wrong"
    assert "SSH-2.0" in text


@pytest.mark.parametrize("must_run", [False, True])
def test_nothing_that_answers_is_wrong_on_a_device_and_a_note_elsewhere(must_run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    ((_, level, text),) = told(address, must_run=must_run)
    assert level == ("wrong" if must_run else "note")
    assert text == f"nothing listens at {address}; start the SuperLink"


def test_a_name_of_no_machine_is_wrong_everywhere():
    ((_, level, text),) = told("no-such-host.invalid:8000", must_run=False)
    assert level == "wrong"
    assert "correct DNS or hosts" in text


def test_a_port_in_use_is_a_note():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert check_port(port).level == "note"
    assert check_port(port).level == "fine"


def test_an_address_that_is_not_of_this_machine_is_wrong():
    assert check_port(42199, "192.0.2.1").level == "wrong"


def test_addresses_are_split_at_the_port():
    assert split("[::1]:80") == ("::1", 80)
    assert split("fl.example.org:8000") == ("fl.example.org", 8000)
