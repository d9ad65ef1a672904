"""A device's folder: what `kdfed deploy init` writes for it, and `kdfed node` runs.

::

    north/
      node.yaml     this module's :class:`DeviceFolder`
      ca.crt        the certificate that the SuperLink's is checked against
      key  key.pub  the device's own key (PEM, P-384), and what the SuperLink registers
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from clients.node_config import NodeConfig
from kdfed.errors import ConfigError, Mistake, near, one_line, shown
from kdfed.settings import Settings, Text, kebab

FILE = "node.yaml"

FILES = ("folder", "parquet", "csv", "npz")
"""How ``data`` begins where a path follows."""


class DeviceFolder(Settings):
    """``node.yaml``: how a device's SuperNode reaches the SuperLink, and the node-config that it is given.

    Paths in it are absolute, or relative to the folder.
    """

    superlink: Annotated[Text, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$|^\[[0-9a-fA-F:]+\]:[0-9]{1,5}$")]
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


def read_device_folder(folder: Path) -> DeviceFolder:
    """Read a device's folder, with absolute paths, and look whether everything that it names is there.

    Raises
    ------
    ConfigError
        Every mistake at once.
    """
    path = folder / FILE
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            str(folder), [Mistake("", f"expected a device's folder with {FILE}: {reason}")]
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, levels without end
        raise ConfigError(str(path), [Mistake("", f"expected YAML: {one_line(error)}")]) from error
    if not isinstance(values, dict):
        raise ConfigError(
            str(path), [Mistake("", f"expected a mapping of keys, got {type(values).__name__}")]
        )
    try:
        settings = DeviceFolder.model_validate(values).found_in(folder.absolute())
    except ValidationError as error:
        raise ConfigError(str(path), [_mistake(problem) for problem in error.errors()]) from error
    mistakes = list(missing(settings))
    if mistakes:
        raise ConfigError(str(path), mistakes)
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


def _mistake(problem: Mapping[str, Any]) -> Mistake:
    """Put one of pydantic's problems into words."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return Mistake(key, "expected a value, got none")
    if problem["type"] == "extra_forbidden":
        kind: type[Settings] = NodeConfig if key.startswith("node-config.") else DeviceFolder
        keys = [field.alias or name for name, field in kind.model_fields.items()]
        name = str(problem["loc"][-1])
        return Mistake(key, f"expected one of {', '.join(keys)}, got {shown(name)}{near(name, keys)}")
    if problem["type"] == "string_pattern_mismatch" and key == "superlink":
        return Mistake(key, f"expected HOST:PORT, got {shown(problem['input'])}")
    said = one_line(str(problem["msg"]).removeprefix("Value error, "))
    return Mistake(key, said if not key else f"{said}, got {shown(problem['input'])}")
