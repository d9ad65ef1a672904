"""Talking to this machine never goes through a proxy."""

from __future__ import annotations

import importlib.util
from collections.abc import MutableMapping

HOSTS = ("127.0.0.1", "localhost", "::1")


def bypass_proxies(environment: MutableMapping[str, str]) -> None:
    """Except this machine from the proxies that an environment names; the user's own exceptions stay.

    A SOCKS proxy is dropped where ``socksio`` is not installed: Flower's HTTP client (httpx) would refuse to
    start, whether it needs the proxy or not.

    Parameters
    ----------
    environment
        Changed in place.
    """
    given = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for host in ",".join(given).split(",") if host.strip()]
    if "*" not in hosts:
        environment["no_proxy"] = environment["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *HOSTS]))
    if importlib.util.find_spec("socksio") is None:
        proxies = [name for name in environment if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
        for name in proxies:
            if environment[name].lower().startswith("socks"):
                del environment[name]
