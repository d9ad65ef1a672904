"""A device's folder: what `kdfed deploy init` writes for it, and `kdfed node` runs.

::

    north/
      node.yaml     this module's :class:`DeviceFolder`
      ca.crt        the certificate that the SuperLink's is checked against
      key  key.pub  the device's own key (PEM, P-384), and what the SuperLink registers
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from clients.node_config import NodeConfig
from kdfed.settings import Settings, Text

FILE = "node.yaml"


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
