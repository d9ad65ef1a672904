"""Knowledge distillation: one file a method, named here."""

from kdfed.distill.distillation import ConsolidationResult, Distillation
from kdfed.distill.method import KDMethod
from kdfed.distill.mutual import MutualConsolidation
from kdfed.distill.partitioned import PartitionedConsolidation
from kdfed.distill.tuned import TunedConsolidation
from kdfed.distill.vanilla import VanillaConsolidation
from kdfed.family import Family

METHODS: Family[KDMethod] = Family(
    "KD method",
    "consolidation.method",
    KDMethod,
    {
        "vanilla": VanillaConsolidation,
        "tuned": TunedConsolidation,
        "mutual": MutualConsolidation,
        "partitioned": PartitionedConsolidation,
    },
    default="vanilla",
)
"""What can stand in ``consolidation.method``."""

__all__ = [
    "METHODS",
    "ConsolidationResult",
    "Distillation",
    "KDMethod",
    "MutualConsolidation",
    "PartitionedConsolidation",
    "TunedConsolidation",
    "VanillaConsolidation",
]
