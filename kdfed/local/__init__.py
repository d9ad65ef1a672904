"""Local training in a federated round: one file a mode, named here."""

from kdfed.family import Family
from kdfed.local.kd import KDLocal
from kdfed.local.loss import PLAIN, LocalLoss, cross_entropies, plain_loss
from kdfed.local.mode import LocalMode, Received
from kdfed.local.mutual import MutualLocal
from kdfed.local.ntd import NTDLocal
from kdfed.local.plain import PlainLocal
from kdfed.local.proximal import ProximalLocal

LOCAL_MODES: Family[LocalMode] = Family(
    "local mode",
    "local.mode",
    LocalMode,
    {
        "plain": PlainLocal,
        "proximal": ProximalLocal,
        "kd": KDLocal,
        "ntd": NTDLocal,
        "mutual": MutualLocal,
    },
    default="plain",
)
"""What can stand in ``local.mode``."""

__all__ = [
    "LOCAL_MODES",
    "PLAIN",
    "KDLocal",
    "LocalLoss",
    "LocalMode",
    "MutualLocal",
    "NTDLocal",
    "PlainLocal",
    "ProximalLocal",
    "Received",
    "cross_entropies",
    "plain_loss",
]
