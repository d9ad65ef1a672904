"""This machine is never reached through a proxy."""

from __future__ import annotations

import http.server
import threading

import httpx
import pytest

from simulations.engines import flower
from simulations.engines.loopback import bypass_proxies


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "proxy"),
    [
        ("http_proxy", "http://127.0.0.1:9"),
        ("ALL_PROXY", "http://127.0.0.1:9"),
        ("all_proxy", "socks5://x:9"),
    ],
)
def test_the_superlink_is_reached_whatever_proxy_the_environment_names(monkeypatch, address, name, proxy):
    environment = {name: proxy}
    bypass_proxies(environment)
    for other in (name, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert flower._answers(address)
    assert httpx.get(f"http://{address}/health").status_code == 200


def test_the_users_own_exceptions_stay(monkeypatch):
    environment = {"no_proxy": "a.example, localhost", "NO_PROXY": "b.example", "http_proxy": "http://x:1"}
    bypass_proxies(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "a.example,localhost,b.example,127.0.0.1,::1"
    assert environment["http_proxy"] == "http://x:1"
    everything = {"no_proxy": "*"}
    bypass_proxies(everything)
    assert everything == {"no_proxy": "*"}
