"""The participants' file of ``kdfed deploy init``, and what a deployment records of it.

::

    superlink: {hosts: [fl.example.org, 192.0.2.10], port: 8000}
    participants:
      - {name: north, data: "folder:/srv/images"}
      - {name: south, data: "npz:/srv/table.npz", threads: 2, store: /var/lib/kdfed-store}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated

from pydantic import Field, field_validator

from clients.node_config import NodeConfig
from kdfed.named import is_named
from kdfed.settings import Distinct, PositiveInt, Settings, Text

Port = Annotated[int, Field(ge=1, le=65535)]

FIRST_PORT = 9094
"""Of a device's SuperNode on its own loopback interface; Flower's default."""

DATA_KINDS = ("folder", "parquet", "csv", "npz")

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_DEVICE = r"^(auto|cpu|cuda|cuda:[0-9]{1,3}|mps)$"


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine itself, which no other machine can reach."""
    return ip_address(host).is_loopback if is_address(host) else host.lower() == "localhost"


def address_of(host: str, port: int) -> str:
    """Return ``HOST:PORT`` as Flower reads it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _checked_host(host: str) -> str:
    if is_address(host):
        if ip_address(host).is_unspecified:
            raise ValueError(
                "expected an address that devices can reach; where the SuperLink listens is superlink.listen"
            )
        return host
    # What looks like an address is a misspelt one: no name ends in a number.
    if _DNS_NAME.fullmatch(host) is None or host.rpartition(".")[2].isdigit():
        raise ValueError("expected a host name or an IP address, without a scheme and without a port")
    return host


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("expected an absolute path on the device")
    return _one_line_of(path)


def _one_line_of(path: str) -> str:
    """Refuse what would end a line of a unit, or be seen nowhere."""
    if not path.isprintable():
        raise ValueError("expected a path without line breaks and other characters that nobody sees")
    return path


class SuperLinkSettings(Settings):
    """The SuperLink, which devices connect to and ``flwr run`` talks to."""

    hosts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=100), Distinct]
    """Names and IP addresses of its machine: the certificate is for all of them, and devices use the
    first."""
    port: Port = 8000
    """The only port that is open: for devices, and for whoever runs experiments."""
    listen: Text = "auto"
    """The IP address on which it listens. ``auto``: 127.0.0.1 where all hosts are loopback, else all
    addresses (0.0.0.0)."""

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_host(host) for host in hosts)

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, listen: str) -> str:
        if listen != "auto" and not is_address(listen):
            raise ValueError("expected auto or an IP address of the SuperLink's machine")
        return listen

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return all(map(is_loopback, self.hosts))

    @property
    def bound_to(self) -> str:
        """The address on which it listens."""
        if self.listen != "auto":
            return self.listen
        if not self.is_local:
            return "0.0.0.0"  # noqa: S104
        return next(filter(is_address, self.hosts), "127.0.0.1")

    @property
    def address(self) -> str:
        """``HOST:PORT`` as devices reach it."""
        return address_of(self.hosts[0], self.port)

    @property
    def certified(self) -> tuple[str, ...]:
        """What its certificate names: the hosts, and itself, because its own processes reach it there."""
        own = () if ip_address(self.bound_to).is_unspecified else (self.bound_to,)
        return tuple(dict.fromkeys((*self.hosts, *own, "localhost", "127.0.0.1", "::1")))


class ParticipantSettings(Settings):
    """A participant and its device."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    """Letters, digits, dots, dashes and underscores, at most 63, the first a letter or a digit. It stays the
    same for ever."""
    data: Text
    """Where its examples are on the device: ``folder:/PATH``, ``parquet:/PATH``, ``csv:/PATH``,
    ``npz:/PATH``, or a ``package.module:name`` that is installed there."""
    device: Annotated[Text, Field(pattern=_DEVICE)] = "auto"
    """Where it trains: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    threads: PositiveInt = 1
    """Threads of one operation. Another number gives other bits than the simulation's."""
    store: Text | None = None
    """A folder on the device for what it keeps between rounds. Default: none; experiments that keep something
    need one."""
    teacher: Text | None = None
    """A file on the device with a teacher that it has already. Default: it trains one."""
    allow: Annotated[tuple[Text, ...], Field(max_length=1000), Distinct] = ()
    """The ``package.module:name``s that the device builds when a message names them."""
    port: Port | None = None
    """Where its SuperNode listens on the device's loopback interface. Default: the first that no other
    participant has, from 9094."""

    @field_validator("data")
    @classmethod
    def _is_on_the_device(cls, data: str) -> str:
        kind, colon, path = data.partition(":")
        if kind in DATA_KINDS and colon:
            if not path.startswith("/"):
                raise ValueError(f"expected an absolute path on the device, as in {kind}:/srv/data")
            _one_line_of(path)
        elif not is_named(data):
            kinds = ", ".join(f"{one}:/PATH" for one in DATA_KINDS)
            raise ValueError(f"expected {kinds} or package.module:name")
        return data

    @field_validator("store", "teacher")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        return path if path is None else _absolute(path)

    @field_validator("allow")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_named(name):
                raise ValueError(f"expected names like package.module:name, got {name[:100]!r} among them")
        return names

    @property
    def node_config(self) -> NodeConfig:
        """The node-config of its SuperNode."""
        return NodeConfig(
            participant=self.name,
            data=self.data,
            device=self.device,
            threads=self.threads,
            store=self.store,
            teacher=self.teacher,
            allow=" ".join(self.allow),
        )


class Plan(Settings):
    """The participants' file."""

    superlink: SuperLinkSettings
    """The SuperLink."""
    participants: Annotated[tuple[ParticipantSettings, ...], Field(min_length=1, max_length=10_000)]
    """Everybody who takes part, one device each."""
    install: Annotated[Text, Field(pattern=r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$")] = "/opt/kdfed"
    """The folder on every machine into which its own folder is copied, and where kdfed is installed in
    ``venv``."""
    user: Annotated[Text, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")] = "kdfed"
    """The user of every machine that runs it there."""
    certificate_days: Annotated[int, Field(ge=1, le=3650)] = 825
    """How long the SuperLink's certificate is valid; ``kdfed deploy renew`` writes another one."""

    def with_ports(self, taken: Iterable[int] = ()) -> Plan:
        """Return the plan with a port for everybody.

        Parameters
        ----------
        taken
            Ports that others have.
        """
        used = {self.superlink.port, *taken, *(one.port for one in self.participants)}
        free = (port for port in range(FIRST_PORT, 65536) if port not in used)
        given = tuple(
            one if one.port is not None else one.model_copy(update={"port": next(free)})
            for one in self.participants
        )
        return self.model_copy(update={"participants": given})


class Deployment(Settings):
    """``deployment.yaml``: what a deployment was made of. It is written last."""

    plan: Plan
    """Of all participants, each with a port."""
    insecure: bool = False
    """Without TLS and keys, on one machine."""
    versions: dict[Text, Text]
    """Of kdfed, flwr and torch where it was made, which the machines should have too."""
