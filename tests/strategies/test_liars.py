"""Replies that lie: only the liar is left out and named; no model and no ledger sees the lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian, Strategy

from kdfed.config import Arm
from kdfed.data import Examples
from kdfed.distill import VanillaConsolidation
from kdfed.errors import RunError
from kdfed.messages import (
    ARRAYS,
    COHORTS,
    CONFIG,
    METRICS,
    SIMULATION,
    Answers,
    Cohorts,
    Evaluate,
    Hello,
    Simulation,
    Train,
    TrainTeacher,
    participant_of,
    versions,
)
from kdfed.metrics import (
    EVAL_ACCURACY,
    EVAL_LOSS,
    LABEL_COUNTS,
    LOCAL_STEPS,
    NUM_EXAMPLES,
    SERVER_STEPS,
    TRAIN_LOSS,
)
from kdfed.models import build_model, state_of
from kdfed.partitions import UniformPartition
from kdfed.private.flwr import error_reply
from kdfed.seeding import sample_participants
from kdfed.settings import LabelCountSettings, ModelSettings, TeacherSettings
from kdfed.task import CLASSIFICATION
from simulations.engines.inprocess import InProcessGrid
from strategies.arm_config import ArmConfig, ServerData
from strategies.fedavg import FedAvgServer
from strategies.pre_consolidation import PreConsolidation
from strategies.result import ArmResult
from tests.setups import A_SIMULATION

MODEL = ModelSettings(name="mlp", options={"hidden": (4,)})
PEOPLE, LIAR = 5, 3
HELD = [10 + participant for participant in range(PEOPLE)]


def _participants() -> ClientApp:
    """Return participants that move every weight a little, in a simulation or as devices."""
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Any) -> Message:
        people = {"participants": PEOPLE, NUM_EXAMPLES: sum(HELD), "held": HELD}
        config = {"versions": json.dumps(versions()), "partition-sha256": "same"}
        return Message(
            RecordDict({METRICS: MetricRecord(people), CONFIG: ConfigRecord(config)}),
            reply_to=message,
        )

    def work(message: Message, context: Any) -> Message:
        participant = _asked(message)
        content = RecordDict()
        metrics: dict[str, Any] = {NUM_EXAMPLES: HELD[participant]}
        steps = 0
        if message.metadata.message_type == Evaluate.type:
            metrics |= {EVAL_LOSS: 1.0, EVAL_ACCURACY: 0.1 * participant}
        else:
            state = message.content[ARRAYS].to_torch_state_dict()
            moved = {key: value + 0.01 * (participant + 1) for key, value in state.items()}
            content[ARRAYS] = ArrayRecord(moved)
            steps = 1
            metrics |= {TRAIN_LOSS: 1.0 + participant, LOCAL_STEPS: steps}
            if "label-counts" in str(message.content[CONFIG].get("teachers")) and COUNTED:
                metrics[LABEL_COUNTS] = [10.0, float(participant)]
        content[METRICS] = MetricRecord(metrics)
        if SIMULATION in message.content:
            answers = Answers((participant,), (0,), (steps,), ("",))
            content[COHORTS] = ConfigRecord(answers.to_record())
        return Message(content, reply_to=message)

    app.train()(work)
    app.train("teacher")(work)
    app.evaluate()(work)
    return app


def _asked(message: Message) -> int:
    """Return the one participant that a message is for, of a simulation or a device."""
    if COHORTS not in message.content:
        return participant_of(message.metadata.group_id)
    (participant,) = Cohorts.from_record(message.content[COHORTS]).participants
    return participant


COUNTED = True
Lie = Callable[[RecordDict], None]


class Lying(InProcessGrid):
    """One participant's replies are changed, or, without a lie, lost."""

    def __init__(self, lie: Lie | None, message_type: str = Train.type, liar: int = LIAR) -> None:
        super().__init__(_participants(), PEOPLE)
        self.lie, self.message_type, self.liar = lie, message_type, liar

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type != self.message_type:
            return reply
        if self.message_type != Hello.type and _asked(message) != self.liar:
            return reply
        if self.lie is None:
            return error_reply(message, "gone")
        self.lie(reply.content)
        return reply


KINDS: dict[str, tuple[Callable[..., Strategy], Simulation | None]] = {
    "mean": (FedAvg, A_SIMULATION),
    "each": (FedMedian, A_SIMULATION),
    "devices": (FedAvg, None),
}


def _run(
    kind: str, grid: InProcessGrid, *, strategy: Strategy | None = None, rounds: int = 1, **arm: Any
) -> ArmResult:
    made, simulation = KINDS[kind]
    strategy = strategy or made(
        fraction_evaluate=0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1
    )
    server = FedAvgServer(cohort_size=1, **arm.pop("server", {}))
    settings = Arm(
        device="cpu",
        model=MODEL,
        server=server,
        partition=UniformPartition(kind="uniform", participants=PEOPLE),
        consolidation=VanillaConsolidation(epochs=1, ensemble=arm.pop("ensemble", "mean-logits")),
        **arm,
    )
    generator = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(20, 2, generator=generator), torch.arange(20) % 2)
    data = ServerData(examples, examples, examples.inputs.numpy(), 2, CLASSIFICATION)
    config = ArmConfig(arm=settings, data=data, simulation=simulation)
    start = ArrayRecord(state_of(build_model(MODEL, (2,), 2, 1)))
    return PreConsolidation(strategy, config).start(grid, start, rounds)


def _says(key: str, value: Any) -> Lie:
    def lie(content: RecordDict) -> None:
        content[METRICS][key] = value
        if key == LOCAL_STEPS and COHORTS in content:
            content[COHORTS][LOCAL_STEPS] = [value]

    return lie


def _weights(change: Callable[[np.ndarray], Any]) -> Lie:
    def lie(content: RecordDict) -> None:
        for key, array in content[ARRAYS].items():
            content[ARRAYS][key] = Array(np.asarray(change(array.numpy()), np.float32))

    return lie


def _padded(content: RecordDict) -> None:
    for array in content[ARRAYS].values():
        array.data += bytes(100_000)


def _many_records(content: RecordDict) -> None:
    for index in range(200):
        content[f"more-{index}"] = MetricRecord({"x": 1})


def _answers(**changes: Any) -> Lie:
    def lie(content: RecordDict) -> None:
        content[COHORTS] = ConfigRecord({**content[COHORTS], **changes})

    return lie


LIES: dict[str, tuple[Lie, str]] = {
    "a billion examples": (_says(NUM_EXAMPLES, 10**12), "num-examples, got 1000000000000"),
    "examples beyond float64": (_says(NUM_EXAMPLES, 1.7e308), "a whole number, got 1.7e+308"),
    "half an example": (_says(NUM_EXAMPLES, 0.5), "a whole number, got 0.5"),
    "less than nothing": (_says(NUM_EXAMPLES, -4), "above 0"),
    "steps below zero": (_says(LOCAL_STEPS, -5), "at least 0, got -5"),
    "all steps there are": (
        _says(LOCAL_STEPS, 2**63 - 1),
        "which the settings allow, got 9223372036854775807",
    ),
    "a few steps more": (_says(LOCAL_STEPS, 3), "expected at most 2 local-steps"),
    "a loss beyond measure": (_says(TRAIN_LOSS, 1e300), "expected train-loss at most 1e+30 in size"),
    "a loss that is none": (_says(TRAIN_LOSS, float("nan")), "not finite: train-loss"),
    "endless metrics": (_says("more", [0.0] * 100_001), "expected at most 100000 numbers"),
    "no number at all": (_says(TRAIN_LOSS, []), "expected a number as train-loss, got []"),
    "two losses": (_says(TRAIN_LOSS, [0.1, 0.2]), "expected a number as train-loss"),
    "what only the server does": (_says(SERVER_STEPS, 10**15), "expected no server-steps"),
    "a name without end": (_says("x" * 1000, 1.0), "at most 200 characters, got 1000"),
    "bytes behind the numbers": (_padded, "expected 32 bytes of float32"),
    "endless records": (_many_records, "expected at most 102 records"),
    "huge weights": (_weights(lambda w: w * 0 + 1e30), "weights too far from where they started"),
    "large weights": (_weights(lambda w: w * 1000 + 100), "weights too far from where they started"),
    "weights that overflow": (_weights(lambda w: w * 0 + 3e38), "weights too far from where they started"),
}
TOLD: dict[str, tuple[Lie, str]] = {  # what only a simulation's node can say
    "one more than at hello": (
        _says(NUM_EXAMPLES, HELD[LIAR] + 1),
        "expected at most 13 as num-examples",
    ),
    "a result far away": (_answers(results=[2**31]), "numbered from 0"),
    "somebody else": (_answers(participants=[0]), "expected answers of 1 participants"),
    "somebody twice": (
        _answers(participants=[3, 3], results=[0, 0], reasons=["", ""], **{LOCAL_STEPS: [1, 1]}),
        "expected answers of 1 participants",
    ),
    "other steps than told": (
        _answers(**{LOCAL_STEPS: [2]}),
        "the same local-steps in metrics and answers",
    ),
    "half a step": (_answers(**{LOCAL_STEPS: [0.5]}), "expected int in the list local-steps"),
    "no reason": (_answers(results=[-1], reasons=[""]), "no reason was given"),
    "an endless reason": (_answers(results=[-1], reasons=["x\n" * 10**6]), "x"),
    "half a character": (_answers(results=[-1], reasons=["out \ud800 of\nreach"]), "out of reach"),
}


def _costs(result: ArmResult) -> tuple[int, ...]:
    last = result.records[-1]
    return last.participant_uploads, last.bytes_up, last.bytes_down, last.local_steps


def _same(one: ArmResult, other: ArmResult) -> bool:
    mine, theirs = (result.arrays.to_torch_state_dict() for result in (one, other))
    return all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.fixture(scope="module")
def without() -> dict[str, ArmResult]:
    """Return a run of each kind in which the liar's reply is lost."""
    torch.set_num_threads(1)
    return {kind: _run(kind, Lying(None)) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "lie"), [(k, n) for k in KINDS for n in LIES] + [(k, n) for k in ("mean", "each") for n in TOLD]
)
def test_a_liar_alone_is_left_out_and_the_run_is_the_one_without_it(without, kind, lie):
    change, reason = (LIES | TOLD)[lie]
    result = _run(kind, Lying(change))
    ((absent),) = result.records[1].absent
    assert (absent.participant, result.records[1].answered) == (LIAR, PEOPLE - 1)
    assert reason in absent.reason
    assert len(absent.reason) < 600
    assert absent.reason.isprintable()
    assert _same(result, without[kind])
    assert _costs(result) == _costs(without[kind])


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1e30, None])
def test_a_weight_of_ones_own_that_cannot_be_costs_only_who_says_it(weight):
    class Grid(Lying):
        def _handle(self, message: Message) -> Message:
            reply = super()._handle(message)
            if message.metadata.message_type == Train.type:
                reply.content[METRICS].setdefault("trust", 2.0)
                if _asked(message) == LIAR:
                    reply.content[METRICS]["trust"] = 2.0 if weight is None else weight
                    if weight is None:
                        del reply.content[METRICS]["trust"]
            return reply

    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, weighted_by_key="trust"
    )
    result = _run("mean", Grid(lambda content: None), strategy=strategy)
    ((absent),) = result.records[1].absent
    assert (absent.participant, result.records[1].answered) == (LIAR, PEOPLE - 1)
    assert "expected trust, by which the strategy weighs, above 0" in absent.reason


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_left_out_where_nobody_lies(kind):
    result = _run(kind, InProcessGrid(_participants(), PEOPLE), rounds=3)
    assert [record.absent for record in result.records] == [()] * 4
    assert result.records[-1].local_steps == 3 * PEOPLE


@pytest.mark.parametrize("kind", KINDS)
def test_more_examples_than_the_server_allows_are_refused(kind):
    def run(most: int) -> ArmResult:
        return _run(kind, InProcessGrid(_participants(), PEOPLE), server={"max_examples": most})

    assert run(14).records[1].absent == ()
    if kind == "devices":
        absent = run(13).records[1].absent
        assert [(a.participant, "at most 13 as num-examples" in a.reason) for a in absent] == [(4, True)]
    else:
        with pytest.raises(
            RunError, match=r"from 0 to 13 examples .*max-examples.* got 10 to 14.* from node"
        ):
            run(13)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (_says("participants", 10**9), r"got those of 5 for 1000000000 of them from node"),
        (_says("held", [10**12] * 5), r"got 1000000000000 to 1000000000000"),
        (_says("held", [-1, 21, 12, 13, 14]), "got -1 to 21"),
        (_says(NUM_EXAMPLES, 10**12), "1000000000000 in all"),
        (_says("held", [60.0]), "expected every node to tell"),
        (_says("held", [10, 12, 11, 13, 14]), "expected every node to hold the same partition"),
    ],
)
def test_a_hello_that_cannot_be_is_refused(lie, message):
    def of_the_first(content: RecordDict) -> None:
        grid.lie = lambda content: None
        lie(content)

    grid = Lying(of_the_first, Hello.type)
    with pytest.raises(RunError, match=message):
        _run("mean", grid)


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_weights_are_huge_the_round_fails_and_names_them(kind):
    class Huge(Lying):
        def _handle(self, message: Message) -> Message:
            reply = InProcessGrid._handle(self, message)
            if message.metadata.message_type == Train.type:
                _weights(lambda w: w * 0 + 1e30)(reply.content)
            return reply

    with pytest.raises(
        RunError, match=r"round 1: .* 0 answered.* participant 0: weights too far .*participant 4"
    ):
        _run(kind, Huge(None))


def test_a_strategy_whose_result_is_of_no_use_fails_the_round_and_names_who_took_part():
    strategy = FedAvgM(
        fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, server_learning_rate=1e10
    )
    match = r"round 1: expected a usable model.*Took part: participants 0, 1, 2, 4\. Left out: participant 3"
    with pytest.raises(RunError, match=match):
        _run("mean", Lying(None), strategy=strategy)


# ----------------------------------------------------------------------------- teachers, evaluation

EXACT = TeacherSettings(label_counts=LabelCountSettings(send=True))
NOISY = TeacherSettings(label_counts=LabelCountSettings(send=True, epsilon=0.5))
TWO = sample_participants(0, "teacher-sample", 0, PEOPLE, 2)
"""Who trains a teacher where two do."""


def _counted(teachers: TeacherSettings) -> dict[str, Any]:
    return {"start": "consolidated", "teachers": teachers, "ensemble": "label-counts", "rounds": 0}


@pytest.mark.parametrize("kind", ["each", "devices"])
@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([-1.0, 14.0], "from 0 to 13 examples"),
        ([1e12, 0.0], "got 1e+12"),
        ([1.0], "expected label counts of 2 classes, got 1 of them"),
        ([1.0] * 3, "got 3 of them"),
        ([13.0, 13.0], "expected label counts of 13 examples, got 26 in all"),
        ([6.5, 6.5], "as a whole number, got 6.5"),
        (7.0, "expected label counts of 2 classes, got 7.0"),
    ],
)
def test_label_counts_that_cannot_be_cost_only_who_sent_them(kind, counts, reason):
    grid = Lying(_says(LABEL_COUNTS, counts), TrainTeacher.type)
    start = _run(kind, grid, **_counted(EXACT)).records[0]
    ((absent),) = start.absent
    assert (absent.participant, start.answered) == (LIAR, PEOPLE - 1)
    assert reason in absent.reason


@pytest.mark.parametrize("kind", ["each", "devices"])
@pytest.mark.parametrize("place", [0, 1])
def test_of_two_the_one_with_a_count_too_much_is_left_out_whoever_comes_first(kind, place):
    liar = TWO[place]
    grid = Lying(_says(LABEL_COUNTS, [1.0] * 3), TrainTeacher.type, liar=liar)
    start = _run(kind, grid, **_counted(EXACT.model_copy(update={"count": 2}))).records[0]
    assert [absent.participant for absent in start.absent] == [liar]
    assert start.answered == 1


@pytest.mark.parametrize(
    ("counts", "absent"), [([-7.25, 25.5], []), ([1e3, 0.0], [LIAR]), ([90.0, 90.0], [LIAR])]
)
def test_noisy_label_counts_may_be_negative_and_broken_but_not_beyond_the_noise(counts, absent):
    """Of scale 2: each count within 80 of the truth, and the sum within 80 sqrt(2) = 113."""
    grid = Lying(_says(LABEL_COUNTS, counts), TrainTeacher.type)
    start = _run("each", grid, **_counted(NOISY)).records[0]
    assert [left.participant for left in start.absent] == absent


@pytest.mark.parametrize("kind", ["each", "devices"])
def test_a_teacher_with_huge_weights_is_not_averaged(kind):
    grid = Lying(_weights(lambda w: w * 0 + 1e30), TrainTeacher.type)
    result = _run(kind, grid, start="averaged", rounds=0)
    ((absent),) = result.records[0].absent
    assert (absent.participant, "weights too far" in absent.reason) == (LIAR, True)
    assert _same(result, _run(kind, Lying(None, TrainTeacher.type), start="averaged", rounds=0))


@pytest.mark.parametrize("kind", ["mean", "devices"])
@pytest.mark.parametrize(
    "lie",
    [
        _says(EVAL_ACCURACY, 5.0),
        _says(EVAL_ACCURACY, -1e9),
        _says(EVAL_LOSS, 1e300),
        _says(NUM_EXAMPLES, 10**12),
    ],
)
def test_an_evaluation_that_cannot_be_is_not_in_the_mean(kind, lie):
    def evaluated(lie: Lie | None) -> Any:
        strategy = KINDS[kind][0](min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        return _run(kind, Lying(lie, Evaluate.type), strategy=strategy).evaluate_metrics_clientapp[1]

    assert dict(evaluated(lie)) == dict(evaluated(None))


def test_of_two_with_other_metrics_the_one_that_says_what_ours_say_stays():
    teachers = TeacherSettings(count=2)
    for liar in TWO:
        grid = Lying(_says("extra", 1.0), TrainTeacher.type, liar=liar)
        start = _run("each", grid, start="averaged", teachers=teachers, rounds=0).records[0]
        assert [(a.participant, a.reason[:24]) for a in start.absent] == [(liar, "other metrics than most:")]


# ----------------------------------------------------------------------------- who gets every reply


def _counting(**options: Any) -> tuple[FedAvg, list[int]]:
    """Return FedAvg, and how many records it is given for metrics of training."""
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1, **options
    )
    return strategy, []


def test_a_weight_of_another_name_weighs_every_participant():
    """Weights are those of train-loss, 1 to 5: the mean step is 0.01 (1 + 4 + 9 + 16 + 25) / 15 = 0.0367."""
    strategy, _ = _counting(weighted_by_key=TRAIN_LOSS)
    start = _run("mean", Lying(None), strategy=strategy, rounds=0).arrays.to_torch_state_dict()
    moved = _run("mean", InProcessGrid(_participants(), PEOPLE), strategy=strategy).arrays
    for key, value in moved.to_torch_state_dict().items():
        torch.testing.assert_close(value, start[key] + 0.55 / 15, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "devices"])
def test_a_function_of_ones_own_gets_every_participants_metrics(kind):
    seen: list[list[int]] = []

    def aggregate(records: list[RecordDict], key: str) -> MetricRecord:
        seen.append([record[METRICS][NUM_EXAMPLES] for record in records])
        return MetricRecord({"count": len(records)})

    trained, _ = _counting(train_metrics_aggr_fn=aggregate)
    result = _run(kind, InProcessGrid(_participants(), PEOPLE), strategy=trained)
    assert result.train_metrics_clientapp[1]["count"] == PEOPLE
    evaluated = FedAvg(
        min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, evaluate_metrics_aggr_fn=aggregate
    )
    result = _run(kind, InProcessGrid(_participants(), PEOPLE), strategy=evaluated)
    assert result.evaluate_metrics_clientapp[1]["count"] == PEOPLE
    assert seen == [HELD, HELD]


def test_a_method_that_was_replaced_on_the_object_sees_every_reply(monkeypatch):
    strategy, counts = _counting()
    aggregate = strategy.aggregate_train

    def watched(server_round: int, replies: Any) -> Any:
        replies = list(replies)
        counts.append(len(replies))
        return aggregate(server_round, replies)

    monkeypatch.setattr(strategy, "aggregate_train", watched)
    _run("mean", InProcessGrid(_participants(), PEOPLE), strategy=strategy)
    assert counts == [PEOPLE]
