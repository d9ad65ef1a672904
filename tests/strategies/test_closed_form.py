"""Heads in closed form in an arm: the exchange, what it gives, what it costs, what is refused."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import strategies.closed_form as closed_form_module
import strategies.teachers as teachers_module
from clients.client_app import app
from clients.participants import simulated
from kdfed.closed_form import Ridge
from kdfed.closed_form.features import head_of
from kdfed.data import prepare
from kdfed.errors import ConfigError, RunError
from kdfed.messages import (
    ARRAYS,
    COHORTS,
    METRICS,
    Cohorts,
    QueryStatistics,
    Simulation,
    Update,
    participant_of,
)
from kdfed.metrics import NUM_EXAMPLES
from kdfed.models import build_model, load_state
from kdfed.preflight import check_data
from kdfed.private.flwr import error_reply
from kdfed.reading import examples_for, shape_read
from kdfed.saved import load
from kdfed.seeding import derive
from kdfed.task import CLASSIFICATION
from kdfed.train import evaluate
from simulations.engines.inprocess import InProcessGrid
from tests.shelf_files import CNN, HEAD, MLP, ON_OTHER, UNTRAINED, with_teachers, written
from tests.small_backbones import TINY

BATCH_NORM = {"name": "cnn", "options": {"width": 4, "norm": "batch"}}
DIABETES = {"source": "diabetes", "task": "regression"}
EXACT = {"closed-form": {"head": "ridge", "penalty": 0.1, "upload": "float64"}}


def weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def costs(result: Any) -> list[tuple[int, ...]]:
    return [
        (one.exchanges, one.participant_uploads, one.bytes_up, one.bytes_down, one.local_steps)
        for one in result.records
    ]


def centralised(experiment: Any, head: Ridge, state: Any = None) -> tuple[torch.nn.Module, Any]:
    """Return a model with the head of all participants' examples pooled, and the data; default: the initial
    one."""
    arm, data, seed = experiment.arm("cold"), prepare(experiment.data), experiment.seeds[0]
    partition = simulated(Simulation.of(arm, seed)).partition
    pooled = examples_for(arm.model, data, np.sort(partition.examples))
    model = build_model(arm.model, data.input_shape, data.classes, derive(seed, "init"))
    if state is not None:
        load_state(model, state)
    place = head_of(model, shape_read(arm.model, data.input_shape))
    arrays = head.statistics(
        place.features(model, pooled.inputs), pooled.labels, data.classes, CLASSIFICATION, 0
    )
    linear = head.solve(head.sums(arrays), place.dims, 0)
    load_state(model, place.replaced(model.state_dict(), linear.weight_CD, linear.bias_C))
    return model, data


@pytest.mark.parametrize("model", [{"name": "mlp", "options": {"hidden": [16]}}, {"backbone": TINY}])
@pytest.mark.parametrize(
    ("changes", "nodes"),
    [
        ({"server.cohort-size": 1}, 1),
        ({"server.cohort-size": 5}, 3),
        ({"partition": {"kind": "uniform", "participants": 3}}, 2),
        ({"partition.participants": 1}, 1),
    ],
)
def test_a_ridge_head_is_the_centralised_one_whatever_partition_nodes_and_cohorts(
    tiny, run_arm, model, changes, nodes
):
    experiment = tiny(model=model, **EXACT, **changes, **{"rounds.horizon": 0})
    result = run_arm(experiment, nodes=nodes)
    wanted, data = centralised(experiment, Ridge(penalty=0.1, upload="float64"))
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(weights(result)[key], value, rtol=1e-4, atol=1e-5)
    held = examples_for(experiment.model, data, data.splits.evaluation)
    assert result.records[0].accuracy == evaluate(wanted, held, CLASSIFICATION)[0]
    assert result.records[0].accuracy > 0.3  # chance is 0.1


def test_the_exchange_is_counted_and_everybody_takes_part(tiny, run_arm):
    experiment = tiny(**EXACT, **{"rounds.horizon": 1, "server.sampled": 2})
    start, first = run_arm(experiment).records
    assert (start.exchanges, start.participant_uploads, start.answered, start.local_steps) == (1, 5, 5, 0)
    assert (first.exchanges, first.participant_uploads) == (2, 7)
    arrays = 8 * (10 + 10 * 16 + 16 * 17 // 2)  # counts, class sums, Gram matrix of 16 features
    assert 5 * arrays < start.bytes_up < 5 * (arrays + 1000)


def test_the_solution_has_the_same_bits_whatever_nodes_cohorts_turns_and_order(tiny, run_arm, monkeypatch):
    def solved(cohort: int = 2, **more: Any) -> Any:
        return run_arm(tiny(**EXACT, **{"rounds.horizon": 0, "server.cohort-size": cohort}), **more)

    usual = solved()
    others = [solved(1, nodes=5), solved(5, nodes=1), solved(1, nodes=3, order=random.Random(1))]
    monkeypatch.setattr(closed_form_module, "AT_ONCE", 1)
    others.append(solved(1, nodes=3, order=random.Random(2)))
    for other in others:
        assert all(torch.equal(value, weights(other)[key]) for key, value in weights(usual).items())
        assert other.refits == usual.refits
        assert costs(other) == costs(usual)


def test_the_server_holds_no_statistics_that_it_has_added(tiny, run_arm, monkeypatch):
    """Where a node answers for many, they are asked in turns."""
    replies: list[weakref.ref[RecordDict]] = []
    most = 0

    class Counting(InProcessGrid):
        def _handle(self, message: Message) -> Message:
            nonlocal most
            reply = super()._handle(message)
            if message.metadata.message_type == QueryStatistics.type:
                replies.append(weakref.ref(reply.content))
                most = max(most, sum(one() is not None for one in replies))
            return reply

    experiment = tiny(**EXACT, **{"rounds.horizon": 0, "partition.participants": 9})
    arrays = 8 * (10 + 10 * 16 + 16 * 17 // 2)
    for turns, size in ((5, 2 * arrays), (1, 9 * arrays)):
        replies, most = [], 0
        monkeypatch.setattr(closed_form_module, "AT_ONCE", size)
        result = run_arm(experiment, grid=Counting(app, 1))
        assert (len(replies), most) == (turns, 1)
        assert (result.records[0].exchanges, result.records[0].answered) == (1, 9)


def test_the_heads_own_weights_are_not_sent(tiny, run_arm):
    """On a frozen backbone features depend on nothing that is sent."""
    experiment = tiny(model={"backbone": TINY}, **EXACT, **{"rounds.horizon": 0})
    assert run_arm(experiment).records[0].bytes_down < 5 * 1000


def test_after_a_consolidation_the_students_head_is_refitted(tiny, run_arm):
    plain = tiny(only="consolidated", **{"rounds.horizon": 0})
    student = weights(run_arm(plain, "consolidated"))
    refitted = run_arm(tiny(only="consolidated", **EXACT, **{"rounds.horizon": 0}), "consolidated")
    changed = {key for key, value in weights(refitted).items() if not torch.equal(value, student[key])}
    assert len(changed) == 2  # the head's weight and bias
    assert refitted.records[0].exchanges == 2
    assert refitted.records[0].participant_uploads == 10


def test_a_late_refit_changes_its_round_and_nothing_before(tiny, run_arm):
    late = {"closed-form": {"head": "lda", "at": [2]}}
    plain, refitted = (run_arm(tiny(**changes)).records for changes in ({}, late))
    assert [one.accuracy for one in plain[:2]] == [one.accuracy for one in refitted[:2]]
    assert plain[2].accuracy != refitted[2].accuracy
    assert [one.exchanges for one in refitted] == [0, 1, 3, 4]
    assert [one.answered for one in refitted] == [0, 5, 5, 5]


def test_with_batch_norm_a_refit_reads_running_statistics_as_an_evaluation_does(tiny, run_arm):
    """So it fits the model that is evaluated, and nothing but the head changes."""
    changes = {"model": BATCH_NORM, "rounds.horizon": 2}
    section = {**EXACT["closed-form"], "at": [2]}
    plain, refitted = (run_arm(tiny(**changes, **more)) for more in ({}, {"closed-form": section}))
    changed = {key for key, value in weights(plain).items() if not torch.equal(value, weights(refitted)[key])}
    assert len(changed) == 2
    assert any("running" in key for key in weights(plain))
    experiment = tiny(**changes)
    head = Ridge(**{key: value for key, value in EXACT["closed-form"].items() if key != "head"})
    wanted, _ = centralised(experiment, head, weights(plain))
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(weights(refitted)[key], value, rtol=1e-4, atol=1e-5)
    assert refitted.records[2].accuracy > plain.records[2].accuracy


def test_before_teachers_they_and_the_student_start_with_the_head(tiny, run_arm):
    """Teachers and student that hardly learn leave the solved head as it is."""
    still = {
        "teachers.lr": 1e-9,
        "consolidation.lr": 1e-9,
        "consolidation.init": "common",
        "rounds.horizon": 0,
    }
    at = {"closed-form": {**EXACT["closed-form"], "at": ["before-teachers"]}}
    student = run_arm(tiny(only="consolidated", **at, **still), "consolidated")
    cold = run_arm(tiny(**EXACT, **{"rounds.horizon": 0}))
    for key, value in weights(cold).items():
        torch.testing.assert_close(weights(student)[key], value, rtol=1e-4, atol=1e-5)
    assert student.records[0].exchanges == 2


def test_the_solved_model_is_one_more_teacher(tiny, run_arm):
    section = {**EXACT["closed-form"], "at": ["before-teachers"]}
    without, beside = (
        run_arm(tiny(only="consolidated", **{"closed-form": {**section, "teacher": teacher}}), "consolidated")
        for teacher in (False, True)
    )
    assert any(not torch.equal(value, weights(beside)[key]) for key, value in weights(without).items())
    assert without.records[0].bytes_up == beside.records[0].bytes_up  # nothing is sent for it


@pytest.mark.parametrize(
    ("student", "teachers"),
    [(MLP, [MLP, CNN]), (HEAD, [ON_OTHER, CNN])],
    ids=["other models", "other backbones"],
)
def test_beside_teachers_from_files_the_exchange_of_the_head_is_the_only_one(
    tiny, run_arm, tmp_path, student, teachers
):
    files = written(tmp_path, tiny(), *teachers)
    before = {**EXACT["closed-form"], "at": ["before-teachers"]}
    sections = {
        "plain": {},
        "after": EXACT,
        "start": {"closed-form": before},
        "teacher": {"closed-form": {**before, "teacher": True}},
    }
    found = {}
    for name, section in sections.items():
        experiment = with_teachers(tiny, files, model=student, **section, **{"rounds.horizon": 0})
        assert check_data(experiment) == []
        result = run_arm(experiment, "consolidated")
        found[name] = weights(result)
        start = result.records[0]
        wanted = (0, 0, 0) if name == "plain" else (1, 5, 5)
        assert (start.exchanges, start.participant_uploads, start.answered) == wanted
        assert start.local_steps == 0
    changed = {key for key, value in found["after"].items() if not torch.equal(value, found["plain"][key])}
    assert len(changed) == 2  # the head of the same student
    for one, other in (("start", "plain"), ("teacher", "start")):
        assert any(not torch.equal(value, found[one][key]) for key, value in found[other].items())


def test_beside_teachers_from_files_the_solved_model_counts_as_one_of_them(tiny, run_arm, tmp_path):
    """A student that starts from the mean and hardly learns is the mean of file and solved model."""
    (file,) = written(tmp_path, tiny(), MLP)
    section = {**EXACT["closed-form"], "at": ["before-teachers"], "teacher": True}
    still = {"consolidation.lr": 1e-9, "consolidation.init": "averaged", "rounds.horizon": 0}
    experiment = with_teachers(tiny, [file], model=MLP, **{"closed-form": section}, **still)
    student = weights(run_arm(experiment, "consolidated"))
    solved = weights(run_arm(tiny(model=MLP, **EXACT, **{"rounds.horizon": 0})))
    read = load(file, device="cpu").model.state_dict()
    for key, value in student.items():
        torch.testing.assert_close(value, (read[key] + solved[key]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("said", [False, True])
def test_the_solved_model_says_its_examples_of_each_class_where_files_do(
    tiny, run_arm, tmp_path, monkeypatch, said
):
    given: list[np.ndarray] = []
    real = teachers_module.consolidate

    def watched(*args: Any, label_counts: np.ndarray, **more: Any) -> Any:
        given.append(label_counts)
        return real(*args, label_counts=label_counts, **more)

    monkeypatch.setattr(teachers_module, "consolidate", watched)
    counts = {"label-counts": list(range(10, 20))} if said else {}
    files = [{"file": one, **counts} for one in written(tmp_path, tiny(), MLP, MLP)]
    changes = {
        "closed-form": {**EXACT["closed-form"], "at": ["before-teachers"], "teacher": True},
        "teachers.label-counts.send": True,
        "consolidation.ensemble": "label-counts",
        "rounds.horizon": 0,
    }
    experiment = with_teachers(tiny, files, model=MLP, **changes)
    run_arm(experiment, "consolidated")
    (counts_KC,) = given
    partition = simulated(Simulation.of(experiment.arm("consolidated"), experiment.seeds[0])).partition
    pooled = np.bincount(prepare(experiment.data).labels(partition.examples), minlength=10)
    assert counts_KC[0].tolist() == (list(range(10, 20)) if said else [1] * 10)
    assert counts_KC[2].tolist() == (pooled.tolist() if said else [1] * 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": {"consolidated": {"start": "averaged"}}, "teachers": {"from": ["a.pt"]}},
        {"teachers": {"from": ["a.pt"]}, "consolidation.init": "random"},
        {"teachers.init": "own", "consolidation.init": "random"},
    ],
)
def test_a_head_that_nobody_starts_with_is_one_mistake(tiny, changes):
    section = {"closed-form": {"at": ["before-teachers"]}}
    if isinstance(changes.get("teachers"), dict):
        changes = {**changes, "teachers": {**changes["teachers"], **UNTRAINED}}
    with pytest.raises(ConfigError) as caught:
        tiny(only="consolidated", **section, **changes)
    (mistake,) = caught.value.mistakes
    assert mistake.key.endswith("closed-form.at")
    assert "has no effect where neither teachers" in mistake.message


def test_the_sampled_ones_only_may_be_asked(tiny, run_arm):
    section = {**EXACT["closed-form"], "participants": "sampled"}
    result = run_arm(tiny(**{"closed-form": section, "server.sampled": 2, "rounds.horizon": 0}))
    assert result.records[0].participant_uploads == result.records[0].answered == 2


@pytest.mark.parametrize("head", ["ridge", "lda", "class-means"])
def test_every_head_runs_with_labels_of_the_server(tiny, run_arm, head):
    section = {"head": head, "calibrate": "validation", "dims": 8}
    assert run_arm(tiny(**{"closed-form": section, "rounds.horizon": 0})).records[0].accuracy > 0.3


def test_a_regression_has_a_ridge_head(tiny, run_arm):
    section = {"head": "ridge", "penalty": "gcv"}
    experiment = tiny(
        data=DIABETES,
        only="cold",
        **{"closed-form": section},
        **{
            "rounds.horizon": 0,
            "partition": {"kind": "uniform", "participants": 5},
            "targets": [0.3],
        },
    )
    assert run_arm(experiment).records[0].accuracy > 0.2


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"closed-form": {"at": [9]}}, "closed-form.at", "rounds up to the last, 3"),
        ({"closed-form": {"at": ["before-teachers"]}}, "closed-form.at", "needs teachers"),
        ({"closed-form": {"teacher": True}}, "closed-form.teacher", "needs start: consolidated"),
        ({"closed-form": {"head": "ridge", "shrinkage": 0.1}}, "closed-form", "shrinkage"),
        ({"closed-form": {"head": "svm"}}, "closed-form", "svm"),
        ({"closed-form": {"projection": "pool"}}, "closed-form.projection", "no effect without dims"),
        ({"arms": {"cold": {"teachers": {"lr": 0.5}}}}, "cold.teachers", "no effect with start: random"),
        ({"arms": {"cold": {"teachers.lr": 0.5}}}, "cold.teachers", "no effect with start: random"),
        (
            {"data": DIABETES, "closed-form": {"head": "lda"}},
            "closed-form.head",
            "expected ridge with data.task 'regression', got 'lda'",
        ),
        (
            {"data": DIABETES, "closed-form": {"head": "class-means"}},
            "closed-form.head",
            "expected ridge with data.task 'regression', got 'class-means'",
        ),
        (
            {"data": DIABETES, "closed-form": {"calibrate": "sums"}},
            "closed-form.calibrate",
            "expected 'no' with data.task 'regression'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, changes, key, words):
    changes = {"closed-form": {"head": "ridge"}, **changes}
    with pytest.raises(ConfigError) as caught:
        tiny(only="cold", **changes)
    found = [mistake for mistake in caught.value.mistakes if key in mistake.key]
    assert any(words in f"{mistake.key} {mistake.message}" for mistake in found), caught.value.mistakes


def test_arms_without_the_section_are_written_as_before(tiny):
    assert "closed-form" not in tiny().to_yaml()
    assert "closed-form" in tiny(**EXACT).to_yaml()


# ----------------------------------------------------------------------------- liars

Lie = Callable[[RecordDict], None]
LIAR = 3


class Lying(InProcessGrid):
    """Some participants' statistics are changed, or, without a lie, lost; each has a node of its own."""

    def __init__(self, lie: Lie | None, liars: Collection[int] = (LIAR,)) -> None:
        super().__init__(app, 5)
        self.lie, self.liars = lie, liars

    def _handle(self, message: Message) -> Message:
        reply = super()._handle(message)
        if message.metadata.message_type == QueryStatistics.type:
            (participant,) = Cohorts.from_record(message.content[COHORTS]).participants
            if participant in self.liars and self.lie is None:
                return error_reply(message, "gone")
            if participant in self.liars and self.lie is not None:
                self.lie(reply.content)
        return reply


def changed(key: str, change: Callable[[np.ndarray], Any]) -> Lie:
    def lie(content: RecordDict) -> None:
        values = content[ARRAYS][key].numpy().copy()
        found = change(values)
        content[ARRAYS][key] = Array(values if found is None else found)

    return lie


def placed(key: str, place: Any, value: float) -> Lie:
    def change(values: np.ndarray) -> None:
        values[place] = value

    return changed(key, change)


def both(*lies: Lie) -> Lie:
    def lie(content: RecordDict) -> None:
        for one in lies:
            one(content)

    return lie


def without(key: str) -> Lie:
    def lie(content: RecordDict) -> None:
        del content[ARRAYS][key]

    return lie


def cut_short(content: RecordDict) -> None:
    array = content[ARRAYS]["gram"]
    array.data = array.data[:-3]


def one_example_more(content: RecordDict) -> None:
    content[METRICS][NUM_EXAMPLES] += 1


def less_than_none(counts: np.ndarray) -> None:
    counts[0] += counts.sum() + 5
    counts[1:] = 0
    counts[1] = -5


def larger(times: float) -> Lie:
    """Say that all features are so many times as large, which fits together."""
    return both(changed("sums", lambda v: v * times), changed("gram", lambda v: v * times**2))


LACKED = 5
"""A class of which the liar has no example."""

LIES: dict[str, tuple[dict[str, Any], Lie, str]] = {
    "no number": ({}, placed("sums", (0, 0), np.nan), "not finite: sums"),
    "infinite": ({}, placed("gram", 5, -np.inf), "not finite: gram"),
    "another shape": (
        {},
        changed("gram", lambda v: v[:-1]),
        "wrong shape of gram: expected (136,), got (135,)",
    ),
    "another order": ({}, changed("sums", lambda v: v.T.copy()), "wrong shape of sums: expected (10, 16)"),
    "another type": ({}, changed("sums", lambda v: v.astype("float64")), "wrong dtype of sums"),
    "counts of floats": ({}, changed("counts", lambda v: v.astype("float32")), "wrong dtype of counts"),
    "no products": ({}, without("gram"), "wrong arrays: missing ['gram']"),
    "cut short": ({}, cut_short, "arrays that cannot be read"),
    "negative counts": ({}, changed("counts", less_than_none), "examples in all, got ["),
    "other counts": ({}, placed("counts", slice(None), 1), "examples in all, got [1, 1"),
    "more examples": ({}, one_example_more, "as num-examples"),
    "a negative square": ({}, placed("gram", 0, -1.0), "on the diagonal of the Gram matrix, got -1"),
    "products too large": ({}, placed("gram", 1, 1e6), "products that are larger than the features allow"),
    "sums too large": ({}, changed("sums", lambda v: v * 50), "larger ones than the Gram matrix allows"),
    "sums of no example": ({}, placed("sums", LACKED, 1.0), "sums of 0 for classes without an example"),
    "huge features": ({}, larger(1e6), "expected features of size"),
    "huge numbers": ({"upload": "float64"}, larger(1e140), "expected features of size"),
    "huge scales": (
        {"upload": "float16"},
        both(changed("sums-scale", lambda v: v * 2**40), changed("gram-scale", lambda v: v * 2**40)),
        "expected features of size",
    ),
    "negative scales": (
        {"upload": "float16"},
        changed("gram-scale", lambda v: -v),
        "expected scales above 0",
    ),
    "huge means": ({"head": "class-means"}, changed("sums", lambda v: v * 1e6), "expected features of size"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_alone_is_left_out_and_the_head_is_the_one_without_it(tiny, run_arm, lie):
    section, change, reason = LIES[lie]
    experiment = tiny(**{"closed-form": section, "rounds.horizon": 0, "server.cohort-size": 1})
    result, lost = (run_arm(experiment, grid=Lying(each)) for each in (change, None))
    ((absent),) = result.records[0].absent
    assert (absent.participant, result.records[0].answered) == (LIAR, 4)
    assert reason in absent.reason
    assert len(absent.reason) <= 200
    assert costs(result) == costs(lost)
    assert result.refits == lost.refits
    assert (result.refits[0].participants, result.refits[0].why) == (4, "")
    assert all(torch.equal(value, weights(lost)[key]) for key, value in weights(result).items())


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (placed("labels", 1, 1e9), "expected labels of size 100 at most"),
        (placed("labels", 0, 1e300), "labels and of their squares"),
        (placed("labels", 1, np.nan), "not finite: labels"),
    ],
)
def test_a_regressions_liar_is_left_out_too(tiny, run_arm, lie, reason):
    experiment = tiny(
        data=DIABETES,
        only="cold",
        **{
            "closed-form": {"head": "ridge"},
            "rounds.horizon": 0,
            "server.cohort-size": 1,
            "partition": {"kind": "uniform", "participants": 5},
            "targets": [0.3],
        },
    )
    result, lost = (run_arm(experiment, grid=Lying(each)) for each in (lie, None))
    ((absent),) = result.records[0].absent
    assert (absent.participant, reason in absent.reason) == (LIAR, True)
    assert all(torch.equal(value, weights(lost)[key]) for key, value in weights(result).items())


def test_large_features_of_everybody_are_no_lie(tiny, run_arm):
    """How large they may be follows from what the model makes of the server's own examples."""
    for section in ({"head": "class-means"}, {"head": "ridge", "upload": "float64"}):
        experiment = tiny(
            **{"data.normalise": {"mean": [0.0], "std": [1e-9]}, "closed-form": section, "rounds.horizon": 0}
        )
        assert run_arm(experiment).records[0].absent == ()


@pytest.mark.parametrize("lie", [placed("sums", (0, 0), np.nan), larger(1e6)])
def test_where_all_lie_the_run_goes_on_with_the_model_that_it_has(tiny, run_arm, caplog, lie):
    changes = {"rounds.horizon": 1, "server.cohort-size": 1}
    plain = run_arm(tiny(**changes))
    result = run_arm(tiny(**changes, **{"closed-form": {"at": [0, 1]}}), grid=Lying(lie, range(5)))
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(result)[key])
    assert [one.accuracy for one in result.records] == [one.accuracy for one in plain.records]
    start, first = result.records
    assert (
        [one.participant for one in start.absent] == [one.participant for one in first.absent] == [*range(5)]
    )
    assert (start.exchanges, start.participant_uploads, start.answered) == (1, 0, 0)
    assert (first.exchanges, first.participant_uploads, first.answered) == (3, 5, 5)
    for at, refit in enumerate(result.refits):
        assert (refit.at, refit.participants, refit.chosen) == (at, 0, None)
        assert (
            "expected usable statistics of at least 1 participants, got 0. Left out: participant 0"
            in refit.why
        )
    assert "the model keeps its head" in caplog.text


def test_where_all_lie_before_teachers_these_start_with_the_common_weights(tiny, run_arm):
    changes = {"rounds.horizon": 0, "server.cohort-size": 1}
    section = {"at": ["before-teachers"], "teacher": True}
    lying = Lying(placed("gram", 0, -1.0), range(5))
    plain = run_arm(tiny(only="consolidated", **changes), "consolidated")
    result = run_arm(
        tiny(only="consolidated", **{"closed-form": section}, **changes), "consolidated", grid=lying
    )
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(result)[key])
    assert [refit.at for refit in result.refits] == ["before-teachers"]


def test_liars_cannot_end_a_run_and_who_is_away_can(tiny, run_arm):
    """Of five participants that server.minimum asks for."""
    changes = {"rounds.horizon": 0, "server.cohort-size": 1, "server.minimum": 5, **EXACT}
    (refit,) = run_arm(tiny(**changes), grid=Lying(placed("gram", 0, -1.0))).refits
    assert "usable statistics of at least 5 participants, got 4. Left out: participant 3" in refit.why
    with pytest.raises(
        RunError, match=r"statistics after round 0: .* but 4 sent statistics. Left out: .*gone"
    ):
        run_arm(tiny(**changes), grid=Lying(None))


def test_a_client_app_of_ones_own_may_have_the_handler(tiny, run_arm):
    """As docs/pre-consolidation.md says; nothing else of a participant is kdfed's."""
    own, experiment = ClientApp(), tiny(**EXACT, **{"rounds.horizon": 0})
    arm, data = experiment.arm("cold"), prepare(experiment.data)
    model = build_model(arm.model, data.input_shape, data.classes, 0)
    place = head_of(model, shape_read(arm.model, data.input_shape))
    partition = simulated(Simulation.of(arm, experiment.seeds[0])).partition

    @own.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        participant = participant_of(message.metadata.group_id)
        held = partition.examples[partition.bounds[participant] : partition.bounds[participant + 1]]
        examples, asked = examples_for(arm.model, data, held), QueryStatistics.from_record(message.content)
        load_state(model, asked.arrays | {key: model.state_dict()[key] for key in place.keys})
        features = place.features(model, examples.inputs)
        arrays = asked.head.statistics(
            features, examples.labels, data.classes, CLASSIFICATION, asked.projection_seed
        )
        sums = {key: torch.from_numpy(values) for key, values in arrays.items()}
        return Message(Update(arrays=sums, num_examples=len(held)).to_record(), reply_to=message)

    result = run_arm(experiment, grid=InProcessGrid(own, 5), simulation=None)
    usual = weights(run_arm(experiment))
    assert result.records[0].answered == 5
    for key, values in weights(result).items():
        torch.testing.assert_close(values, usual[key], rtol=1e-4, atol=1e-5)


def test_a_client_app_without_the_handler_is_one_error(tiny, run_arm):
    own = ClientApp()

    @own.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    with pytest.raises(
        RunError, match=r"no handler app.query\('statistics'\).*use clients.client_app, or remove"
    ):
        run_arm(tiny(**EXACT), grid=InProcessGrid(own, 5), simulation=None)


# ----------------------------------------------------------------------------- what is told


def test_the_record_says_what_was_chosen_and_by_what(tiny, run_arm):
    found, examples = {}, 0
    for name, section in {
        "gcv": {"calibrate": "sums", "at": [0, 1]},
        "given": {"penalty": 0.5},
        "oas": {"head": "lda", "calibrate": "validation"},
        "means": {"head": "class-means"},
    }.items():
        experiment = tiny(**{"closed-form": section, "rounds.horizon": 1})
        found[name] = run_arm(experiment).refits
        examples = len(simulated(Simulation.of(experiment.arm("cold"), 3)).partition.examples)
    first, second = found["gcv"]
    assert (first.at, second.at, first.head, first.participants) == (0, 1, "ridge", 5)
    assert first.examples == second.examples == examples
    assert first.chosen_by == "penalty: gcv"
    assert first.chosen > 0
    assert first.scale_by == "calibrate: sums"
    assert first.scale > 1
    (given,) = found["given"]
    assert (given.chosen, given.chosen_by, given.scale, given.scale_by) == (0.5, "penalty: 0.5", None, "")
    (oas,) = found["oas"]
    assert (oas.chosen_by, oas.scale_by) == ("shrinkage: oas", "calibrate: validation")
    assert 0 < oas.chosen <= 1
    (means,) = found["means"]
    assert (means.chosen, means.chosen_by, means.why) == (None, "", "")


def test_a_refit_is_told_in_a_line_as_it_happens(tiny, run_arm):
    told: list[Any] = []
    section = {"penalty": 0.5, "calibrate": "sums", "at": [1]}
    result = run_arm(tiny(**{"closed-form": section, "rounds.horizon": 2}), on_event=told.append)
    (refit,) = result.refits
    line = (
        f"head ridge after round 1: {refit.examples} examples of 5 participants, penalty: 0.5 gives 0.5, "
        f"calibrate: sums multiplies logits by {refit.scale:.4g}, explains {refit.explained:.0%} of the "
        "labels' variance"
    )
    assert [(event.phase, event.message) for event in told if event.message] == [("statistics", line)]
    assert [event.step for event in told if event.phase == "rounds"] == [0, 1, 2]


# ----------------------------------------------------------------------------- training a part


@pytest.mark.parametrize(("part", "moves"), [("body", {0, 1}), ("head", {2, 3})])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "krum"])
def test_a_round_trains_a_part_and_leaves_the_rest_to_the_bit(tiny, run_arm, part, moves, strategy):
    start = weights(run_arm(tiny(**{"rounds.horizon": 0})))
    changes = {"local.trainable": part, "rounds.horizon": 2, "server": {"strategy": strategy}}
    after = weights(run_arm(tiny(**changes)))
    assert list(after) == list(start)
    moved = {i for i, key in enumerate(start) if not torch.equal(start[key], after[key])}
    assert moved == moves


@pytest.mark.parametrize(
    "changes",
    [
        {"local.trainable": "body"},
        {"local.trainable": "head"},
        {"local.trainable": "head", "local.batch-size": 512},  # one step
        {"local.trainable": "body", "local": {"mode": "proximal", "mu": 0.5}},
        {"local.trainable": "body", "model": BATCH_NORM},
    ],
    ids=["body", "head", "one step", "proximal", "BatchNorm"],
)
def test_a_cohort_that_trains_a_part_is_its_members_one_by_one(tiny, run_arm, changes):
    alone, together = (
        weights(run_arm(tiny(**changes, **{"server.cohort-size": size, "rounds.horizon": 2})))
        for size in (1, 5)
    )
    for key, values in alone.items():
        torch.testing.assert_close(together[key], values, rtol=1e-4, atol=1e-6)


def test_a_part_travels_and_the_rest_is_counted_once_until_it_changes(tiny, run_arm):
    """Of 64 inputs, 16 units and 10 classes the body has 1,040 weights, the head 170."""
    changes = {"local.trainable": "body", "rounds.horizon": 4, "closed-form": {"head": "ridge", "at": [3]}}
    down = [record.bytes_down for record in run_arm(tiny(**changes)).records]
    first, second, third, fourth = (after - before for before, after in pairwise(down))
    assert 5 * 4 * 170 < first - second < 5 * (4 * 170 + 1000)  # the head, in the first message alone
    assert third > second  # statistics: the body once more
    assert abs(fourth - first) < 200  # the head has changed
    up = [record.bytes_up for record in run_arm(tiny(**{"local.trainable": "head"})).records]
    assert up[2] - up[1] < 5 * (4 * 170 + 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server": {"strategy": "feddf"}}, "needs whole models"),
        ({"server": {"strategy": "fedmd"}}, "needs whole models"),
        ({"local.mode": "mutual"}, "trains a second model"),
        ({"model": {"backbone": TINY}}, "nothing but the head"),
    ],
)
def test_a_part_cannot_be_trained_where_whole_models_are_needed(tiny, changes, words):
    with pytest.raises(ConfigError, match=words):
        tiny(only="cold", **{"local.trainable": "body", **changes})


@pytest.mark.parametrize(("lr", "warned"), [(5.0, True), (1e-6, False)])
def test_a_first_round_that_loses_the_start_is_warned_of(tiny, run_arm, caplog, lr, warned):
    run_arm(tiny(**EXACT, **{"local.lr": lr, "rounds.horizon": 1}))
    told = [record.getMessage() for record in caplog.records if "points of the start" in record.getMessage()]
    assert bool(told) == warned
    assert all("lower local.lr" in text for text in told)


def test_a_random_start_has_nothing_to_lose(tiny, run_arm, caplog):
    run_arm(tiny(**{"local.lr": 5.0, "rounds.horizon": 1}))
    assert "points of the start" not in caplog.text


def test_what_trains_everything_is_written_as_before(tiny):
    assert "trainable" not in tiny().local.model_dump_json()
    assert tiny(**{"local.trainable": "body"}).arm("cold").local.trainable == "body"
