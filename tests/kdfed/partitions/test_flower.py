from __future__ import annotations

from collections.abc import Callable

import pytest

from kdfed.errors import DataError
from kdfed.partition import Partition
from kdfed.partitions import DirichletPartition

Deal = Callable[..., Partition]


def test_a_missing_flwr_datasets_is_named(deal: Deal, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(DataError, match="needs the package flwr-datasets"):
        deal(DirichletPartition(participants=20, alpha=0.1))
