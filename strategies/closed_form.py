"""One exchange for a head in closed form: participants send sums over features, the server solves.

The messages are :class:`kdfed.messages.QueryStatistics` and :class:`kdfed.messages.Update`. Statistics are
checked and added as they come (:class:`kdfed.closed_form.RunningSum`): the server never holds those of all
participants. A node of a simulation answers for many in one message, so there they are asked in turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from kdfed.arrays import Spec
from kdfed.closed_form import ClosedFormHead, ClosedFormSettings, Linear, RunningSum, Sums
from kdfed.closed_form.features import HeadOf, head_of
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.messages import ARRAYS, METRICS, QueryStatistics, numbers_of, record_of
from kdfed.metrics import NUM_EXAMPLES
from kdfed.models import State, load_state
from kdfed.paying import Advice, before_exchange
from kdfed.reading import shape_read
from kdfed.seeding import derive
from strategies.arm_config import ArmConfig
from strategies.distilling import distilled
from strategies.parcels import Cohort, Exchange, cut
from strategies.participant_grid import ParticipantGrid

AT_ONCE = 2**28
"""Bytes of statistics that the nodes of a simulation are asked for at a time, about."""

_OWN_EXAMPLES = 256
"""Examples of the server's by which the size of features is judged."""


@dataclass(frozen=True)
class Asked:
    """What an exchange brought.

    Parameters
    ----------
    sums
        Over the examples of all who answered; None where nobody did.
    sent
        How many participants sent statistics, those that were refused among them.
    """

    sums: Sums | None
    sent: int


def advice_before(config: ArmConfig) -> Advice | None:
    """Say whether an arm's start with a solved head is expected to pay; None where it has no such start."""
    settings = config.arm.closed_form
    if settings is None or 0 not in settings.at:
        return None
    return before_exchange(_place_of(config).dims, pretrained=config.arm.model.backbone is not None)


def _place_of(config: ArmConfig) -> HeadOf:
    """Return where the head of an arm's model is."""
    model = config.build(config.arm.model, "closed-form")
    return head_of(model, shape_read(config.arm.model, config.data.input_shape))


class HeadPhase:
    """Refits the head of an arm's model.

    Parameters
    ----------
    config
        The arm; it has a section ``closed-form``.
    grid
        Whose participants send statistics.
    """

    def __init__(self, config: ArmConfig, grid: ParticipantGrid) -> None:
        assert config.arm.closed_form is not None
        self.config, self.arm, self.grid = config, config.arm, grid
        self.settings: ClosedFormSettings = config.arm.closed_form
        self._seed = derive(config.seed, "closed-form")

    @property
    def asking(self) -> tuple[ClosedFormHead, int]:
        """What a message that asks for statistics says: the head, and the seed of its projection."""
        return self.settings.head, self._seed

    @property
    def spec(self) -> Spec:
        """What one participant's statistics look like."""
        data = self.config.data
        return self.settings.head.spec(self._place.dims, data.classes, data.task)

    @cached_property
    def _place(self) -> HeadOf:
        return _place_of(self.config)

    def ask(self, state: State, server_round: int, participants: Sequence[int]) -> Asked:
        """Have participants send statistics of a model's features; the grid's report says who did."""
        head, place, spec = self.settings.head, self._place, self.spec
        asked = sorted(participants)
        total = RunningSum(len(asked))
        places = {participant: place for place, participant in enumerate(asked)}
        exchange = Exchange(
            phase="statistics",
            round=server_round,
            spec_of=lambda participant: spec,
            steps_of=lambda examples: 0,
            take=partial(self._take, total, places, self.most(state)),
        )
        self.grid.begin(exchange, asked)
        content = QueryStatistics(
            seed=self.config.seed,
            server_round=server_round,
            model=self.arm.model,
            arrays=place.without(state),
            head=head,
            projection_seed=self._seed,
        ).to_record()
        deadline = self.arm.server.deadlines.teachers
        for some in self._turns(spec):
            messages = [Message(content, p, QueryStatistics.type, ttl=deadline) for p in some]
            self.grid.send_and_receive(messages, timeout=deadline)
        report = self.grid.report
        return Asked(total.result(), len(report.answered) + report.refused)

    def _turns(self, spec: Spec) -> Sequence[Cohort]:
        """Return who is asked at a time: devices answer for themselves, nodes of a simulation for many."""
        reachable = list(self.grid.get_node_ids())
        size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in spec.values())
        most = len(reachable) if self.config.simulation is None else AT_ONCE // size
        return cut(reachable, max(1, most))

    def most(self, state: State) -> float:
        """Return the largest mean of squared lengths of a participant's features.

        They may be ``server.update-bound`` times as large as those that the same model makes of the server's
        own examples, whose labels nobody looks at.
        """
        own = self._features(state, self.config.data.transfer.inputs[:_OWN_EXAMPLES])
        size = max(1.0, self.settings.head.size(own, self._seed))
        return self.grid.limits.update_bound**2 * size

    def _take(
        self, total: RunningSum, places: dict[int, int], most: float, participant: int, content: RecordDict
    ) -> str | None:
        """Add what a reply holds of a participant's statistics; see :meth:`add`."""
        arrays = {key: numbers_of(array) for key, array in record_of(content, ARRAYS, ArrayRecord).items()}
        examples = cast("int", record_of(content, METRICS, MetricRecord)[NUM_EXAMPLES])
        return self.add(total, places[participant], most, arrays, examples)

    def add(
        self, total: RunningSum, place: int, most: float, arrays: Mapping[str, np.ndarray], examples: int
    ) -> str | None:
        """Add a participant's statistics; say what is wrong where they cannot be sums over its examples.

        Parameters
        ----------
        total
            What they are added to.
        place
            Of the participant in it.
        most
            See :meth:`most`.
        arrays
            Of shapes and types as :attr:`spec` says.
        examples
            That it says it holds.
        """
        head, data = self.settings.head, self.config.data
        problem = head.problem_with(
            arrays,
            self._place.dims,
            data.classes,
            data.task,
            examples,
            most,
            most_label=self.grid.limits.update_bound**2,
        )
        if problem is None:
            total.add(place, head.sums(arrays))
        return problem

    def solve(self, state: State, sums: Sums) -> tuple[State, Linear]:
        """Return a model's weights with the head that sums over its features give, and that head.

        Raises
        ------
        KdfedError
            If the sums give no finite head.
        """
        place, head, validation = self._place, self.settings.head, None
        if head.server_labels():
            held = self.config.data.validation
            validation = Examples(self._features(state, held.inputs), held.labels.cpu())
        linear = head.solve(sums, place.dims, self._seed, validation)
        if not (bool(linear.weight_CD.isfinite().all()) and bool(linear.bias_C.isfinite().all())):
            raise KdfedError(
                f"closed-form: expected a finite head {head.head!r}, got none; raise its penalty"
            )
        return place.replaced(state, linear.weight_CD, linear.bias_C), linear

    def distilled(self, state: State, solved: State, server_round: int) -> tuple[State, int]:
        """Return what is left of a solved model, distilled into the weights before it, and the steps taken.

        Parameters
        ----------
        state
            Whose head was solved for; the student starts with these weights.
        solved
            The teacher.
        server_round
            After which round.
        """
        assert self.settings.distillation is not None
        method = self.settings.distillation.method()
        return distilled(
            self.config, state, [solved], method, derive(self._seed, "distillation", server_round)
        )

    def _features(self, state: State, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features that a model makes of inputs as it reads them, [N, D] on the CPU."""
        model = self.config.build(self.arm.model, "closed-form")
        load_state(model, state)
        return self._place.features(model.to(self.config.setup.device), inputs)
