"""How several teachers' outputs become one target: one file an ensemble, named here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdfed.ensembles.confidence import Confidence
from kdfed.ensembles.ensemble import Ensemble
from kdfed.ensembles.label_counts import LabelCounts
from kdfed.ensembles.mean_logits import MeanLogits
from kdfed.ensembles.mean_probabilities import MeanProbabilities
from kdfed.ensembles.stacked import Stacked
from kdfed.ensembles.validated import Validated
from kdfed.family import Family

ENSEMBLES: Family[Ensemble] = Family(
    "ensemble",
    "consolidation.ensemble",
    Ensemble,
    {
        "mean-probabilities": MeanProbabilities,
        "mean-logits": MeanLogits,
        "label-counts": LabelCounts,
        "confidence": Confidence,
        "validated": Validated,
        "stacked": Stacked,
    },
    inner=True,
)
"""What can stand in ``consolidation.ensemble``."""

if TYPE_CHECKING:
    AnyEnsemble = Ensemble
else:
    AnyEnsemble = ENSEMBLES.union

__all__ = [
    "ENSEMBLES",
    "AnyEnsemble",
    "Confidence",
    "Ensemble",
    "LabelCounts",
    "MeanLogits",
    "MeanProbabilities",
    "Stacked",
    "Validated",
]
