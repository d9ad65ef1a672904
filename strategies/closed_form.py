"""One exchange for a head in closed form: participants send sums over features, the server solves.

The messages are :class:`kdfed.messages.QueryStatistics` and :class:`kdfed.messages.Update`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property, reduce

from flwr.app import Message

from kdfed.closed_form import ClosedFormSettings, Linear, Sums
from kdfed.closed_form.features import HeadOf, head_of
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.messages import QueryStatistics, Update
from kdfed.models import State, load_state
from kdfed.reading import shape_read
from kdfed.records import Absent
from kdfed.seeding import derive
from strategies.arm_config import ArmConfig
from strategies.parcels import Exchange
from strategies.participant_grid import ParticipantGrid


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

    @cached_property
    def _place(self) -> HeadOf:
        model = self.config.build(self.arm.model, "closed-form")
        return head_of(model, shape_read(self.arm.model, self.config.data.input_shape))

    def ask(self, state: State, server_round: int, participants: Sequence[int]) -> Sums | None:
        """Have participants send statistics of a model's features; the grid's report says who did.

        Returns
        -------
        Sums or None
            Over the examples of all who answered; None where nobody did.
        """
        head, place, data = self.settings.head, self._place, self.config.data
        spec = head.spec(place.dims, data.classes, data.task)
        exchange = Exchange(
            phase="statistics",
            round=server_round,
            spec_of=lambda participant: spec,
            steps_of=lambda examples: 0,
        )
        self.grid.begin(exchange, participants)
        content = QueryStatistics(
            seed=self.config.seed,
            server_round=server_round,
            model=self.arm.model,
            arrays=place.without(state),
            head=head,
            projection_seed=self._seed,
        ).to_record()
        deadline = self.arm.server.deadlines.teachers
        messages = [
            Message(content, p, QueryStatistics.type, ttl=deadline, group_id="statistics")
            for p in self.grid.get_node_ids()
        ]
        replies = self.grid.send_and_receive(messages, timeout=deadline)
        found = [sums for sums in map(self._checked, replies) if sums is not None]
        return reduce(operator.add, found) if found else None

    def _checked(self, reply: Message) -> Sums | None:
        """Return a participant's sums; None where they cannot be sums over its examples."""
        head, data, update = self.settings.head, self.config.data, Update.from_record(reply.content)
        arrays = {key: values.numpy() for key, values in update.arrays.items()}
        problem = head.problem_with(arrays, self._place.dims, data.classes, data.task, update.num_examples)
        if problem is None:
            return head.sums(arrays)
        participant, report = reply.metadata.src_node_id, self.grid.report
        report.answered.remove(participant)
        report.absent.append(Absent(participant, problem))
        report.absent.sort(key=lambda absent: absent.participant)
        return None

    def solve(self, state: State, sums: Sums) -> State:
        """Return a model's weights with the head that sums over its features give.

        Raises
        ------
        KdfedError
            If the sums give no finite head.
        """
        place, head, validation = self._place, self.settings.head, None
        if head.server_labels():
            validation = self._validation(state)
        linear: Linear = head.solve(sums, place.dims, self._seed, validation)
        if not (bool(linear.weight_CD.isfinite().all()) and bool(linear.bias_C.isfinite().all())):
            raise KdfedError(
                f"closed-form: expected a finite head {head.head!r}, got none; raise its penalty"
            )
        return place.replaced(state, linear.weight_CD, linear.bias_C)

    def _validation(self, state: State) -> Examples:
        model = self.config.build(self.arm.model, "closed-form")
        load_state(model, state)
        held = self.config.data.validation
        features = self._place.features(model.to(self.config.setup.device), held.inputs)
        return Examples(features, held.labels.cpu())
