"""The visible registry of data sources: one file a source, and one line here."""

from __future__ import annotations

from kdfed.data.sources import (
    csv,
    devices,
    diabetes,
    digits,
    folder,
    hub,
    mnist5k,
    npz,
    parquet,
    synthetic,
    torchvision,
    user,
)
from kdfed.data.sources.source import Source

USERS = "package.module:name"

SOURCES: dict[str, Source] = {
    "mnist5k": mnist5k.SOURCE,
    "digits": digits.SOURCE,
    "diabetes": diabetes.SOURCE,
    "parquet:": parquet.SOURCE,
    "csv:": csv.SOURCE,
    "npz:": npz.SOURCE,
    "hf:": hub.SOURCE,
    "torchvision:": torchvision.SOURCE,
    "folder:": folder.SOURCE,
    "synthetic:": synthetic.SOURCE,
    "devices": devices.SOURCE,
    USERS: user.SOURCE,
}
"""Data sources by name or prefix."""
