r"""Keys, shapes and dtypes of every message, and the checks that both ends make.

What one participant and the server exchange (the logical message, which the ledger counts):

=============== ========= ======================= ==================================================
message type    direction record                  content
=============== ========= ======================= ==================================================
query.hello     down      config                  versions of the server
\\               up        metrics, config         ``num-examples``; versions of the participant
train.teacher   down      arrays (common init),   initial weights; settings; transfer images as
\\                         config, transfer        stored, when logits are asked for
\\               up        arrays, metrics         weights, or ``logits`` float16 [N, C];
\\                                                 ``num-examples``, ``train-loss``, ``local-steps``,
\\                                                 ``label-counts`` [C] when asked
train           down      arrays, config          global weights; settings
\\               up        arrays, metrics         weights; ``num-examples``, ``train-loss``,
\\                                                 ``local-steps``
query.logits    down      transfer, config        public examples as stored (first message); the last
\\                                                 consensus float16 [M, C]; settings
\\                         arrays                  initial weights (first message)
\\               up        arrays, metrics         ``logits`` float16 [N, C]; ``num-examples``,
\\                                                 ``train-loss``, ``local-steps``
evaluate        down      arrays, config          global weights; settings
\\               up        metrics                 ``num-examples``, ``eval-loss``, ``eval-acc``
=============== ========= ======================= ==================================================

In a simulation nobody's hello is sent alone: a node tells how many participants there are
(:data:`PARTICIPANTS`), the examples of all of them, and a digest of who holds what (:data:`DIGEST`).

In a simulation one network message carries many participants: distinct contents once each, and a
``cohorts`` record (:class:`Plan`) that says who is served by which. Its reply holds one result per
cohort or per participant, and a ``cohorts`` record (:class:`Answers`) that says who answered. A device's
message has that record too, with one participant. A reply without one is an ordinary Flower reply of one
participant: that of a ClientApp that knows no cohorts. Warnings that came up on the way travel in a record of
their own (:data:`WARNINGS`), which is no part of the logical message either.

This module knows no Flower: it turns plans and answers into the plain lists that a ``ConfigRecord`` holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from kdfed.config import Arm
from kdfed.errors import WireError

HELLO = "query.hello"
TEACHER = "train.teacher"
TRAIN = "train"
EVALUATE = "evaluate"
LOGITS_QUERY = "query.logits"

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
TRANSFER = "transfer"
COHORTS = "cohorts"
WARNINGS = "warnings"
"""Warnings that came up on a simulated node (``texts``). Never part of a logical message."""
SIMULATION = "simulation"
"""Which data a simulated participant holds. Never part of a logical message; a device ignores it."""

INPUTS = "inputs"
LOGITS = "logits"
CONSENSUS = "consensus"
PUBLIC = "public"
NUM_EXAMPLES = "num-examples"
TRAIN_LOSS = "train-loss"
LOCAL_STEPS = "local-steps"
SERVER_STEPS = "server-steps"
"""Metric of a round: optimiser steps that a distillation took on the server. It is never sent."""
LABEL_COUNTS = "label-counts"
PARTICIPANTS = "participants"
DIGEST = "digest"
EVAL_LOSS = "eval-loss"
EVAL_ACCURACY = "eval-acc"

Reply: TypeAlias = Literal["mean", "each"]
Lists: TypeAlias = dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions that must agree between server and participants."""
    return {name: version(name) for name in ("kdfed", "torch", "numpy")}


def simulation_record(arm: Arm, seed: int, store: Path | None = None) -> dict[str, str | int]:
    """Return the ``simulation`` record: whose data a node of a simulation uses, and how it computes.

    ``store`` is the folder where this arm's and seed's participants keep what lasts between rounds; without
    one they can keep nothing.
    """
    return {
        "data": arm.data.model_dump_json(),
        "partition": arm.partition.model_dump_json(),
        "seed": seed,
        "threads": arm.threads,
        "device": arm.device,
        "precision": arm.precision,
        **({} if store is None else {"store": str(store)}),
    }


def numbered(key: str, index: int, count: int) -> str:
    """Return the record key of item ``index`` of ``count``: plain when there is only one."""
    return key if count == 1 else f"{key}-{index}"


@dataclass(frozen=True)
class Plan:
    """Who a network message is for.

    Parameters
    ----------
    cohorts
        Participants by cohort, in participant order.
    variants
        For each participant, in the same order, which of the distinct contents is for it.
    reply
        ``mean``: one weighted mean per cohort comes back; ``each``: one result per participant.
    """

    cohorts: tuple[tuple[int, ...], ...]
    variants: tuple[int, ...]
    reply: Reply

    @cached_property
    def participants(self) -> tuple[int, ...]:
        """All participants, in order."""
        return tuple(participant for cohort in self.cohorts for participant in cohort)

    def to_lists(self) -> Lists:
        """Return what a ``ConfigRecord`` can hold."""
        return {
            "participants": list(self.participants),
            "sizes": [len(cohort) for cohort in self.cohorts],
            "variants": list(self.variants),
            "reply": self.reply,
        }

    @classmethod
    def from_lists(cls, lists: Mapping[str, Any]) -> Plan:
        """Read back what :meth:`to_lists` wrote.

        Raises
        ------
        WireError
            If a key is missing or the lists do not fit together.
        """
        try:
            participants = [int(p) for p in lists["participants"]]
            sizes = [int(size) for size in lists["sizes"]]
            variants = tuple(int(v) for v in lists["variants"])
            reply = lists["reply"]
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(
                f"expected a plan with participants, sizes, variants and reply: {error!r}"
            ) from error
        if (
            sum(sizes) != len(participants)
            or len(variants) != len(participants)
            or reply not in ("mean", "each")
        ):
            raise WireError(
                f"expected sizes and variants for {len(participants)} participants and reply mean or each, "
                f"got sizes {sizes}, {len(variants)} variants, reply {reply!r}"
            )
        ends = np.cumsum(sizes).tolist()
        cohorts = tuple(tuple(participants[end - size : end]) for size, end in zip(sizes, ends, strict=True))
        return cls(cohorts, variants, reply)


@dataclass(frozen=True)
class Answers:
    """Who answered a network message.

    Parameters
    ----------
    participants
        Everybody the message was for.
    results
        For each, the index of the result that holds its work, or -1 when it is left out.
    local_steps
        For each, the optimiser steps made; 0 when it is left out.
    reasons
        For each, why it is left out; empty when it is not.
    """

    participants: tuple[int, ...]
    results: tuple[int, ...]
    local_steps: tuple[int, ...]
    reasons: tuple[str, ...]

    def to_lists(self) -> Lists:
        """Return what a ``ConfigRecord`` can hold."""
        return {
            "participants": list(self.participants),
            "results": list(self.results),
            "local-steps": list(self.local_steps),
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_lists(cls, lists: Mapping[str, Any]) -> Answers:
        """Read back what :meth:`to_lists` wrote.

        Raises
        ------
        WireError
            If a key is missing or the lists have different lengths.
        """
        try:
            answers = cls(
                participants=tuple(int(p) for p in lists["participants"]),
                results=tuple(int(r) for r in lists["results"]),
                local_steps=tuple(int(n) for n in lists["local-steps"]),
                reasons=tuple(str(reason) for reason in lists["reasons"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"expected answers with one entry a participant: {error!r}") from error
        lengths = {len(values) for values in vars(answers).values()}
        if len(lengths) != 1:
            raise WireError(f"expected one entry a participant in every list, got lengths {sorted(lengths)}")
        return answers


# ----------------------------------------------------------------------------- checks

Spec: TypeAlias = dict[str, tuple[tuple[int, ...], str]]
"""Shape and NumPy dtype by key."""


def spec_of(arrays: Mapping[str, np.ndarray | torch.Tensor]) -> Spec:
    """Return shape and dtype of every array."""
    return {key: (tuple(array.shape), _dtype(array)) for key, array in arrays.items()}


def _dtype(array: np.ndarray | torch.Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")


def problem_with(arrays: Mapping[str, np.ndarray | torch.Tensor], spec: Spec) -> str | None:
    """Say what is wrong with a participant's arrays before they are summed.

    Parameters
    ----------
    arrays
        What arrived.
    spec
        Shapes and dtypes of the initial model.

    Returns
    -------
    str or None
        One sentence naming the first array with a wrong key, shape, dtype or a value that is not finite;
        None when all is well.
    """
    if set(arrays) != set(spec):
        missing, unknown = sorted(set(spec) - set(arrays)), sorted(set(arrays) - set(spec))
        return f"wrong arrays: missing {missing}, unexpected {unknown}"
    for key, (shape, dtype) in spec.items():
        array = arrays[key]
        if tuple(array.shape) != shape:
            return f"wrong shape of {key}: expected {shape}, got {tuple(array.shape)}"
        if _dtype(array) != dtype:
            return f"wrong dtype of {key}: expected {dtype}, got {_dtype(array)}"
        finite = torch.isfinite(array) if isinstance(array, torch.Tensor) else np.isfinite(array)
        if not bool(finite.all()):
            return f"not finite: {key}"
    return None


def problem_with_metrics(metrics: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a participant's metrics.

    Parameters
    ----------
    metrics
        What arrived: numbers and lists of numbers by key. ``num-examples`` must be above 0, ``local-steps``
        (where it is there) a whole number of at least 0, and every number finite.

    Returns
    -------
    str or None
        One sentence; None when all is well.
    """
    count, steps = metrics.get(NUM_EXAMPLES), metrics.get(LOCAL_STEPS, 0)
    if not isinstance(count, int | float) or not math.isfinite(count) or count <= 0:
        return f"expected {NUM_EXAMPLES} above 0, got {count!r}"
    if not isinstance(steps, int) or steps < 0:
        return f"expected {LOCAL_STEPS} as a whole number of at least 0, got {steps!r}"
    for key, value in metrics.items():
        if not (all(map(math.isfinite, value)) if isinstance(value, list) else math.isfinite(value)):
            return f"not finite: {key}"
    return None
