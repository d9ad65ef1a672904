"""kdfed: knowledge distillation for federated learning, and an honest count of what it saves.

Reading order: :mod:`kdfed.settings`, :mod:`kdfed.thing`, :mod:`kdfed.family`, :mod:`kdfed.config`,
:mod:`kdfed.train`, :mod:`kdfed.distill`, :mod:`kdfed.ensembles`, :mod:`kdfed.consolidate`,
:mod:`kdfed.convergence`, :mod:`kdfed.ledger`, :mod:`kdfed.records`.
"""

from kdfed.neighbours import find_neighbours

__version__ = "0.1.0"

find_neighbours()
