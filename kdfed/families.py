"""The families of kdfed: what an experiment can choose by name, but for the strategies.

kdfed imports no strategy; whoever must know only where an experiment names one uses :data:`ALL_FAMILIES`.
"""

from kdfed.closed_form import HEADS
from kdfed.distill import METHODS
from kdfed.ensembles import ENSEMBLES
from kdfed.family import Families, Family
from kdfed.local import LOCAL_MODES
from kdfed.partitions import PARTITIONS
from kdfed.server import ServerBase
from kdfed.transfer_sets import TRANSFER_SETS

KDFED = (PARTITIONS, LOCAL_MODES, METHODS, TRANSFER_SETS, ENSEMBLES, HEADS)
"""All but the strategies."""

ALL_FAMILIES = Families((*KDFED, Family("strategy", "server.strategy", ServerBase, {})))
"""All families, the strategies without a member: enough to find what an experiment names."""
