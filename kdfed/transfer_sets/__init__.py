"""Transfer sets: one file a set, named here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdfed.family import Family
from kdfed.transfer_sets.generated import GeneratedSet
from kdfed.transfer_sets.noise import NoiseSet
from kdfed.transfer_sets.own import OwnSet
from kdfed.transfer_sets.proxy import ProxySet
from kdfed.transfer_sets.public import PublicSet
from kdfed.transfer_sets.teacher import TeacherSet
from kdfed.transfer_sets.transfer_set import DrawnSet, HeldSet, TransferSet
from kdfed.transfer_sets.union import UnionSet

TRANSFER_SETS: Family[TransferSet] = Family(
    "transfer set",
    "consolidation.transfer",
    TransferSet,
    {
        "public": PublicSet,
        "noise": NoiseSet,
        "proxy": ProxySet,
        "generated": GeneratedSet,
        "own": OwnSet,
        "teacher": TeacherSet,
        "union": UnionSet,
    },
    inner=True,
)
"""What can stand in ``consolidation.transfer``, and in the ``transfer`` of a study."""

if TYPE_CHECKING:
    AnyTransferSet = TransferSet
else:
    AnyTransferSet = TRANSFER_SETS.union

__all__ = [
    "TRANSFER_SETS",
    "AnyTransferSet",
    "DrawnSet",
    "GeneratedSet",
    "HeldSet",
    "NoiseSet",
    "OwnSet",
    "ProxySet",
    "PublicSet",
    "TeacherSet",
    "TransferSet",
    "UnionSet",
]
