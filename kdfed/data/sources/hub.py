"""Hugging Face data sets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from kdfed.data.dataset import Listing, require
from kdfed.data.folders import existing
from kdfed.data.sources.source import Source
from kdfed.data.tables import checked_features, list_tables
from kdfed.errors import DataError, one_line
from kdfed.settings import DataSettings


def hub(argument: str, settings: DataSettings, *, labelled: bool = True) -> Listing:
    """Read a Hugging Face data set by name, or a local folder in the Hub's layout.

    The split ``test`` is the official test part; all other splits are joined. The library ``datasets`` loads
    it: flwr-datasets' ``FederatedDataset`` would do the same, and report its use over the network.

    Parameters
    ----------
    argument
        ``NAME`` or ``NAME@CONFIG``. With ``HF_HUB_OFFLINE=1`` the local cache is used.
    settings
        ``columns``, ``classes`` and ``shape`` as for parquet.

    Raises
    ------
    DataError
        If the data set can be neither found nor downloaded, or its splits differ.
    """
    datasets = require("datasets")
    name, _, config = (argument, "", "") if existing(argument).exists() else argument.partition("@")
    try:
        loaded = datasets.load_dataset(_snapshot(name), config or None)
    except Exception as error:  # the library raises errors of many kinds
        raise DataError(f"cannot load the Hugging Face data set {name!r}: {one_line(error)}") from error
    parts = list(loaded.values())
    features = [part.features for part in parts]
    if any(declared != features[0] for declared in features):
        raise DataError(f"expected the same columns and classes in all splits of {name}: {list(loaded)}")
    tables = {f"split {split!r}": part.with_format("arrow")[:] for split, part in loaded.items()}
    declared = checked_features(features[0].to_dict(), f"hf:{name}")

    def read_column(column: str) -> Any:
        columns = [part.select_columns(column).with_format("arrow")[:] for part in parts]
        return require("pyarrow").concat_tables(columns)[column]

    is_test = [split == "test" for split in loaded]
    return list_tables(tables, is_test, declared, settings, f"hf:{name}", read_column, labelled=labelled)


SOURCE = Source(
    "hf:NAME[@CONFIG], a Hugging Face data set, or a local folder in the Hub's layout",
    hub,
    list_inputs=partial(hub, labelled=False),
)


def _snapshot(name: str) -> str:
    """Return the folder of a data set in the local cache of the Hub when offline, else the name."""
    hub = require("huggingface_hub")
    if Path(name).exists() or not hub.constants.HF_HUB_OFFLINE:
        return name
    try:
        return str(hub.snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return name  # the library may still have it as a prepared table
