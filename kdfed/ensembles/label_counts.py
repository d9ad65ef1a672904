"""The ensemble ``label-counts``: classes weighted by the teachers' label counts.

See :func:`~kdfed.ensembles.ensemble.class_weighted`.

Shape suffixes: K teachers, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from kdfed.ensembles.ensemble import Ensemble, class_weighted
from kdfed.thing import Refusal


class LabelCounts(Ensemble):
    """Each class from the teachers that were trained on it, by their label counts."""

    ensemble: Literal["label-counts"] = "label-counts"
    """The ensemble."""

    needs_label_counts: ClassVar[bool] = True

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for the counts."""
        if not arm.teachers.label_counts.send:
            send = "teachers.label-counts.send"
            yield Refusal(".ensemble", f"'label-counts' needs {send}: true", (send,))

    def target(
        self, logits_KNC: torch.Tensor, temperature: float, scores_KC: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the probabilities, weighted per class by label counts, [N, C]."""
        return class_weighted(logits_KNC, temperature, scores_KC)

    def scores(
        self, validation_KNC: torch.Tensor | None, labels_N: torch.Tensor, label_counts: np.ndarray | None
    ) -> torch.Tensor | None:
        """Return the label counts, [K, C]."""
        return None if label_counts is None else torch.as_tensor(label_counts)
