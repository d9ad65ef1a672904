"""Heads in closed form, from sums over the participants' features: one file a head, named here."""

from __future__ import annotations

from kdfed.closed_form.calibration import scale_by_labels, scale_by_sums
from kdfed.closed_form.class_means import ClassMeans
from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.lda import Lda
from kdfed.closed_form.linear import Linear
from kdfed.closed_form.refit import Refit
from kdfed.closed_form.registry import HEADS
from kdfed.closed_form.ridge import Ridge
from kdfed.closed_form.running import RunningSum
from kdfed.closed_form.settings import BEFORE, WITH, ClosedFormSettings, When
from kdfed.closed_form.sums import Sums

__all__ = [
    "BEFORE",
    "HEADS",
    "WITH",
    "ClassMeans",
    "ClosedFormHead",
    "ClosedFormSettings",
    "Lda",
    "Linear",
    "Refit",
    "Ridge",
    "RunningSum",
    "Sums",
    "When",
    "scale_by_labels",
    "scale_by_sums",
]
