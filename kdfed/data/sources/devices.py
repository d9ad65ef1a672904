"""The source ``devices``: examples that nobody but each device has."""

from __future__ import annotations

from kdfed.data.dataset import Listing
from kdfed.data.sources.source import Source
from kdfed.errors import DataError
from kdfed.settings import DataSettings


def devices(_: str, settings: DataSettings) -> Listing:
    """Refuse: a device's examples are named in its own node-config, and never leave it.

    Raises
    ------
    DataError
        Always.
    """
    raise DataError(
        "expected a source that can be read here, got 'devices', whose examples never leave their devices: "
        "start it with `flwr run` on a SuperLink, whose SuperNodes are the devices; a simulation needs a "
        "data set that holds everybody's examples",
        "data.source",
    )


SOURCE = Source("devices, what each device's own node-config names; on a SuperLink only", devices)
