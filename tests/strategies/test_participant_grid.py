"""The grid whose nodes are participants: cutting, packing, checks, deadlines, costs."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

import clients.client_app
import clients.participants
from clients.client_app import app
from clients.participants import SimulatedParticipants
from kdfed.arrays import spec_of
from kdfed.errors import MessageError, RunError
from kdfed.ledger import Ledger
from kdfed.messages import (
    ARRAYS,
    COHORTS,
    CONFIG,
    METRICS,
    Answers,
    Cohorts,
    Hello,
    Train,
    TrainTeacher,
    numbered,
)
from kdfed.metrics import LOCAL_STEPS, NUM_EXAMPLES, TRAIN_LOSS
from kdfed.private.flwr import SAMPLING_SLEEP, error_reply, sample_nodes
from simulations.engines.inprocess import InProcessGrid
from strategies.parcels import Exchange
from strategies.participant_grid import ParticipantGrid
from tests.setups import A_SIMULATION


class Recording(InProcessGrid):
    """Keeps every message that crossed the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def plans(self, message_type: str) -> list[Cohorts]:
        found = [m for m in self.sent if m.metadata.message_type == message_type]
        return [Cohorts.from_record(m.content.config_records[COHORTS]) for m in found]


def test_one_message_a_node_carries_the_shared_arrays_once(tiny, run_arm):
    grid = Recording(app, 2)
    run_arm(tiny(**{"rounds.horizon": 1}), grid=grid)
    sent = [m for m in grid.sent if m.metadata.message_type == Train.type]
    assert len(sent) == 2
    assert [len(m.content.array_records) for m in sent] == [1, 1]
    assert [plan.cohorts for plan in grid.plans(Train.type)] == [((0, 1), (2, 3)), ((4,),)]


@pytest.mark.parametrize("nodes", [1, 3])
def test_cohorts_do_not_depend_on_nodes(tiny, run_arm, nodes):
    grid = Recording(app, nodes)
    run_arm(tiny(**{"rounds.horizon": 1}), grid=grid)
    cohorts = sorted(cohort for plan in grid.plans(Train.type) for cohort in plan.cohorts)
    assert cohorts == [(0, 1), (2, 3), (4,)]


ONE_STEP = {"local.batch-size": 1000, "local.epochs": 1}
"""Everybody makes one step a round: sums are taken without single models."""


@pytest.mark.slow
def test_results_are_the_same_for_any_number_of_nodes_and_any_order_of_replies(tiny, run_arm):
    for experiment, arm in ((tiny(), "cold"), (tiny(), "consolidated"), (tiny(**ONE_STEP), "cold")):
        first = run_arm(experiment, arm, nodes=1)
        for nodes, order in [(1, None), (2, None), (4, None), (4, random.Random(5)), (5, random.Random(6))]:
            again = run_arm(experiment, arm, nodes=nodes, order=order)
            for key, value in first.arrays.to_torch_state_dict().items():
                assert torch.equal(value, again.arrays.to_torch_state_dict()[key])
            assert [_timeless(r) for r in first.records] == [_timeless(r) for r in again.records]


def _timeless(record: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key != "seconds"}


@pytest.mark.parametrize("changes", [{}, ONE_STEP])
def test_a_cohort_mean_is_as_good_as_its_members(tiny, run_arm, changes):
    class LooksAtSingleModels(FedAvg):
        pass

    options = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    experiment = tiny(**changes)
    mean = run_arm(experiment, strategy=FedAvg(**options)).arrays.to_torch_state_dict()
    each = run_arm(experiment, strategy=LooksAtSingleModels(**options)).arrays.to_torch_state_dict()
    for key in mean:
        torch.testing.assert_close(mean[key], each[key], rtol=1e-4, atol=1e-5)


def _break(monkeypatch: pytest.MonkeyPatch, participant: int, how: str) -> None:
    """Make one participant's local training go wrong, in every round."""
    trains, gathers, members = clients.client_app.train_cohort, SimulatedParticipants.gather, []

    def gather(self: Any, chosen: Any, model: Any) -> Any:
        members[:] = chosen
        return gathers(self, chosen, model)

    def train_cohort(*args: Any, **more: Any) -> Any:
        for trained in trains(*args, **more):
            own = [members[place] for place in trained.indices]
            if participant in own:
                if how == "error" or (how == "shape" and len(members) > 1):
                    raise RuntimeError("out of battery")
                first = next(iter(trained.states))
                if how == "shape":
                    trained.states[first] = trained.states[first][:, :1]
                else:
                    value = {"nan": float("nan"), "huge": 1e30, "far": 1e3}[how]
                    trained.states[first][own.index(participant)] = value
            yield trained

    monkeypatch.setattr(SimulatedParticipants, "gather", gather)
    monkeypatch.setattr(clients.client_app, "train_cohort", train_cohort)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("nan", "not finite"),
        ("error", "RuntimeError: out of battery"),
        ("shape", "wrong shape"),
        ("huge", "weights too far from where they started"),
    ],
)
@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_one_bad_participant_is_named_and_costs_only_itself(
    tiny, run_arm, monkeypatch, how, reason, strategy
):
    _break(monkeypatch, 1, how)
    result = run_arm(tiny(**{"server.strategy": strategy}))
    for record in result.records[1:]:
        assert record.answered == 4
        ((absent),) = record.absent
        assert absent.participant == 1
        assert reason in absent.reason
    assert all(bool(value.isfinite().all()) for value in result.arrays.to_torch_state_dict().values())


@pytest.mark.parametrize(
    ("value", "reason", "taken"),
    [(float("nan"), "not finite", 1), (1e8, "weights too far from where they started", 2)],
)
def test_a_participant_with_bad_data_costs_only_itself_where_sums_are_taken(
    tiny, run_arm, monkeypatch, value, reason, taken
):
    gathers, sums = SimulatedParticipants.gather, []

    def gather(self: Any, chosen: Any, model: Any) -> Any:
        examples, sizes = gathers(self, chosen, model)
        if 1 in chosen:
            examples.inputs[sum(sizes[: chosen.index(1)])] = value
        return examples, sizes

    def train_cohort(*args: Any, **more: Any) -> Any:
        for trained in trains(*args, **more):
            sums.extend([trained.indices] if trained.sums else [])
            yield trained

    trains = clients.client_app.train_cohort
    experiment = tiny(**ONE_STEP)
    monkeypatch.setattr(SimulatedParticipants, "gather", gather)
    monkeypatch.setattr(clients.client_app, "train_cohort", train_cohort)
    result = run_arm(experiment)
    # Those of participants 2 and 3 in every round; sums that are only too large are taken, and then refused.
    assert sums == [[0, 1]] * taken * experiment.arm("cold").rounds.horizon
    for record in result.records[1:]:
        assert record.answered == 4
        ((absent),) = record.absent
        assert absent.participant == 1
        assert reason in absent.reason


@pytest.mark.parametrize("how", ["nan", "huge", "far"])
def test_a_bad_participant_leaves_the_mean_of_the_others(tiny, run_arm, monkeypatch, how):
    """Five participants, one of them broken, equal the four others alone."""
    experiment = tiny(**{"rounds.horizon": 1, "server.cohort-size": 5})
    _break(monkeypatch, 4, how)
    four = run_arm(experiment).arrays.to_torch_state_dict()
    monkeypatch.undo()
    monkeypatch.setattr("strategies.arm.sample_participants", lambda *a: [0, 1, 2, 3])
    alone = run_arm(experiment).arrays.to_torch_state_dict()
    for key in four:
        assert torch.equal(four[key], alone[key])


def test_below_the_minimum_the_run_stops_and_what_was_recorded_stays(tiny, run_arm, monkeypatch):
    _break(monkeypatch, 0, "error")
    records: list[Any] = []
    with pytest.raises(
        RunError, match=r"round 1: expected at least 5 .*, but 4 answered.*participant 0.*battery"
    ):
        run_arm(tiny(**{"server.minimum": 5}), on_record=records.append)
    assert [record.round for record in records] == [0]


class Withholding(InProcessGrid):
    """Keeps one node's reply back until it is released."""

    def __init__(self, *args: Any, node: int, message_type: str) -> None:
        super().__init__(*args)
        self.node, self.message_type, self.held = node, message_type, True

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        def is_held(message_id: str) -> bool:
            message = self._pending.get(message_id)
            return (
                message is not None
                and self.held
                and message.metadata.dst_node_id == self.node
                and message.metadata.message_type == self.message_type
            )

        return super().pull_messages([i for i in message_ids if not is_held(i)])


def test_a_reply_after_the_deadline_is_named_late_and_never_aggregated(tiny, run_arm):
    stops = {"rounds.stop-at-target": True, "targets": [1.0]}
    experiment = tiny(only="cold", **{"server.deadlines.train": 0.5, "rounds.horizon": 3, **stops})
    grid = Withholding(app, 3, node=1002, message_type=Train.type)

    def release(record: Any) -> None:
        if record.round == 2:
            grid.held = False

    # A target makes the runner evaluate a round before it starts the next, so that round 3 sees the release.
    records = run_arm(experiment, grid=grid, targets=(1.0,), on_record=release).records
    assert [(a.participant, a.reason) for a in records[1].absent] == [
        (2, "no reply within 0.5 seconds"),
        (3, "no reply within 0.5 seconds"),
    ]
    assert records[1].answered == 3
    assert [(a.participant, a.reason) for a in records[2].absent] == [
        (2, "busy: has not answered round 1 yet"),
        (3, "busy: has not answered round 1 yet"),
    ]
    assert [(a.participant, a.reason) for a in records[3].absent] == [
        (2, "late: reply to round 1, not used"),
        (3, "late: reply to round 1, not used"),
    ]
    assert records[3].answered == 5
    uploads = [record.participant_uploads for record in records]
    assert uploads == [0, 3, 6, 13], "a late upload is counted in the round in which it arrives"


class Deaf(InProcessGrid):
    """One node's work always ends in an error reply."""

    def _handle(self, message: Message) -> Message:
        if message.metadata.dst_node_id == 1001 and message.metadata.message_type == Train.type:
            message.content.config_records.pop(COHORTS)
        return super()._handle(message)


def test_an_error_reply_of_a_node_costs_its_participants_only(tiny, run_arm):
    records = run_arm(tiny(**{"rounds.horizon": 1}), grid=Deaf(app, 2)).records
    assert [absent.participant for absent in records[1].absent] == [0, 1, 2, 3]
    assert records[1].answered == 1


class Tampering(InProcessGrid):
    """Changes one participant's reply; cohorts must hold one participant each."""

    def __init__(self, *args: Any, tamper: Any, message_type: str = Train.type) -> None:
        super().__init__(*args)
        self.tamper, self.message_type = tamper, message_type

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == self.message_type:
            plan = Cohorts.from_record(message.content.config_records[COHORTS])
            if 3 in plan.participants:
                count = len(plan.participants)
                self.tamper(reply.content, plan.participants.index(3), count)
        return reply


def _corrupt_bytes(content: Any, index: int, count: int) -> None:
    record = content[numbered("arrays", index, count)]
    record[next(iter(record))].data = b"nonsense"


def _extra_metric(content: Any, index: int, count: int) -> None:
    content[numbered("metrics", index, count)]["extra"] = 1.0


def _endless_loss(content: Any, index: int, count: int) -> None:
    content[numbered("metrics", index, count)]["train-loss"] = float("inf")


def _other_shape(content: Any, index: int, count: int) -> None:
    record = content[numbered("arrays", index, count)]
    key = next(iter(record))
    record[key] = Array(record[key].numpy()[:1])


def _words_as_loss(content: Any, index: int, count: int) -> None:
    content[numbered("metrics", index, count)]["train-loss"] = [0.5]


@pytest.mark.parametrize(
    ("strategy", "tamper", "reason"),
    [
        ("fedavg", _corrupt_bytes, "arrays that cannot be read"),
        ("krum", _corrupt_bytes, "arrays that cannot be read"),
        ("fedavg", _other_shape, "wrong shape"),
        ("krum", _other_shape, "wrong shape"),
        ("fedavg", _endless_loss, "not finite: train-loss"),
        ("krum", _endless_loss, "not finite: train-loss"),
        ("fedavg", _words_as_loss, "expected a number as train-loss"),
        ("krum", _extra_metric, "other metrics than most"),
    ],
)
def test_whatever_a_reply_holds_it_costs_only_its_sender(tiny, run_arm, tamper, reason, strategy):
    experiment = tiny(**{"server.strategy": strategy, "server.cohort-size": 1, "rounds.horizon": 1})
    record = run_arm(experiment, grid=Tampering(app, 2, tamper=tamper)).records[1]
    assert record.answered == 4
    ((absent),) = record.absent
    assert absent.participant == 3
    assert reason in absent.reason


def test_a_metric_that_only_one_cohort_sends_is_its_own_in_the_mean(tiny, run_arm):
    experiment = tiny(**{"server.cohort-size": 1, "rounds.horizon": 1})
    result = run_arm(experiment, grid=Tampering(app, 2, tamper=_extra_metric))
    assert result.records[1].answered == 5
    assert result.train_metrics_clientapp[1]["extra"] == 1.0


def test_a_reply_that_cannot_be_read_costs_its_participants(tiny, run_arm):
    def unreadable(content: Any, index: int, count: int) -> None:
        content.config_records.pop(COHORTS)

    record = run_arm(tiny(**{"rounds.horizon": 1}), grid=Tampering(app, 3, tamper=unreadable)).records[1]
    assert [absent.participant for absent in record.absent] == [2, 3]
    assert record.answered == 3


def test_a_teacher_that_overflows_is_left_out_of_the_ensemble(tiny, run_arm):
    def huge(content: Any, index: int, count: int) -> None:
        record = content[numbered("arrays", index, count)]
        for key, array in record.items():
            record[key] = Array(array.numpy() * 0 + 3e38)

    grid = Tampering(app, 2, tamper=huge, message_type=TrainTeacher.type)
    unbounded = {"rounds.horizon": 0, "server.update-bound": 1e60}
    start = run_arm(tiny(**unbounded), "consolidated", grid=grid).records[0]
    assert start.answered == 4
    assert [(a.participant, a.reason) for a in start.absent] == [(3, "its teacher's logits are not finite")]


def test_models_of_a_round_that_overflow_together_are_named_with_advice_that_fits(tiny, run_arm):
    def huge(content: Any, index: int, count: int) -> None:
        record = content[numbered("arrays", index, count)]
        for key, array in record.items():
            record[key] = Array(array.numpy() * 0 + 1e38)

    experiment = tiny(
        **{"server": {"strategy": "feddf", "update-bound": 1e60}, "rounds.horizon": 1, "local.lr": 1e-3}
    )
    match = r"round 1: expected finite logits .* from participant 3; lower local\.lr or server\.update-bound"
    with pytest.raises(RunError, match=match):
        run_arm(experiment, grid=Tampering(app, 2, tamper=huge))


def test_everybody_diverges_and_is_named(tiny, run_arm):
    with pytest.raises(RunError, match=r"round 1: .* 0 answered.*participant 0: weights too far"):
        run_arm(tiny(**{"local.lr": 1000.0}))


@pytest.mark.parametrize("bound", [100.0, 0.5])
@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_large_hidden_variances_of_batch_norm_are_no_lie(tiny, run_arm, monkeypatch, strategy, bound):
    """Inputs of the first layer a thousand times too large: its running variance is far above that of others.

    The buffers then lie further from where they started than weights may.
    """
    gathers = SimulatedParticipants.gather

    def gather(self: Any, chosen: Any, model: Any) -> Any:
        examples, sizes = gathers(self, chosen, model)
        return type(examples)(examples.inputs * 1000, examples.labels), sizes

    monkeypatch.setattr(SimulatedParticipants, "gather", gather)
    experiment = tiny(
        **{
            "server": {"strategy": strategy, "update-bound": bound},
            "local.lr": 1e-3,
            "model": {"name": "cnn", "options": {"width": 4, "norm": "batch"}},
            "rounds.horizon": 2,
        }
    )
    result = run_arm(experiment)
    assert [record.absent for record in result.records] == [(), (), ()]
    state = result.arrays.to_torch_state_dict()
    buffers = [v for k, v in state.items() if "running" in k]
    assert torch.cat(buffers).norm() > 100 * torch.ones(sum(map(len, buffers)) // 2).norm()


def test_teachers_with_weights_of_their_own_may_lie_further_apart_than_a_tight_bound(tiny, run_arm):
    tight = {"teachers.init": "own", "server.update-bound": 0.5, "rounds.horizon": 0}
    assert run_arm(tiny(**tight), "consolidated").records[0].answered == 5


def test_a_student_that_diverged_stops_the_run(tiny, run_arm):
    with pytest.raises(RunError, match=r"expected a finite model, got .*lower consolidation\.lr"):
        run_arm(tiny(**{"consolidation.lr": 1000.0, "consolidation.weight-decay": 1000.0}), "consolidated")


def test_nodes_with_different_data_are_noticed(tiny, run_arm):
    class TwoWorlds(InProcessGrid):
        def _handle(self, message: Message) -> Message:
            reply = super()._handle(message)
            if message.metadata.message_type == Hello.type and message.metadata.dst_node_id == 1002:
                reply.content[CONFIG]["partition-sha256"] = digest
            return reply

    digest: Any = "abc"
    with pytest.raises(
        RunError, match=r"expected every node to hold the same partition, got .*5, 220, 'abc'"
    ):
        run_arm(tiny(), grid=TwoWorlds(app, 2))
    digest = 7
    with pytest.raises(RunError, match=r"expected every node to tell the number of .*got 5, 220, .*, 7 and"):
        run_arm(tiny(), grid=TwoWorlds(app, 2))


def test_a_node_with_other_versions_is_refused(tiny, run_arm, monkeypatch):
    monkeypatch.setattr("clients.participants.versions", lambda: {"kdfed": "0.0.1"})
    with pytest.raises(RunError, match=r"expected the server's versions .* on every node, got .*0\.0\.1"):
        run_arm(tiny())


def test_an_evaluation_trip_goes_only_to_those_who_are_not_busy(tiny, run_arm):
    grid = Withholding(app, 3, node=1002, message_type=Train.type)
    experiment = tiny(**{"server.deadlines.train": 0.3, "rounds.horizon": 1})
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    result = run_arm(experiment, grid=grid, strategy=strategy)
    assert result.records[1].answered == 3
    assert 0 <= result.evaluate_metrics_clientapp[1]["eval-acc"] <= 1


@pytest.mark.parametrize("cohort_size", [1, 2, 5])
def test_the_ledger_counts_what_a_device_would_exchange(tiny, run_arm, cohort_size):
    """Same bytes, whatever a network message carries: 3 rounds x 5 participants x one model each way."""
    experiment = tiny(**{"server.cohort-size": cohort_size})
    result = run_arm(experiment)
    model_bytes = sum(len(array.data) + len(key) for key, array in result.arrays.items())
    last = result.records[-1]
    assert last.participant_uploads == 15
    assert last.exchanges == 3
    hello = result.records[0]
    assert hello.participant_uploads == hello.exchanges == 0
    assert hello.bytes_up > 0
    up = (last.bytes_up - hello.bytes_up) / 15 - model_bytes
    down = (last.bytes_down - hello.bytes_down) / 15 - model_bytes
    assert 0 < up < 300
    assert 0 < down < 1000
    reference = run_arm(tiny(**{"server.cohort-size": 3}), nodes=3).records[-1]
    assert (last.bytes_up, last.bytes_down) == (reference.bytes_up, reference.bytes_down)


def test_teachers_are_counted_as_one_exchange_and_an_upload_each(tiny, run_arm):
    start = run_arm(tiny(), "consolidated").records[0]
    assert (start.exchanges, start.participant_uploads, start.answered) == (1, 5, 5)
    fewer = run_arm(tiny(**{"teachers.count": 2}), "consolidated").records[0]
    assert (fewer.exchanges, fewer.participant_uploads, fewer.answered) == (1, 2, 2)
    assert fewer.local_steps < start.local_steps


def test_fewer_teachers_than_the_minimum_of_a_round_are_enough(tiny, run_arm):
    experiment = tiny(**{"teachers.count": 2, "server.minimum": 4, "rounds.horizon": 1})
    assert [record.answered for record in run_arm(experiment, "consolidated").records] == [2, 5]


def test_a_message_for_somebody_else_is_refused(tiny, run_arm):
    class Confused(FedAvg):
        def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
            messages = list(super().configure_train(*args, **kwargs))
            messages[0].metadata.dst_node_id = 77
            return messages

    strategy = Confused(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    with pytest.raises(MessageError, match="expected a participant of this round"):
        run_arm(tiny(), strategy=strategy)


# ----------------------------------------------------------------------------- many participants


def _instant_app() -> ClientApp:
    """Sends back what it was sent, one result a cohort, without training."""
    instant = ClientApp()

    @instant.train()
    def train(message: Message, context: Any) -> Message:
        plan = Cohorts.from_record(message.content.config_records[COHORTS])
        count = len(plan.cohorts)
        content = RecordDict()
        rows = []
        for index, cohort in enumerate(plan.cohorts):
            content[numbered(ARRAYS, index, count)] = message.content[ARRAYS]
            content[numbered(METRICS, index, count)] = MetricRecord(
                {NUM_EXAMPLES: 2 * len(cohort), TRAIN_LOSS: 1.0, LOCAL_STEPS: len(cohort)}
            )
            rows += [(participant, index, 1, "") for participant in cohort]
        content[COHORTS] = Answers(*zip(*rows, strict=True)).to_record()
        return Message(content, reply_to=message)

    return instant


def _round(grid: ParticipantGrid, participants: int, arrays: ArrayRecord) -> list[Message]:
    spec = spec_of(arrays.to_torch_state_dict())
    grid.begin(Exchange(phase="rounds", round=1, spec_of=lambda participant: spec), range(participants))
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"seed": 0})})
    messages = [Message(content, participant, Train.type) for participant in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, timeout=60))


def _calls(run: Any) -> int:
    """Count the Python functions that are called."""
    count = 0

    def step(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(step)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def test_the_servers_own_work_grows_with_participants_by_a_few_calls_each():
    """Twice the participants are twice the work; a loop within a loop would be four times."""
    arrays = ArrayRecord({f"w{i}": torch.randn(20, 20) for i in range(8)})

    def calls(participants: int) -> int:
        network = InProcessGrid(_instant_app(), 2)
        grid = ParticipantGrid(network, cohort_size=8, ledger=Ledger(), reply="mean", simulation=A_SIMULATION)
        _round(grid, participants, arrays)
        return _calls(lambda: _round(grid, participants, arrays))

    small, large = calls(400), calls(800)
    assert (large - small) / 400 < 150
    assert large < 2.2 * small


@pytest.mark.parametrize("participants", [500, 2000])
def test_a_round_of_many_participants_is_one_mean(participants):
    arrays = ArrayRecord({f"w{i}": torch.randn(20, 20) for i in range(8)})
    network = InProcessGrid(_instant_app(), 2)
    ledger = Ledger()
    grid = ParticipantGrid(network, cohort_size=8, ledger=ledger, reply="mean", simulation=A_SIMULATION)
    (reply,) = _round(grid, participants, arrays)
    assert reply.content[METRICS] == {
        NUM_EXAMPLES: 2 * participants,
        LOCAL_STEPS: participants,
        TRAIN_LOSS: 1.0,
    }
    assert ledger.totals().participant_uploads == participants
    for key, array in reply.content[ARRAYS].items():
        np.testing.assert_array_equal(array.numpy(), arrays[key].numpy())


def test_the_first_result_is_summed_before_the_last_arrives_and_then_dropped():
    """Three nodes answer in the order 2, 0, 1: node 2's result waits for its turn, node 0's does not."""
    arrays = ArrayRecord({"w": torch.ones(4)})
    network = OneByOne(_instant_app(), 3, turns=[1003, 1001, 1002])
    grid = ParticipantGrid(network, cohort_size=2, ledger=Ledger(), reply="mean", simulation=A_SIMULATION)
    network.watch = lambda: [
        (len(total.waiting), [len(parcel.results) for parcel in total.waiting])
        for total in list(grid._inbox._totals.values())[:1]
    ]
    (reply,) = _round(grid, 6, arrays)
    assert network.seen == [[(3, [0, 0, 0])], [(3, [0, 0, 1])], [(2, [0, 1])]]
    assert reply.content[METRICS][NUM_EXAMPLES] == 12


class OneByOne(InProcessGrid):
    """Answers with one node's reply a look, in a given order."""

    def __init__(self, *args: Any, turns: list[int]) -> None:
        super().__init__(*args)
        self.turns, self.seen = turns, []
        self.watch: Any = None

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.seen.append(self.watch())
        node = self.turns.pop(0)
        return super().pull_messages(
            [i for i in message_ids if self._pending[i].metadata.dst_node_id == node]
        )


def test_work_for_meanwhile_runs_between_sending_and_looking_for_replies():
    order: list[str] = []

    class Ordered(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            order.append("push")
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            order.append("pull")
            return super().pull_messages(message_ids)

    arrays = ArrayRecord({"w": torch.ones(4)})
    network = Ordered(_instant_app(), 2)
    grid = ParticipantGrid(network, cohort_size=2, ledger=Ledger(), reply="mean", simulation=A_SIMULATION)
    spec = {"w": ((4,), "float32")}
    grid.begin(Exchange(phase="rounds", round=1, spec_of=lambda participant: spec), [0, 1, 2])
    content = RecordDict({ARRAYS: arrays})
    messages = [Message(content, participant, Train.type) for participant in range(3)]
    grid.send_and_receive(messages, timeout=0, meanwhile=lambda: order.append("meanwhile"))
    assert order == ["push", "push", "meanwhile", "pull"]
    assert grid.report.answered == [0, 1, 2], "however long it took, there is one look"


# ----------------------------------------------------------------------------- what is told, and to whom


TYPO = """
import warnings
import torch

class Net(torch.nn.Module):
    def __init__(self, input_shape, classes, *, broken=False):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
        self.broken = broken

    def forward(self, x):
        if self.training and torch.is_grad_enabled() and len(x) > 3:  # not when it is tried
            warnings.warn("this model is old", UserWarning)
            if self.broken:
                x = foo
        return self.layers(x)
"""


@pytest.fixture
def users_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A user's model that warns while it is trained."""
    (tmp_path / "users_typo_net.py").write_text(TYPO)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"name": "users_typo_net:Net", "options": {}}


WHERE = "NameError: name 'foo' is not defined (users_typo_net.py, line 15)"


@pytest.mark.filterwarnings("always:this model is old")
def test_a_typo_in_a_users_model_is_told_with_its_line_and_the_traceback_is_logged_once(
    tiny, run_arm, users_net, caplog
):
    records: list[Any] = []
    experiment = tiny(model={**users_net, "options": {"broken": True}}, **{"server.minimum": 1})
    with pytest.raises(RunError) as raised:
        run_arm(experiment, on_record=records.append)
    assert f"participant 0: {WHERE};" in str(raised.value)
    assert "Traceback" not in str(raised.value)
    tracebacks = [text for text in caplog.messages if "Traceback" in text]
    assert len(tracebacks) == 1, "all five failed alike"
    assert tracebacks[0].startswith(f"rounds 1: without participant 0: {WHERE}\nTraceback")
    assert "    x = foo\n" in tracebacks[0]


@pytest.mark.filterwarnings("always:this model is old")
def test_participants_warnings_reach_the_servers_log_once_and_no_bill(tiny, run_arm, users_net, caplog):
    with_warnings = run_arm(tiny(model=users_net)).records
    told = [r for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("kdfed.")]
    assert [record.getMessage() for record in told] == [
        "a participant warns: UserWarning: this model is old (users_typo_net.py, line 13)"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without = run_arm(tiny(model=users_net)).records
    assert [_timeless(record) for record in with_warnings] == [_timeless(record) for record in without]


RAY_DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tpid: " + "7 " * 1500
)


class Dying(InProcessGrid):
    """One node's work always ends in what Ray says of a dead worker, another process id each time."""

    died = 0

    def _handle(self, message: Message) -> Message:
        if message.metadata.dst_node_id == 1001 and message.metadata.message_type == Train.type:
            self.died += 1
            return error_reply(message, f"{RAY_DIED} {self.died}")
        return super()._handle(message)


def test_a_long_reason_is_one_line_in_every_record_and_whole_in_the_log_once(tiny, run_arm, caplog):
    records = run_arm(tiny(), grid=Dying(app, 2)).records
    for record in records[1:]:
        assert [absent.reason for absent in record.absent] == [
            "error reply: The actor died unexpectedly before finishing this task."
        ] * 4
        assert len(record.to_json()) < 1_000
    assert [len(text) > 3_000 for text in caplog.messages if "actor died" in text] == [True]


def test_why_nobody_answers_hello_is_one_line_too(tiny, run_arm, monkeypatch, caplog):
    def prepare(*args: Any) -> Any:
        raise OSError("no disk\n" + "x" * 10_000)

    monkeypatch.setattr("clients.participants.prepare", prepare)
    clients.participants.simulated.cache_clear()
    clients.participants._data_of.cache_clear()
    with pytest.raises(RunError, match="expected an answer to hello from a node, got none: OSError: no disk"):
        run_arm(tiny())
    assert any("Traceback" in text and "x" * 3_000 in text for text in caplog.messages)


def test_a_strategy_that_waits_for_more_than_there_are_is_told_so(tiny, run_arm, monkeypatch):
    """Flower's ``sample_nodes`` asks for nodes until there are enough, and here there never are."""
    monkeypatch.setattr("strategies.participant_grid._ASKS", (3, 0.0))
    monkeypatch.setattr(SAMPLING_SLEEP, lambda seconds: None)

    class Own(Strategy):
        """It is no FedAvg, and nobody can see what it waits for."""

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            sample_nodes(grid, 6, 6)
            raise AssertionError("there are only 5")

        def aggregate_train(self, server_round: int, replies: Any) -> Any: ...
        def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any: ...
        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any: ...
        def summary(self) -> None: ...

    with pytest.raises(RunError, match=r"waits for more participants than the 5 that can be reached"):
        run_arm(tiny(), strategy=Own())
