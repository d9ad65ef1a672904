"""Data distributions: one file a partition, named here.

Dirichlet and quantity skew draw through flwr-datasets' ``DirichletPartitioner``, k-classes cuts its shards
with its ``PathologicalPartitioner``. The rest is ours, because flwr-datasets has no such distribution.
"""

from kdfed.family import Family
from kdfed.partitions.column import ColumnPartition
from kdfed.partitions.devices import DevicesPartition
from kdfed.partitions.dirichlet import DirichletPartition
from kdfed.partitions.k_classes import KClassesPartition
from kdfed.partitions.label_overlap import LabelOverlapPartition
from kdfed.partitions.quantity_skew import QuantitySkewPartition
from kdfed.partitions.scheme import PartitionBase
from kdfed.partitions.uniform import UniformPartition

PARTITIONS: Family[PartitionBase] = Family(
    "partition",
    "partition.kind",
    PartitionBase,
    {
        "uniform": UniformPartition,
        "quantity-skew": QuantitySkewPartition,
        "label-overlap": LabelOverlapPartition,
        "k-classes": KClassesPartition,
        "dirichlet": DirichletPartition,
        "column": ColumnPartition,
        "devices": DevicesPartition,
    },
)
"""What can stand in ``partition.kind``."""

__all__ = [
    "PARTITIONS",
    "ColumnPartition",
    "DevicesPartition",
    "DirichletPartition",
    "KClassesPartition",
    "LabelOverlapPartition",
    "PartitionBase",
    "QuantitySkewPartition",
    "UniformPartition",
]
