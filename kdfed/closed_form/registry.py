"""Which closed-form heads there are."""

from __future__ import annotations

from kdfed.closed_form.class_means import ClassMeans
from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.lda import Lda
from kdfed.closed_form.ridge import Ridge
from kdfed.family import Family

HEADS: Family[ClosedFormHead] = Family(
    "head",
    "closed-form.head",
    ClosedFormHead,
    {
        "ridge": Ridge,
        "lda": Lda,
        "class-means": ClassMeans,
    },
    default="ridge",
    inner=True,
)
"""What can stand in ``closed-form.head``."""
