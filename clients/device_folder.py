"""A device's folder: what `kdfed deploy init` writes for it, and `kdfed node` runs.

::

    north/
      node.yaml     this module's :class:`DeviceFolder`
      ca.crt        the certificate that the SuperLink's is checked against
      key  key.pub  the device's own key (PEM, P-384), and what the SuperLink registers
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from clients.node_config import NodeConfig
from kdfed.errors import ConfigError, Mistake, near, shown
from kdfed.settings import Settings, Text, kebab
from kdfed.settings_file import read_settings

FILE = "node.yaml"

FILES = ("folder", "parquet", "csv", "npz")
"""How ``data`` begins where a path follows."""


_ADDRESS = re.compile(r"[^\s:/]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")


class DeviceFolder(Settings):
    """``node.yaml``: how a device's SuperNode reaches the SuperLink, and the node-config that it is given.

    Paths in it are absolute, or relative to the folder.
    """

    superlink: Text
    """``HOST:PORT`` of the SuperLink. The host is one that its certificate names."""
    insecure: bool = False
    """Without TLS and without a key: for experiments on one machine alone."""
    root_certificates: Path | None = Path("ca.crt")
    """What the SuperLink's certificate is checked against."""
    key: Path | None = Path("key")
    """The device's private key, with which it proves who it is."""
    port: Annotated[int, Field(ge=1, le=65535)] = 9094
    """Port on the loopback interface where the SuperNode serves its client; one a SuperNode."""
    node_config: NodeConfig
    """See :class:`clients.node_config.NodeConfig`."""

    @field_validator("superlink")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if _ADDRESS.fullmatch(address) is None:
            raise ValueError("expected HOST:PORT")
        return address

    @model_validator(mode="after")
    def _has_nothing_unused(self) -> DeviceFolder:
        for name in ("root_certificates", "key"):
            if self.insecure and getattr(self, name) is not None and name in self.model_fields_set:
                raise ValueError(f"expected no {kebab(name)} where insecure is true; remove one of them")
        return self

    def found_in(self, folder: Path) -> DeviceFolder:
        """Return the same with absolute paths; those that ``insecure`` leaves without use are None.

        Parameters
        ----------
        folder
            Where its relative paths begin.
        """
        own = self.node_config
        kind, _, path = own.data.partition(":")
        changed: dict[str, Any] = {"data": f"{kind}:{folder / path}"} if path and kind in FILES else {}
        for name in ("store", "teacher"):
            if getattr(own, name) is not None:
                changed[name] = str(folder / getattr(own, name))
        node_config = own.model_copy(update=changed)
        files = {
            name: None if self.insecure or getattr(self, name) is None else folder / getattr(self, name)
            for name in ("root_certificates", "key")
        }
        return self.model_copy(update={"node_config": node_config, **files})


def read_node_file(folder: Path) -> DeviceFolder:
    """Read the ``node.yaml`` of a device's folder; nothing that it names is looked for.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    if not (folder / FILE).exists():
        raise ConfigError(
            str(folder), [Mistake("", f"expected a device's folder with {FILE}: No such file or directory")]
        )
    return read_settings(folder / FILE, DeviceFolder)


def read_device_folder(folder: Path) -> DeviceFolder:
    """Read a device's folder, with absolute paths, and look whether everything that it names is there.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    settings = read_node_file(folder).found_in(folder.absolute())
    mistakes = list(missing(settings))
    if mistakes:
        raise ConfigError(str(folder / FILE), mistakes)
    return settings


def missing(settings: DeviceFolder) -> Iterator[Mistake]:
    """Yield what a device's folder names that is not there, or not as it has to be.

    Parameters
    ----------
    settings
        With absolute paths.
    """
    certificates, key = settings.root_certificates, settings.key
    if certificates is not None:
        yield from _unreadable("root-certificates", certificates, "a certificate")
    if key is not None:
        problems = list(_unreadable("key", key, "a private key"))
        yield from problems
        if not problems and os.name == "posix" and stat.S_IMODE(key.stat().st_mode) & 0o077:
            mode = stat.S_IMODE(key.stat().st_mode)
            yield Mistake(
                "key", f"expected a file that only its owner can read, got mode {mode:o}; chmod 600 {key}"
            )
    yield from _missing_data(settings.node_config.data)
    teacher = settings.node_config.teacher
    if teacher is not None:
        yield from _unreadable("node-config.teacher", Path(teacher), "a teacher")


def _unreadable(key: str, path: Path, what: str) -> Iterator[Mistake]:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        yield Mistake(key, f"expected the file of {what}, got {shown(str(path))}: {error.strerror}")


def _missing_data(data: str) -> Iterator[Mistake]:
    kind, colon, rest = data.partition(":")
    known = (*FILES, "package.module")
    if not colon or not rest:
        yield Mistake("node-config.data", f"expected KIND:PATH or package.module:name, got {shown(data)}")
    elif kind == "folder":
        if not Path(rest).is_dir():
            yield Mistake(
                "node-config.data", f"expected a folder of images, got {shown(rest)}: no such folder"
            )
    elif kind in FILES:
        if not Path(rest).exists():
            yield Mistake("node-config.data", f"expected the data's file, got {shown(rest)}: no such file")
    elif not _is_installed(kind):
        yield Mistake(
            "node-config.data",
            f"expected one of {', '.join(FILES)}, or a package that is installed on this device, got "
            f"{shown(kind)}{near(kind, known)}",
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
