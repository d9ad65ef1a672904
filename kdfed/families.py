"""The families that kdfed itself holds, and what reads a record without any of them."""

from kdfed.distill import METHODS
from kdfed.ensembles import ENSEMBLES
from kdfed.family import Families, Family
from kdfed.local import LOCAL_MODES
from kdfed.partitions import PARTITIONS
from kdfed.server import ServerBase
from kdfed.transfer_sets import TRANSFER_SETS

KDFED = (PARTITIONS, LOCAL_MODES, METHODS, TRANSFER_SETS, ENSEMBLES)
"""All but the strategies."""

NOBODYS = Families((*KDFED, Family("strategy", "server.strategy", ServerBase, {})))
"""The families, of whose things nothing is asked: see :meth:`kdfed.family.Families.hollow`."""
