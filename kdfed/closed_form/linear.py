"""What a closed-form head is in the end: the weights of a linear layer.

Shape suffixes: N examples, D features, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, eq=False)
class Linear:
    """Weights of ``torch.nn.Linear``.

    Parameters
    ----------
    weight_CD
        [C, D]; float32, and float64 while it is computed.
    bias_C
        [C].
    chosen
        The penalty or the shrinkage that was used; None where a head has neither.
    fitted
        How many of the D features it has fitted, in effect: the trace of the matrix that maps wanted outputs
        to fitted ones, without the mean's; 0 where that says nothing.
    chosen_by
        The setting that gave ``chosen``, and its value, such as ``penalty: gcv``; empty where nothing did.
    scale
        By what the logits were multiplied; None where they were not.
    explained
        Which share of the variance of the labels (one-hot, or numbers) it explains, estimated for examples
        that were left out; None where a head cannot tell.
    """

    weight_CD: torch.Tensor
    bias_C: torch.Tensor
    chosen: float | None = None
    fitted: float = 0.0
    chosen_by: str = ""
    scale: float | None = None
    explained: float | None = None

    def __call__(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Return the outputs, computed in float64 on the CPU, [N, C]."""
        return features_ND.cpu().double() @ self.weight_CD.double().T + self.bias_C.double()

    def scaled(self, factor: float) -> Linear:
        """Return the head whose outputs are so many times as large."""
        scale = factor if self.scale is None else factor * self.scale
        return replace(self, weight_CD=self.weight_CD * factor, bias_C=self.bias_C * factor, scale=scale)
