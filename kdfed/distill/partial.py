r"""Teachers that know some of the classes only, and what their answers are worth in an ensemble.

A teacher of a set of classes :math:`A_k` answers :math:`p_k(c \mid A_k)`: which of *its* classes an example
is likeliest to be, if it is one of them. Of the other classes, and of how likely its own are together, it
knows nothing. So whatever an ensemble does with zeros there, or with some small number, is wrong: a teacher
of cats and dogs that is shown a ship answers "cat, for sure", and would vote ships down.

What it does not know is taken from those that do (:func:`completed`). With q the mean of all completed
teachers,

.. math::

    p_k(c) = q(A_k)\,p_k(c \mid A_k) \;\text{for}\; c \in A_k, \quad p_k(c) = q(c) \;\text{elsewhere}, \quad
    q = \frac{1}{K} \sum_k p_k

which is linear in q. Where teachers together do not say how sets of classes compare (no chain of shared
classes joins them), each set has the share of the classes that it holds. A teacher that knows every class is
its own completion.

So a teacher changes nothing in the probability of a class that it does not know: with one such teacher the
mean of probabilities there is exactly that of the others.

Shape suffixes: K teachers, G distinct sets of classes, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

UNKNOWN = -100.0
"""Log-probability of a class that no teacher knows."""

_EVEN = 1e-8  # how much of q is uniform: what decides between sets that nothing joins, and nowhere else
_LEAST = 1e-30
_MOST = 2**22  # logits at a time


class AdaptedTeacher(nn.Module):
    """A model that was trained on other inputs, or for other outputs, than a student that it teaches.

    Parameters
    ----------
    model
        The teacher.
    scale, shift
        What inputs are multiplied by, and what is added then: one number a channel or feature.
    outputs
        The teacher's output for each class of the student; None of one that it does not know. Alone it gives
        such a class the mean of the exponentials of those it knows, so that it says neither yes nor no.
    factor, offset
        What outputs are multiplied by, and what is added then: of a regression.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    columns: torch.Tensor
    kept: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        scale: torch.Tensor,
        shift: torch.Tensor,
        outputs: Sequence[int | None],
        factor: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.factor, self.offset = model, factor, offset
        self.knows = torch.tensor([output is not None for output in outputs])
        kept = [output for output in outputs if output is not None]
        places = {output: place for place, output in enumerate(kept)}
        columns = [len(kept) if output is None else places[output] for output in outputs]
        for name, values in (
            ("scale", scale),
            ("shift", shift),
            ("columns", torch.tensor(columns)),
            ("kept", torch.tensor(kept)),
        ):
            self.register_buffer(name, values, persistent=False)  # no weights of the model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the student's classes, [N, C]."""
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        outputs = self.model(inputs * self.scale.reshape(shape) + self.shift.reshape(shape))
        outputs = outputs[:, self.kept] * self.factor + self.offset
        neither = outputs.logsumexp(1, keepdim=True) - math.log(len(self.kept))
        return torch.cat([outputs, neither], dim=1)[:, self.columns]

    def extra_repr(self) -> str:
        """Tell two that differ in anything but weights apart."""
        return (
            f"scale={self.scale.tolist()}, shift={self.shift.tolist()}, kept={self.kept.tolist()}, "
            f"columns={self.columns.tolist()}, factor={self.factor}, offset={self.offset}"
        )


def known_classes(teachers: Sequence[nn.Module]) -> torch.Tensor | None:
    """Return which classes each teacher knows, bool [K, C]; None where everybody knows all."""
    partial = {k: one.knows for k, one in enumerate(teachers) if isinstance(one, AdaptedTeacher)}
    if all(bool(knows_C.all()) for knows_C in partial.values()):
        return None
    everything = torch.ones_like(next(iter(partial.values())))
    return torch.stack([partial.get(k, everything) for k in range(len(teachers))])


def completed(logits_KNC: torch.Tensor, knows_KC: torch.Tensor) -> torch.Tensor:
    """Return teachers' logits in which each takes what it does not know from the others.

    Parameters
    ----------
    logits_KNC
        Of the classes that a teacher does not know, any finite number.
    knows_KC
        Which classes each teacher knows, bool; at least one each.

    Returns
    -------
    torch.Tensor
        The same dtype, [K, N, C]: log-probabilities. A teacher that knows every class has its own logits; a
        class that nobody knows has :data:`UNKNOWN` everywhere.
    """
    rows = max(1, _MOST // knows_KC.numel())
    parts = [_completed(part, knows_KC) for part in torch.split(logits_KNC, rows, dim=1)]
    return torch.cat(parts, dim=1).to(logits_KNC.dtype)


def _completed(logits_KNC: torch.Tensor, knows_KC: torch.Tensor) -> torch.Tensor:
    log_KNC = logits_KNC.double().masked_fill(~knows_KC.unsqueeze(1), -torch.inf).log_softmax(2)
    sets, set_of_K = torch.unique(knows_KC, dim=0, return_inverse=True)
    sets_GC = sets.double()
    sums_GNC = log_KNC.new_zeros(len(sets), *log_KNC.shape[1:]).index_add(0, set_of_K, log_KNC.exp())
    teachers, somebody_C = len(knows_KC), knows_KC.any(0)
    share_C = somebody_C.double() / somebody_C.sum()
    # q(c) = weight(c) sum_g q(set g) sums_g(c) + even(c): solved for the probabilities of the sets alone.
    own_C = knows_KC.double().mean(0) * (1 - _EVEN) + _EVEN  # 1 - what a class keeps of itself
    weight_C, even_C = (1 - _EVEN) / teachers / own_C, _EVEN * share_C / own_C
    map_NGG = torch.einsum("hc,gnc,c->nhg", sets_GC, sums_GNC, weight_C)
    identity = torch.eye(len(sets), dtype=torch.float64)
    mass_NG = torch.linalg.solve(identity - map_NGG, (sets_GC @ even_C).expand(len(map_NGG), -1))
    q_NC = torch.einsum("ng,gnc->nc", mass_NG, sums_GNC) * weight_C + even_C
    q_NC = q_NC / q_NC.sum(1, keepdim=True)
    log_q_NC = q_NC.clamp_min(_LEAST).log().masked_fill(~somebody_C, UNKNOWN)
    mass_KN = (q_NC @ sets_GC.T).clamp_min(_LEAST).T[set_of_K]
    found_KNC = torch.where(knows_KC.unsqueeze(1), log_KNC + mass_KN.log().unsqueeze(2), log_q_NC)
    everything_K = knows_KC.all(1).reshape(-1, 1, 1)
    return torch.where(everything_K, logits_KNC.double(), found_KNC)
