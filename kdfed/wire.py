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
(:data:`PARTICIPANTS`), the examples of all of them and of each (:data:`HELD`), and a digest of who holds what
(:data:`DIGEST`).

In a simulation one network message carries many participants: distinct contents once each, and a
``cohorts`` record (:class:`Plan`) that says who is served by which. Its reply holds one result per
cohort or per participant, and a ``cohorts`` record (:class:`Answers`) that says who answered. A device's
message has that record too, with one participant. A reply without one is an ordinary Flower reply of one
participant: that of a ClientApp that knows no cohorts. Warnings that came up on the way travel in a record of
their own (:data:`WARNINGS`), which is no part of the logical message either.

This module knows no Flower: it turns plans and answers into the plain lists that a ``ConfigRecord`` holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np
import torch

from kdfed.config import Arm
from kdfed.errors import WireError
from kdfed.limits import LARGEST, MOST_NUMBERS, MOST_OF_A_KEY, LabelCounts, Limits
from kdfed.outside import code_of
from kdfed.task import WORST

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
HELD = "held"
"""Metric of a node's hello in a simulation: how many examples each participant holds, in their order."""
DIGEST = "digest"
EVAL_LOSS = "eval-loss"
EVAL_ACCURACY = "eval-acc"

Reply: TypeAlias = Literal["mean", "each"]
Lists: TypeAlias = dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions that must agree between server and participants."""
    return {name: version(name) for name in ("kdfed", "torch", "numpy")}


def simulation_record(
    arm: Arm, seed: int, store: Path | None = None, folder: Path | None = None
) -> dict[str, str | int]:
    """Return the ``simulation`` record: whose data a node of a simulation uses, and how it computes.

    Parameters
    ----------
    arm, seed
        What is run.
    store
        Where this arm's and seed's participants keep what lasts between rounds; without one they can keep
        nothing.
    folder
        That of the experiment file: the modules of the user's that it names are looked for there too.
    """
    names = code_of(arm)
    return {
        "data": arm.data.model_dump_json(),
        "partition": arm.partition.model_dump_json(),
        "seed": seed,
        "threads": arm.threads,
        "device": arm.device,
        "precision": arm.precision,
        **({} if store is None else {"store": str(store)}),
        **({"names": json.dumps(names)} if names else {}),
        **({"folder": str(folder)} if names and folder is not None else {}),
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
    limits
        What each participant's work must keep to before it is summed. Default: the server looks at each.
    """

    cohorts: tuple[tuple[int, ...], ...]
    variants: tuple[int, ...]
    reply: Reply
    limits: Limits | None = None

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
            **({} if self.limits is None else _limits_to_lists(self.limits)),
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
            limits = _limits_from_lists(lists) if _UPDATE_BOUND in lists else None
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
        return cls(cohorts, variants, reply, limits)


_MAX_EXAMPLES, _UPDATE_BOUND, _BUFFERS = "max-examples", "update-bound", "buffers"


def _limits_to_lists(limits: Limits) -> Lists:
    buffers = {_BUFFERS: sorted(limits.buffers)} if limits.buffers else {}
    return {_MAX_EXAMPLES: limits.examples, _UPDATE_BOUND: limits.update_bound, **buffers}


def _limits_from_lists(lists: Mapping[str, Any]) -> Limits:
    buffers = frozenset(map(str, lists.get(_BUFFERS, ())))
    return Limits(int(lists[_MAX_EXAMPLES]), float(lists[_UPDATE_BOUND]), buffers)


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
            If a key is missing, a list holds something else than whole numbers or texts, or the lists have
            different lengths.
        """
        kinds = {"participants": int, "results": int, "local-steps": int, "reasons": str}
        try:
            columns = {key: tuple(lists[key]) for key in kinds}
        except (KeyError, TypeError) as error:
            raise WireError(f"expected answers with one entry a participant: {error!r}") from error
        for key, kind in kinds.items():
            odd = [value for value in columns[key] if type(value) is not kind]
            if odd:
                raise WireError(f"expected {kind.__name__} in the list {key} of answers, got {odd[0]!r:.40}")
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1:
            raise WireError(f"expected one entry a participant in every list, got lengths {sorted(lengths)}")
        return cls(*columns.values())

    def members(self, plan: Plan) -> dict[int, list[int]]:
        """Return the participants whose work is in each result, in their order.

        Raises
        ------
        WireError
            If these are not answers to ``plan``: other participants, a result of participants of two cohorts,
            two of one cohort's mean, one of several participants where each has its own, or a result that is
            nobody's.
        """
        if self.participants != plan.participants:
            raise WireError(
                f"expected answers of {len(plan.participants)} participants ({plan.participants[:5]}...), "
                f"got {len(self.participants)} ({self.participants[:5]}...)"
            )
        cohort_of = [index for index, cohort in enumerate(plan.cohorts) for _ in cohort]
        members: dict[int, list[int]] = {}
        owners: dict[int, int] = {}
        for place, (participant, result) in enumerate(zip(self.participants, self.results, strict=True)):
            if result < 0:
                continue
            members.setdefault(result, []).append(participant)
            owner = cohort_of[place] if plan.reply == "mean" else place
            if owners.setdefault(result, owner) != owner:
                raise WireError(f"expected a result for each {_OWNER[plan.reply]}, got {result} for two")
        if sorted(owners) != list(range(len(owners))) or len(set(owners.values())) < len(owners):
            raise WireError(
                f"expected one result for each {_OWNER[plan.reply]} that answered, numbered from 0, got "
                f"{sorted(owners)[-5:]} as the last of {len(owners)}"
            )
        return members


_OWNER = {"mean": "cohort", "each": "participant"}


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


def problem_with_metrics(
    metrics: Mapping[str, Any],
    examples: int | None = None,
    steps: int | None = None,
    label_counts: LabelCounts | None = None,
) -> str | None:
    """Say what is wrong with a participant's metrics, or with those of a mean.

    Parameters
    ----------
    metrics
        What arrived: numbers and lists of numbers by key.
    examples
        The most that ``num-examples``, a whole number above 0, may be. Default: no limit.
    steps
        The most that ``local-steps``, a whole number of at least 0, may be. Default: no limit.
    label_counts
        What ``label-counts`` must be like. Default: nobody asked for them.

    Returns
    -------
    str or None
        One sentence; None when all is well. Every number must be finite and at most
        :data:`~kdfed.limits.LARGEST` in size, and ``eval-acc`` a score.
    """
    count, made = metrics.get(NUM_EXAMPLES), metrics.get(LOCAL_STEPS, 0)
    if not _is_whole(count) or count < 1:
        return f"expected {NUM_EXAMPLES} above 0, a whole number, got {count!r:.40}"
    if examples is not None and count > examples:
        return f"expected at most {examples} as {NUM_EXAMPLES}, got {count!r:.40}"
    if not _is_whole(made) or made < 0:
        return f"expected {LOCAL_STEPS} as a whole number of at least 0, got {made!r:.40}"
    if steps is not None and made > steps:
        return f"expected at most {steps} {LOCAL_STEPS} of {count} examples, got {made!r:.40}"
    numbers = 0
    for key, value in metrics.items():
        values = value if isinstance(value, list) else (value,)
        if len(key) > MOST_OF_A_KEY:
            return f"expected metrics whose names have at most {MOST_OF_A_KEY} characters, got {len(key)}"
        if (key in _SINGLE and isinstance(value, list)) or not values:
            return f"expected a number as {key}, got {value!r:.40}"
        numbers += len(values)
        if numbers > MOST_NUMBERS:
            return f"expected at most {MOST_NUMBERS} numbers in all metrics, got more"
        if not all(isinstance(each, int | float) for each in values):
            return f"expected numbers as {key}, got {value!r:.40}"
        if not all(map(math.isfinite, values)):
            return f"not finite: {key:.40}"
        if any(abs(each) > LARGEST for each in values):
            return f"expected {key:.40} at most {LARGEST:g} in size, got {value!r:.40}"
    if SERVER_STEPS in metrics:
        return f"expected no {SERVER_STEPS}, which only the server makes"
    score = metrics.get(EVAL_ACCURACY, 0)
    if not WORST <= score <= 1:
        return f"expected {EVAL_ACCURACY} from {WORST:g} to 1, got {score!r:.40}"
    return None if label_counts is None else label_counts.problem_with(metrics.get(LABEL_COUNTS), count)


_SINGLE = (NUM_EXAMPLES, LOCAL_STEPS, TRAIN_LOSS, EVAL_LOSS, EVAL_ACCURACY)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
