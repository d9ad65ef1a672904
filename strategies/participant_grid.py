"""The Grid whose node ids are participants.

A strategy sees this round's participants as nodes, in a stable order, and ordinary Flower messages. The
network sees a few nodes, each with one message that carries whole cohorts (:mod:`.parcels`), or devices, each
with the message that the strategy made; what comes back goes through an inbox (:mod:`.inbox`). This decorator
sends, waits and keeps the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from uuid import uuid4

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from kdfed.device_data import DeviceData
from kdfed.errors import MessageError, RunError
from kdfed.ledger import Ledger
from kdfed.limits import Limits
from kdfed.messages import FIXED, ReplyKind, Simulation, group_of, record_of, told_to_device
from kdfed.private.flwr import Run, name_message
from kdfed.reasons import Once
from kdfed.records import Absent
from strategies.frozen_parts import FixedWeights, FrozenParts
from strategies.hello import nodes_of
from strategies.inbox import Inbox, Report, bytes_of
from strategies.parcels import Cohort, Exchange, Parcel, content_of, cut, deal, deal_to_owners, kept, pack
from strategies.present import Present

POLL_SECONDS = 0.0005, 0.02
"""Least and most seconds between two looks for replies; in between a fiftieth of the time waited so far."""

_ASKS = 20, 20.0  # a strategy that asks more often, for more seconds than this, waits for ever


class ParticipantGrid(Grid):
    """A Flower Grid whose nodes are the sampled participants of one round.

    Parameters
    ----------
    grid
        The network: Flower's own grid, or one of the engines'.
    cohort_size
        At most this many participants are trained together in one call, 1 or larger; devices train alone.
    ledger
        Filled with every logical message.
    reply
        ``mean`` when the strategy takes weighted means, else ``each``. Such a strategy gets one reply a
        round, the mean of all (see :class:`~strategies.round_mean.RoundMean`).
    simulation
        Tells simulated nodes whose data to use; never counted. Default: real nodes.
    device_data
        Tells devices what to make of their examples, in every message; counted. Default: they know.
    enough, grace
        A round ends ``grace`` seconds after so many participants have answered. Default: at its deadline.
    present
        Who is there. Default: nodes own nobody, and cohorts are dealt to any of them.
    limits
        How much a participant may say.
    log
        Where reasons and warnings are logged, each distinct text once. Default: a new one.

    Notes
    -----
    Replies are matched by ``reply_to_message_id`` only: error replies of the SuperLink carry another source.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        cohort_size: int,
        ledger: Ledger,
        reply: ReplyKind,
        simulation: Simulation | None = None,
        device_data: DeviceData | None = None,
        enough: int | None = None,
        grace: float = 0.0,
        present: Present | None = None,
        limits: Limits | None = None,
        log: Once | None = None,
    ) -> None:
        present = present or Present()
        self.network = grid
        self.limits = limits or Limits()
        self._ledger, self._reply, self._roster = ledger, reply, present.roster
        self._present, self._device_data = present, device_data
        self._enough, self._grace = enough, grace
        self._cohort_size = cohort_size if present.roster is None else 1
        self._simulation = None if simulation is None else simulation.to_record()
        self._inbox = Inbox(ledger, self.limits, present.held, log)
        self._frozen, self._fixed = FrozenParts(), FixedWeights()
        self._exchange: Exchange | None = None
        self._sampled: dict[int, None] = {}  # a set that keeps its order
        self._cohorts: list[Cohort] = []
        self._open: dict[str, Parcel] = {}
        self._asks: list[float] = []  # when a strategy asked who is there, since it last sent something

    # ------------------------------------------------------------------ what the arm says

    def begin(self, exchange: Exchange, participants: Sequence[int]) -> None:
        """Begin an exchange with some participants.

        Those whose earlier message is open are left out, and those that have not come.
        """
        self._exchange, self._asks = exchange, []
        self._inbox.begin(exchange)
        self._pull()
        self._present.update()
        busy = {p: parcel.exchange.round for parcel in self._open.values() for p in parcel.participants}
        drawn = sorted(participants)
        self._cohorts = cut(drawn, self._cohort_size)
        why = {p: f"busy: has not answered round {busy[p]} yet" for p in drawn if p in busy}
        if self._roster is not None:
            why |= {p: self._present.why_absent(p) for p in drawn if p not in self._roster}
        self._sampled = dict.fromkeys(p for p in drawn if p not in why)
        self.report.absent += [Absent(p, why[p]) for p in drawn if p in why]
        if exchange.phase != "evaluate":
            self._ledger.open_exchange(exchange.phase)

    @property
    def report(self) -> Report:
        """Who answered in this exchange, and who was left out."""
        return self._inbox.report

    # ------------------------------------------------------------------ Flower's Grid

    def set_run(self, run: Run) -> None:
        """Set the run of the network's grid."""
        self.network.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the network's grid."""
        return self.network.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message for one participant."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return this round's participants, in order.

        Raises
        ------
        RunError
            If a strategy asks again and again, sends nothing, and so waits for somebody who will not come:
            who is in a round is settled before it is asked.
        """
        now = time.monotonic()
        self._asks.append(now)
        asks, seconds = _ASKS
        if len(self._asks) > asks and now - self._asks[0] > seconds:
            raise RunError(
                f"{self._exchange}: the strategy waits for more participants than the "
                f"{len(self._sampled)} that can be reached; lower its minimum, or raise server.sampled"
            )
        return list(self._sampled)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send participants' messages, one network message a node; return the participants' message ids."""
        return self._push(messages, None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived for these message ids.

        A cohort's or a round's mean answers the message of its first participant that answered.
        """
        self._pull()
        return self._inbox.replies(set(message_ids))

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Iterable[Message]:
        """Send participants' messages and wait for the replies, at most ``timeout`` seconds.

        Parameters
        ----------
        meanwhile
            Called once everything is sent, before the first look for replies: work that the nodes need not
            wait for. Its time counts towards ``timeout``.

        Returns
        -------
        list of Message
            In participant order; whoever is missing is named in :attr:`report`.
        """
        end = time.monotonic() + (timeout if timeout is not None else 365 * 86400)
        ids = set(self._push(messages, timeout))
        if meanwhile is not None:
            meanwhile()
        ended = self._wait(end)
        for parcel in self._awaited():
            self._inbox.give_up(parcel, ended or f"no reply within {timeout:g} seconds")
            parcel.late = True
        return self._inbox.conclude(ids)

    # ------------------------------------------------------------------ sending and waiting

    def _push(self, messages: Iterable[Message], ttl: float | None) -> list[str]:
        by_participant = self._named(self._told(messages))
        exchange = self._exchange
        if exchange is None or not by_participant:
            return []
        self._asks = []
        for content, receivers in _distinct(by_participant):
            self._ledger.down(exchange.phase, bytes_of(content), messages=len(receivers))
            if self._device_data is None:
                self._ledger.down(exchange.phase, self._fixed.due(receivers, content))
            else:  # which keep nothing that a restart would lose
                fixed = record_of(content, FIXED, ArrayRecord).count_bytes()
                self._ledger.down(exchange.phase, fixed, messages=len(receivers))
        self._ledger.down(
            exchange.phase, sum(self._frozen.due(p, m.content) for p, m in by_participant.items())
        )
        cohorts = kept(self._cohorts, by_participant)
        if self._roster is not None:
            dealt = deal_to_owners(cohorts, self._roster)
        else:
            occupied = {parcel.node for parcel in self._open.values()}
            nodes = nodes_of(self.network)
            dealt = deal(cohorts, [node for node in nodes if node not in occupied] or nodes)
        reply: ReplyKind = self._reply if exchange.phase == "rounds" else "each"
        parcels = [pack(exchange, node, mine, by_participant, reply) for node, mine in dealt]
        self._inbox.expect(parcels)
        for parcel in parcels:
            participant, first = next(iter(parcel.messages.items()))
            group = first.metadata.group_id
            if self._roster is None:
                content = content_of(parcel, self._simulation)
            else:  # a device is one participant, and gets what the strategy put in
                content, group = RecordDict(dict(first.content)), group or group_of(participant)
            kind = first.metadata.message_type
            sent = Message(content, parcel.node, kind, ttl=ttl, group_id=group)
            (message_id,) = list(self.network.push_messages([sent])) or [""]
            if message_id:
                self._open[message_id] = parcel
            else:
                self._inbox.give_up(parcel, "the network did not take the message")
        return [message.metadata.message_id for message in by_participant.values()]

    def _told(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Yield messages with what a device must know to answer them; who gets the same still does."""
        told: dict[int, tuple[RecordDict, RecordDict]] = {}
        for message in messages:
            if self._device_data is None:
                yield message
                continue
            sent, content = message.metadata, message.content
            if id(content) not in told:
                told[id(content)] = content, told_to_device(content, self._device_data)
            yield Message(
                told[id(content)][1],
                sent.dst_node_id,
                sent.message_type,
                ttl=sent.ttl,
                group_id=sent.group_id,
            )

    def _named(self, messages: Iterable[Message]) -> dict[int, Message]:
        """Give each participant's message an id, by which its reply will be known."""
        by_participant: dict[int, Message] = {}
        batch = uuid4().hex
        for message in messages:
            participant = message.metadata.dst_node_id
            if participant not in self._sampled:
                raise MessageError(
                    f"expected a participant of this round ({list(self._sampled)}), got {participant}"
                )
            if participant in by_participant:
                raise MessageError(f"expected one message a participant, got two for {participant}")
            name_message(message, f"{batch}-{participant}")
            by_participant[participant] = message
        return by_participant

    def _awaited(self) -> list[Parcel]:
        return [parcel for parcel in self._open.values() if not parcel.late]

    def _pull(self) -> None:
        for reply in self.network.pull_messages(list(self._open)) if self._open else ():
            parcel = self._open.pop(reply.metadata.reply_to_message_id, None)
            if parcel is not None:
                self._inbox.take(parcel, reply)

    def _wait(self, end: float) -> str:
        """Wait for replies; return why it ended early, nothing where it did not."""
        began, (least, most) = time.monotonic(), POLL_SECONDS
        enough, ended, asked = self._enough_of_this(), "", len(self._awaited())
        waits = bool(getattr(self.network, "waits", False))  # it waits itself when it is asked
        while True:
            self._pull()
            now = time.monotonic()
            if now >= end or not self._awaited():
                return ended
            if enough is not None and not ended and self._good(asked) >= enough and now + self._grace < end:
                end = now + self._grace
                ended = f"no reply within {self._grace:g} seconds of the first {enough} (server.enough)"
            if not waits:
                time.sleep(min(most, max(least, (now - began) / 50)))

    def _enough_of_this(self) -> int | None:
        return self._enough if self._exchange is not None and self._exchange.phase == "rounds" else None

    def _good(self, asked: int) -> int:
        """Return how many of so many parcels, each of one device, have been answered with a result."""
        failed = sum(absent.participant in self._sampled for absent in self.report.absent)
        return asked - len(self._awaited()) - failed


def _distinct(messages: Mapping[int, Message]) -> list[tuple[RecordDict, list[int]]]:
    """Return the distinct contents of participants' messages, and who gets each."""
    found: dict[int, tuple[RecordDict, list[int]]] = {}
    for participant, message in messages.items():
        found.setdefault(id(message.content), (message.content, []))[1].append(participant)
    return list(found.values())
