"""Damaged records are refused with their line or entry named; whole ones read back as they were written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdfed.config import Experiment
from kdfed.errors import KdfedError, RunFolderError
from kdfed.records import Absent, Outcome, RoundRecord, RunFolder, summarise
from simulations.experiments import build_experiment

EXPERIMENT = build_experiment(
    {
        "name": "made-up",
        "seeds": [0, 1],
        "targets": [0.8, "90%-of-converged"],
        "rounds": {"horizon": 6},
        "arms": {"cold": {}, "warm": {"start": "averaged"}},
    }
)
REGRESSION = build_experiment(
    {
        "name": "numbers",
        "data": {"task": "regression", "source": "diabetes"},
        "targets": [0.3],
        "arms": {"cold": {}},
    }
)


def curve(arm: str, seed: int, accuracies: list[float], trips: int = 0) -> list[RoundRecord]:
    return [
        RoundRecord(
            *(arm, seed, r, r + trips, "rounds" if r else "start", accuracy, None, 1.0),
            *(5 * r, 100 * r, 100 * r, 10 * r, 5, (), float(r)),
        )
        for r, accuracy in enumerate(accuracies)
    ]


RECORDS = [
    record
    for seed in EXPERIMENT.seeds
    for record in (
        curve("cold", seed, [0.1, 0.4, 0.6, 0.8, 0.9, 0.9, 0.9])
        + curve("warm", seed, [0.6, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 1)
    )
]
PARTITIONS = [
    {
        "seed": seed,
        "participants": 3,
        "moved": 0,
        "unused": 1,
        "class_names": ["a", "b"],
        "counts": [[1, 2]] * 3,
    }
    for seed in EXPERIMENT.seeds
]
OUTCOMES = [Outcome(arm, seed, "horizon", "ab" * 32) for arm in EXPERIMENT.arms for seed in EXPERIMENT.seeds]
SUMMARY: dict[str, Any] = {
    **summarise(EXPERIMENT, "inprocess", RECORDS, OUTCOMES, PARTITIONS),
    "failures": [{"arm": "warm", "seed": 1, "phase": "rounds", "reason": "nobody answered"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.open_for(tmp_path, EXPERIMENT)
    write(made, SUMMARY, RECORDS)
    return made


def write(folder: RunFolder, summary: Any, records: list[RoundRecord]) -> None:
    (folder.path / "summary.json").write_text(json.dumps(summary))
    (folder.path / "rounds.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records))


def read(folder: RunFolder, experiment: Experiment = EXPERIMENT) -> dict[str, Any]:
    return folder.read_summary(experiment, folder.read_rounds(experiment))


def refusal(folder: RunFolder) -> str:
    """Return why the records are refused; empty where they are read. Nothing else may happen."""
    try:
        read(folder)
    except KdfedError as error:
        return str(error)
    return ""


def test_whole_records_read_back_as_they_were_written(folder):
    assert read(folder) == SUMMARY
    assert folder.read_rounds(EXPERIMENT) == RECORDS


def test_keys_of_a_later_version_are_kept_and_some_may_be_missing(folder):
    newer = {**SUMMARY, "weather": {"rain": 1}}
    shorter = {
        key: value
        for key, value in SUMMARY.items()
        if key not in ("metric", "consolidations", "failures", "note", "refits", "sunk")
    }
    for summary in (newer, shorter):
        write(folder, summary, RECORDS)
        assert read(folder) == summary


@pytest.mark.parametrize("stopped", ["horizon", "target", "plateau", "listener", "failed", "interrupted"])
def test_a_run_can_end_in_every_way_that_runs_end(folder, stopped):
    changed = put(SUMMARY, ("runs", 0, "stopped"), stopped)
    write(folder, changed, RECORDS)
    assert read(folder) == changed


def test_a_regression_can_be_worse_than_the_mean(tmp_path):
    made = RunFolder.open_for(tmp_path, REGRESSION)
    records = curve("cold", 0, [-1e6, -0.5, 0.4])
    write(made, summarise(REGRESSION, "inprocess", records, []), records)
    assert read(made, REGRESSION)["runs"][0]["final_accuracy"] == 0.4


# ----------------------------------------------------------------------------- rounds.jsonl

IMPOSSIBLE: dict[str, tuple[Callable[[list[RoundRecord]], list[RoundRecord]], str]] = {
    "accuracy 5": (lambda r: [replace(r[0], accuracy=5.0), *r[1:]], r"line 1: .*accuracy: .*1, got 5\.0"),
    "accuracy -1": (lambda r: [r[0], replace(r[1], accuracy=-1.0), *r[2:]], "line 2: accuracy: .*at least 0"),
    "validation accuracy -1": (
        lambda r: [replace(r[0], validation_accuracy=-1.0)],
        "line 1: validation_accuracy: .*least 0",
    ),
    "validation accuracy 2": (
        lambda r: [replace(r[0], validation_accuracy=2.0)],
        "line 1: .*validation_accuracy: .*1, got 2",
    ),
    "test accuracy -1": (lambda r: [replace(r[0], test_accuracy=-1.0)], "line 1: test_accuracy: .*least 0"),
    "round -1": (lambda r: [replace(r[0], round=-1), *r[1:]], "line 1: .*round: .*got -1"),
    "an unknown arm": (lambda r: [*r, replace(r[0], arm="hot")], "arm: expected one of cold, warm, got 'hot"),
    "an unknown seed": (lambda r: [*r, replace(r[0], seed=7)], "seed: expected one of 0, 1, got 7"),
    "a round twice": (lambda r: [r[0], r[1], r[1], *r[2:]], "line 3: round: expected round 2 .*got 1"),
    "a round missing": (lambda r: [r[0], *r[2:]], "line 2: round: expected round 1 of .*got 2"),
    "no start": (lambda r: r[1:], "line 1: round: expected round 0"),
    "two runs of one arm": (lambda r: r + r, "round: expected round 7 of arm cold, seed 0, got 0"),
    "more rounds than allowed": (
        lambda r: [*r[:7], replace(r[6], round=7)],
        r"line 8: round: expected at most rounds\.horizon, 6, got 7",
    ),
    "a start among the rounds": (lambda r: [r[0], replace(r[1], phase="start")], "line 2: phase: "),
    "bytes that fall": (lambda r: [*r[:2], replace(r[2], bytes_up=50)], "line 3: bytes_up: expected .*100"),
    "negative bytes": (lambda r: [replace(r[0], bytes_down=-1)], "line 1: .*bytes_down: .*got -1"),
    "seconds that fall": (lambda r: [*r[:2], replace(r[2], seconds=0.5)], "line 3: seconds: expected"),
    "more bytes than there are": (lambda r: [replace(r[0], bytes_up=2**70)], "line 1: .*bytes_up"),
    "a negative loss": (lambda r: [replace(r[0], loss=-1.0)], "line 1: .*loss"),
    "a negative participant": (lambda r: [replace(r[0], absent=(Absent(-1, ""),))], "line 1: .*absent"),
}  # fmt: skip


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_records_that_no_run_can_have_left_are_refused_and_their_line_is_named(folder, what):
    change, message = IMPOSSIBLE[what]
    write(folder, SUMMARY, change(RECORDS))
    with pytest.raises(
        RunFolderError, match=rf"rounds\.jsonl, {'.*' if 'line' not in message else ''}{message}"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("NaN", "expected finite numbers, got NaN"),
        (RECORDS[0].to_json().replace("0.1", "NaN"), "expected finite numbers, got NaN"),
        (RECORDS[0].to_json().replace("0.1", "1e999"), "accuracy: .*finite"),
        (
            RECORDS[0].to_json().replace('"seed": 0', '"seed": 0, "seed": 1'),
            "distinct keys, got 'seed' twice",
        ),
        ("[" * 100_000, "nested too deeply"),
        ("", "expected a record"),
        ("x" * 100_000, "expected a record"),
        (RECORDS[0].to_json().replace("cold", "x" * 100_000), "arm: expected one of cold, warm"),
        (RECORDS[0].to_json().replace("cold", "\\ud800"), "expected a record"),
    ],
)
def test_a_line_that_is_no_record_is_refused_in_few_words(folder, line, message):
    with open(folder.path / "rounds.jsonl", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunFolderError, match=rf"rounds\.jsonl, line 29: .*{message}") as error:
        read(folder)
    assert len(str(error.value)) < 1000


def test_a_line_that_is_no_text_is_named(folder):
    lines = (folder.path / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (folder.path / "rounds.jsonl").write_bytes(b"".join([*lines[:4], b"\xff\n", *lines[4:]]))
    with pytest.raises(RunFolderError, match="line 5: expected a record: 'utf-8'"):
        read(folder)


def test_a_last_line_cut_within_a_letter_is_dropped_and_a_whole_one_is_not(folder):
    whole = (folder.path / "rounds.jsonl").read_bytes()
    (folder.path / "rounds.jsonl").write_bytes(whole + '{"arm": "ö'.encode()[:-1])
    assert folder.read_rounds(EXPERIMENT) == RECORDS
    (folder.path / "rounds.jsonl").write_bytes(whole.rstrip(b"\n"))
    assert folder.read_rounds(EXPERIMENT) == RECORDS
    (folder.path / "rounds.jsonl").write_bytes(whole + b'{"accuracy": 5}')
    with pytest.raises(RunFolderError, match="line 29"):
        folder.read_rounds()


# ----------------------------------------------------------------------------- summary.json


def put(values: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of nested values with one of them replaced."""
    if not path:
        return value
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("runs", 0, "totals"), 3, r"runs\.0\.totals: expected an object, got 3"),
        (("runs", 1, "first_hit"), [], r"runs\.1\.first_hit: expected an object, got \[\]"),
        (("runs", 1, "totals", "bytes_up"), -1, r"runs\.1\.totals\.bytes_up: .*got -1"),
        (("runs", 1, "totals", "round"), 99, r"runs\.1\.totals\.round: expected at most 6, the last round"),
        (("runs", 1, "best_accuracy"), 5, r"runs\.1\.best_accuracy: .*got 5"),
        (("runs", 1, "best_accuracy"), -5, r"runs\.1\.best_accuracy: expected at least 0"),
        (("runs", 1, "converged_accuracy"), -5, r"runs\.1\.converged_accuracy: expected at least 0"),
        (("runs", 1, "hit", "accuracy"), 1.5, r"runs\.1\.hit\.accuracy: .*got 1\.5"),
        (("runs", 1, "hit", "simulated_seconds"), -1.0, r"runs\.1\.hit\.simulated_seconds: .*got -1"),
        (("runs", 1, "first_hit"), None, r"runs\.1: expected a first_hit no later than the hit, got another"),
        (("runs", 1, "first_hit", "round"), 5, r"runs\.1: expected a first_hit no later than the hit"),
        (("runs", 1, "plateau"), -1, r"runs\.1\.plateau: .*got -1"),
        (("runs", 1, "target"), "0.7", r"runs\.1\.target: expected one of 0\.8, 90%-of-conv.*, got '0\.7'"),
        (("runs", 1, "target"), "0.8", r"runs\.1: expected one entry of cold, 0, 0\.8, got a second one"),
        (("runs", 1, "seed"), 9, r"runs\.1\.seed: expected one of 0, 1, got 9"),
        (("runs", 1, "arm"), "hot", r"comparisons\.5: expected pairs and censored"),
        (("runs", 1, "arm"), "<script>", r"runs\.1\.arm: .*got '<script>'"),
        (("runs", 1, "rounds_to_target"), 5, r"runs\.1: expected rounds_to_target and exchanges_to_target"),
        (("runs", 1, "rounds_to_target"), 10**400, r"runs\.1\.rounds_to_target"),
        (("runs", 1, "stopped"), "x" * 100_000, r"runs\.1\.stopped: expected 'horizon', .*got 'xxx"),
        (("runs", 1, "weights_sha256"), "<b>", r"runs\.1\.weights_sha256"),
        (("comparisons", 0, "saved_percent"), {"mean": 5}, r"comparisons\.0\.saved_percent\.median: exp"),
        (("comparisons", 0, "saved_percent", "median"), 500.0, r"comparisons\.0\.saved_percent\.median: .*5"),
        (("comparisons", 0, "saved_percent", "high"), 100.5, r"comparisons\.0\.saved_percent\.high: .*100"),
        (("comparisons", 0, "verdict"), "wins", r"comparisons\.0\.verdict: expected 'saves', .*got 'wins'"),
        (("comparisons", 0, "p_value"), 1.5, r"comparisons\.0\.p_value: .*got 1\.5"),
        (("comparisons", 0, "ceiling_percent"), 100.5, r"comparisons\.0\.ceiling_percent: .*got 100\.5"),
        (("comparisons", 0, "without_federation"), -1, r"comparisons\.0\.without_federation: .*got -1"),
        (("comparisons", 0, "cost"), "rounds_to_convergence", r"comparisons\.0\.target: expected 99%-of"),
        (("comparisons", 0, "saved_percent", "low"), 101.0, r"comparisons\.0\.saved_percent: expected low"),
        (("comparisons", 0, "cost"), "exchanges", r"comparisons\.1: expected one entry of warm, 0\.8, ex"),
        (("comparisons", 0, "pairs"), 99, r"comparisons\.0: expected pairs and censored that the hits"),
        (("comparisons", 0, "censored", "baseline"), 99, r"comparisons\.0: expected pairs and censored"),
        (("comparisons",), [], "comparisons: expected warm against cold at every target"),
        (("comparisons", 0, "baseline"), "warm", "comparisons: expected warm against cold at every"),
        (("partitions", 0, "counts", 1), [1], r"partitions\.0: counts\.1: expected 2 numbers"),
        (("partitions", 0, "counts"), [], r"partitions\.0\.counts"),
        (("partitions", 0, "counts"), [[1, 2]] * 9, r"partitions\.0: counts: expected at most 3 rows"),
        (("partitions", 0, "class_names"), [], r"partitions\.0\.class_names"),
        (("partitions", 0, "seed"), 1, r"partitions\.1: expected one entry of 1"),
        (("schema",), 3, "schema: expected 2, got 3"),
        (("schema",), "2", "schema: expected 2, got '2'"),
        (("note",), 3, "note: expected .*got 3"),
        (("horizon",), 6, "horizon: expected an object, got 6"),
        (("horizon", "rounds"), -1, r"horizon\.rounds: .*got -1"),
        (("horizon", "why"), None, r"horizon\.why: .*got None"),
        (("evaluation_examples",), -1, "evaluation_examples: .*got -1"),
        (("majority",), 1.5, "majority: .*got 1.5"),
        (("server_labels",), 0.5, "server_labels: .*got 0.5"),
        (("controls", "averaged"), None, r"controls\.averaged: expected an object"),
        (("controls", "averaged", "labels"), -1, r"controls\.averaged\.labels: .*got -1"),
        (("controls", "averaged", "start_accuracy"), 2.0, r"controls\.averaged\.start_accuracy: .*got 2"),
        (("controls",), {"magic": {}}, "controls.*magic"),
        (("targets",), ["0.8"], r"runs\.1\.target: expected one of 0\.8, got '90%-of-converged'"),
        (("targets", 0), "<b>", r"targets\.0"),
        (("seeds",), [1, 0], r"seeds: expected \[0, 1\], as in the experiment beside it, got \[1, 0\]"),
        (("experiment",), "other", "experiment: expected 'made-up', as in the exp.*got 'other'"),
        (("experiment",), "<script>", "experiment: "),
        (("metric",), "r2", "metric: expected 'accuracy'"),
        (("engine",), "x" * 100_000, "engine: .*got 'xx"),
        (("engine",), "\ud800", "engine: "),
        (("versions",), {"torch": 2}, r"versions\.torch: "),
        (("failures", 0, "seed"), 12, r"failures\.0\.seed: expected one of 0, 1"),
        (("failures",), [{}], r"failures\.0\.arm: expected this key; .*and 1 more"),
    ],
)  # fmt: skip
def test_a_damaged_entry_of_the_summary_is_named(folder, path, value, message):
    before = (folder.path / "rounds.jsonl").read_bytes()
    write(folder, put(SUMMARY, path, value), RECORDS)
    with pytest.raises(RunFolderError, match=rf"summary\.json: {message}") as error:
        read(folder)
    assert len(str(error.value)) < 1000
    assert (folder.path / "rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("horizon", "rounds"), 60),
        (("runs", 1, "target_accuracy"), 0.7),
        (("runs", 1, "converged_accuracy"), 0.99),
        (("runs", 1, "totals", "bytes_up"), 1),
        (("comparisons", 0, "saved_percent", "median"), 99.0),
        (("comparisons", 0, "ratio"), None),
        (("comparisons", 0, "verdict"), "saves"),
        (("comparisons", 0, "failed"), 1),
        (("comparisons", 0, "ceiling_percent"), 99.0),
        (("controls", "averaged", "converged_accuracy"), 0.1),
    ],
)
def test_a_figure_that_the_records_do_not_give_is_named(folder, path, value):
    """A summary that only looks like one, as whoever mends a figure leaves it."""
    write(folder, put(SUMMARY, path, value), RECORDS)
    with pytest.raises(RunFolderError, match=r"as counted from rounds\.jsonl, got") as error:
        read(folder)
    assert f"summary.json: {'.'.join(map(str, path))}: expected " in str(error.value)


def test_an_outcome_decides_how_a_run_ended(folder):
    """A seed is not left out by saying that it failed."""
    seed = [{**run, "stopped": "failed"} if run["seed"] == 0 else run for run in SUMMARY["runs"]]
    write(folder, SUMMARY | {"runs": seed}, RECORDS)
    assert "as counted from rounds.jsonl" in refusal(folder)
    left_out = summarise(EXPERIMENT, "inprocess", RECORDS, [one for one in OUTCOMES if one.seed])
    write(folder, left_out, RECORDS)
    assert not refusal(folder)
    (folder.path / "outcomes.jsonl").write_text("".join(f"{one.to_json()}\n" for one in OUTCOMES))
    assert "as counted from rounds.jsonl" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON"),
        (b"\xff{}", "expected JSON: 'utf-8'"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "expected finite numbers, got NaN"),
        (b'{"a": 1, "a": 1}', "expected distinct keys, got 'a' twice"),
        (b"1" * 10_000, "expected JSON"),
        (b"null", "expected an object, got None"),
    ],
)
def test_a_summary_that_is_none_is_refused(folder, content, message):
    (folder.path / "summary.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"summary\.json: .*{message}"):
        read(folder)


@pytest.mark.parametrize("name", ["summary.json", "rounds.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_refused(folder, name):
    (folder.path / name).unlink()
    (folder.path / name).mkdir()
    with pytest.raises(RunFolderError, match=f"expected a run folder with a readable {name}: Is a directory"):
        read(folder)


def test_a_summary_of_more_runs_than_were_recorded_is_refused(folder):
    write(folder, SUMMARY, [record for record in RECORDS if record.seed == 0])
    with pytest.raises(
        RunFolderError, match=r"runs\.3: expected evaluations of arm 'cold', seed 1 in rounds"
    ):
        read(folder)


# ----------------------------------------------------------------------------- any damage


def places(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything in nested values."""
    yield path
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def take(values: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def drop(values: Any, path: tuple[str | int, ...]) -> Any:
    copy = dict(take(values, path[:-1])) if isinstance(path[-1], str) else list(take(values, path[:-1]))
    del copy[path[-1]]
    return put(values, path[:-1], copy)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from(
        ["", "x" * 10_000, "<script>", "\ud800", "0.8", "cold", "warm", 0, 1, 2, 1.0, [], {}, [[]]]
    ),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=4),
)
ways = st.sampled_from(["drop", "replace", "nest", "twice", "other"])


def damaged(
    values: Any, path: tuple[str | int, ...], way: str, value: Any, other: tuple[str | int, ...]
) -> Any:
    if way == "drop" and path:
        return drop(values, path)
    if way == "nest":
        return put(values, path, [take(values, path)])
    if way == "twice" and isinstance(take(values, path), list):
        return put(values, path, take(values, path) * 2)
    if way == "other":
        return put(values, path, take(values, other))
    return put(values, path, value)


IN_SUMMARY, LINES = list(places(SUMMARY)), [json.loads(record.to_json()) for record in RECORDS]
IN_LINES = list(places(LINES))
quick = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(st.sampled_from(IN_SUMMARY), ways, junk, st.sampled_from(IN_SUMMARY))
def test_whatever_happens_to_a_summary_it_is_read_or_refused(folder, path, way, value, other):
    (folder.path / "summary.json").write_text(json.dumps(damaged(SUMMARY, path, way, value, other)))
    message = refusal(folder)
    assert not message or message.startswith(f"{folder.path / 'summary.json'}: ")


@quick
@given(st.sampled_from(IN_LINES), ways, junk, st.sampled_from(IN_LINES))
def test_whatever_happens_to_the_rounds_they_are_read_or_refused(folder, path, way, value, other):
    lines = damaged(LINES, path, way, value, other)
    text = "\n".join(map(json.dumps, lines if isinstance(lines, list) else [lines]))
    (folder.path / "rounds.jsonl").write_text(f"{text}\n")
    message = refusal(folder)
    assert not message or message.startswith(str(folder.path))


@quick
@given(
    st.sampled_from(["summary.json", "rounds.jsonl"]),
    st.integers(0, 10**6),
    st.binary(max_size=4),
    st.booleans(),
)
def test_whatever_bytes_are_lost_records_are_read_or_refused(folder, name, place, junk, cut):
    write(folder, SUMMARY, RECORDS)
    whole = (folder.path / name).read_bytes()
    at = place % len(whole)
    (folder.path / name).write_bytes(whole[:at] + junk + (b"" if cut else whole[at + len(junk) :]))
    message = refusal(folder)
    assert not message or message.startswith(str(folder.path))
