"""From a round's participants to network messages: cohorts are cut, dealt to nodes, and packed.

A strategy makes one message a participant; the network takes one *parcel* a node, with whole cohorts in it.
Cohorts are cut from the sampled participants alone, so they do not depend on nodes, on the order of replies,
or on who is absent. Nothing here knows a network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from flwr.app import ConfigRecord, Message, RecordDict

from kdfed.arrays import Spec
from kdfed.limits import LabelCountLimits, Reach
from kdfed.messages import COHORTS, SIMULATION, Cohorts, ReplyKind, numbered
from kdfed.metrics import NUM_EXAMPLES

SpecOf: TypeAlias = Callable[[int], Spec]
"""Shapes and dtypes that a participant's arrays must have; empty when none are sent back."""

Take: TypeAlias = Callable[[int, RecordDict], str | None]
"""Takes a participant's result, or says in one sentence what is wrong with it."""

ReachOf: TypeAlias = Callable[[int], Reach | None]
"""How far a participant's arrays may lie from those that it trained from; None for no bound."""

StepsOf: TypeAlias = Callable[[int], int]
"""The most optimiser steps that the settings allow with so many examples."""

Cohort: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One trip from the server to participants and back, and what their replies must keep to.

    Parameters
    ----------
    phase
        ``teachers``, ``statistics``, ``rounds`` or ``evaluate``, for the ledger.
    round
        The federated round; 0 before the first.
    spec_of, reach_of
        What a participant's arrays must look like, and how far they may lie from those it was sent.
    steps_of
        The most optimiser steps. Default: no limit.
    label_counts
        What label counts must be like. Default: nobody asks for them.
    weight_key
        The metric by which the strategy weighs what is sent.
    take
        Is given each result that keeps to the rest as it comes, and nobody keeps it then. Default: the
        strategy gets replies.
    """

    phase: Literal["teachers", "statistics", "rounds", "evaluate"]
    round: int
    spec_of: SpecOf
    reach_of: ReachOf = lambda participant: None
    steps_of: StepsOf | None = None
    label_counts: LabelCountLimits | None = None
    weight_key: str = NUM_EXAMPLES
    take: Take | None = None

    def __str__(self) -> str:
        return f"{self.phase} {self.round}"


@dataclass(frozen=True)
class Result:
    """One result of a reply.

    Parameters
    ----------
    participants
        Whose work is in it, in order.
    content
        An ordinary Flower reply.
    local_steps
        The optimiser steps that each of them says it made.
    """

    participants: list[int]
    content: RecordDict
    local_steps: list[int]


@dataclass(eq=False)
class Parcel:
    """One network message that is under way.

    Parameters
    ----------
    exchange
        What it is part of.
    node
        Who gets it.
    cohorts
        Who is in it.
    messages
        The strategy's message to each of them.
    late
        Nobody waits for it any more.
    settled
        No more will come of it.
    results
        Checked results that wait until those of the parcels before are summed.
    """

    exchange: Exchange
    node: int
    cohorts: Cohorts
    messages: dict[int, Message]
    late: bool = False
    settled: bool = False
    results: list[Result] = field(default_factory=list)

    @property
    def participants(self) -> Cohort:
        """Everybody in it, in order."""
        return self.cohorts.participants


def cut(participants: Sequence[int], size: int) -> list[Cohort]:
    """Cut sorted participants into cohorts of at most ``size``."""
    return [tuple(participants[start : start + size]) for start in range(0, len(participants), size)]


def kept(cohorts: Iterable[Cohort], participants: Collection[int]) -> list[Cohort]:
    """Return cohorts without those who are not among some participants; none is empty."""
    left = (tuple(p for p in cohort if p in participants) for cohort in cohorts)
    return [cohort for cohort in left if cohort]


def deal(cohorts: Sequence[Cohort], nodes: Sequence[int]) -> Iterator[tuple[int, Sequence[Cohort]]]:
    """Yield each node's cohorts: a run of neighbours, because results are summed in cohort order."""
    each, larger = divmod(len(cohorts), len(nodes))
    start = 0
    for index, node in enumerate(nodes[: len(cohorts)]):
        end = start + each + (index < larger)
        yield node, cohorts[start:end]
        start = end


def deal_to_owners(
    cohorts: Iterable[Cohort], roster: Mapping[int, int]
) -> Iterator[tuple[int, Sequence[Cohort]]]:
    """Yield each device's cohort: of one participant, whose node the roster tells."""
    for cohort in cohorts:
        (participant,) = cohort
        yield roster[participant], [cohort]


def pack(
    exchange: Exchange,
    node: int,
    cohorts: Sequence[Cohort],
    messages: Mapping[int, Message],
    reply: ReplyKind,
) -> Parcel:
    """Return the parcel that carries some cohorts' messages."""
    mine = {participant: messages[participant] for cohort in cohorts for participant in cohort}
    contents: dict[int, int] = {}
    variants = tuple(contents.setdefault(id(message.content), len(contents)) for message in mine.values())
    limits = None
    if reply == "mean":  # nodes look at what they sum
        reach = exchange.reach_of(next(iter(mine)))
        limits = None if reach is None else reach.limits
    return Parcel(exchange, node, Cohorts(tuple(cohorts), variants, reply, limits), mine)


def content_of(parcel: Parcel, simulation: ConfigRecord | None = None) -> RecordDict:
    """Return what a parcel's network message holds: each distinct content once, and who gets which."""
    content = RecordDict()
    count = max(parcel.cohorts.variants) + 1
    distinct = dict(zip(parcel.cohorts.variants, parcel.messages.values(), strict=True))
    for index, message in distinct.items():
        for key, record in message.content.items():
            content[numbered(key, index, count)] = record
    content[COHORTS] = parcel.cohorts.to_record()
    if simulation is not None:
        content[SIMULATION] = ConfigRecord(dict(simulation))
    return content
