from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import bench
import harness
import memory
import pytest
import torch
from contestants import CONTESTANTS, Entry
from contestants.gate import Finished, Gate
from harness import Contestant, race
from work import Work

FAKE = textwrap.dedent(
    """
    import json, os, sys, time

    name, book, seconds, crash_at = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    print(json.dumps({"event": "ready"}), flush=True)
    for number, line in enumerate(iter(sys.stdin.readline, "finish\\n")):
        if number == crash_at:
            raise RuntimeError(f"{name} has had enough")
        with open(book, "a") as file:
            file.write(f"{name}{number}\\n")
        answer = {"event": "round", "seconds": seconds, "steps": 7, "accuracy": 0.1 * number}
        print(json.dumps(answer), flush=True)
    """
)


@pytest.fixture(autouse=True)
def _short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SETTLE", 0.01)


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Contestant]:
    """Return a function that makes a contestant which trains nothing."""

    def make(name: str, seconds: float = 0.5, crash_at: int = -1) -> Contestant:
        arguments = [name, str(tmp_path / "book"), str(seconds), str(crash_at)]
        return Contestant(name, [sys.executable, "-c", FAKE, *arguments], tmp_path / f"{name}.log")

    return make


def book(folder: Path) -> list[str]:
    return (folder / "book").read_text().split()


def test_contestants_take_turns_round_by_round(fake: Callable[..., Contestant], tmp_path: Path) -> None:
    race([fake("a"), fake("b")], rounds=3)
    assert book(tmp_path) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_a_crash_fails_one_contestant_with_its_last_error_and_others_go_on(
    fake: Callable[..., Contestant], tmp_path: Path
) -> None:
    broken, whole = fake("a", crash_at=2), fake("b")
    race([broken, whole], rounds=3)
    row = harness.row(broken, "cnn", 10, 1)
    assert row["status"] == "failed"
    assert row["reason"] == "RuntimeError: a has had enough"
    assert row["seconds_per_round"] is None
    assert len(whole.timed) == 3
    assert whole.failure is None


def test_a_contestant_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    absent = Contestant("a", [sys.executable, "-c", "import nothing_of_this_name"], tmp_path / "log")
    race([absent], rounds=3)
    assert absent.failure == "ModuleNotFoundError: No module named 'nothing_of_this_name'"


def test_the_budget_ends_slow_contestants_after_three_timed_rounds(fake: Callable[..., Contestant]) -> None:
    slow, quick = fake("a", seconds=9.0), fake("b", seconds=0.1)
    race([slow, quick], rounds=5, budget=1.0)
    assert (len(slow.timed), len(quick.timed)) == (3, 5)


def test_a_contestant_that_trains_after_its_answer_is_found_out(
    fake: Callable[..., Contestant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "SETTLE", 0.6)
    cheat, honest = fake("a", seconds=0.2), fake("b", seconds=0.2)
    cheat.command[2] += "    end = time.process_time() + 0.4\n    while time.process_time() < end: pass\n"
    race([cheat, honest], rounds=3)
    assert cheat.failure is not None
    assert cheat.failure.startswith("works off the clock")
    assert honest.failure is None


def test_nothing_of_a_contestant_is_left(fake: Callable[..., Contestant]) -> None:
    leaver = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True); "
    contestant = fake("a")
    contestant.command[2] = leaver + contestant.command[2]
    contestant.start()
    assert len(memory.marked(contestant.mark)) == 2
    contestant.finish()
    assert memory.marked(contestant.mark) == set()


def test_a_row_has_the_keys_that_readers_rely_on_and_is_json(fake: Callable[..., Contestant]) -> None:
    contestant = fake("a", seconds=0.25)
    race([contestant], rounds=3)
    row = json.loads(json.dumps(harness.row(contestant, "cnn", 100, 1)))
    wanted = {
        "contestant": "a",
        "model": "cnn",
        "participants": 100,
        "workers": 1,
        "rounds": 3,
        "status": "ok",
    }
    assert {key: row[key] for key in wanted} == wanted
    assert row["status"] == "ok"
    assert row["seconds_per_round"] == 0.25
    assert row["participants_per_second"] == 400
    assert row["accuracy"] == pytest.approx(0.2)  # of rounds 1, 2 and 3
    assert row["startup_seconds"] > 0
    assert row["peak_pss_mb"] > 1
    assert row.keys() == harness.skipped("b", "cnn", 100, 1, "not there").keys()


def test_other_numbers_of_steps_are_other_work(fake: Callable[..., Contestant]) -> None:
    contestant = fake("a")
    race([contestant], rounds=3)
    harness.check(contestant, 7)
    assert contestant.failure is None
    harness.check(contestant, 8)
    assert contestant.failure == "not the same work: 7 local steps a round, expected 8"


def test_accuracy_is_compared_after_as_many_rounds_as_both_have(fake: Callable[..., Contestant]) -> None:
    contestant = fake("a")
    race([contestant], rounds=3)  # 0, 0.1, 0.2, 0.3
    harness.check(contestant, 7, [0.0, 0.11])
    assert contestant.failure is None
    harness.check(contestant, 7, [0.0, 0.15])
    assert contestant.failure == "not the same work: accuracy 0.050 after 2 rounds, the bare loop has 0.075"


def test_ratios_are_those_of_the_same_case() -> None:
    def row(name: str, workers: int, seconds: float, status: str = "ok") -> dict[str, object]:
        made = {"contestant": name, "model": "cnn", "participants": 10, "workers": workers}
        return {**made, "seconds_per_round": seconds, "status": status}

    rows = [row("bare-loop", 1, 4.0), row("kdfed-ray", 1, 2.0), row("kdfed-ray", 2, 1.0)]
    rows += [row("pfl", 1, 6.0), row("pfl", 2, 5.0), row("fluke", 1, 8.0), row("flower", 1, 1.0, "failed")]
    harness.add_ratios(rows, ["pfl", "fluke", "flower"])
    ratios = {
        (made["contestant"], made["workers"]): tuple(
            made[f"times_faster_than_{measure}"] for measure in ("fastest_peer", "bare_loop", "one_worker")
        )
        for made in rows
        if made["status"] == "ok"
    }
    assert ratios == {
        ("bare-loop", 1): (1.5, 1.0, None),
        ("kdfed-ray", 1): (3.0, 2.0, None),
        ("kdfed-ray", 2): (5.0, 4.0, 2.0),
        ("pfl", 1): (8 / 6, 4 / 6, None),
        ("pfl", 2): (None, 4 / 5, 6 / 5),
        ("fluke", 1): (6 / 8, 4 / 8, None),
    }


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_a_pinned_contestant_has_its_cores_and_we_keep_ours(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    code = "import os, sys; sys.exit(f'ValueError: {sorted(os.sched_getaffinity(0))}')"
    contestant = Contestant("a", [sys.executable, "-c", code], tmp_path / "log", cores={min(before)})
    race([contestant], rounds=3)
    assert contestant.failure == f"ValueError: [{min(before)}]"
    assert os.sched_getaffinity(0) == before


def test_contestants_are_skipped_by_name_with_the_reason() -> None:
    nowhere = Entry("nowhere", needs="nothing_of_this_name")
    assert nowhere.absent(1, 10, False, None) == (
        "nothing_of_this_name is not installed (pip install 'kdfed[bench]')"
    )
    assert Entry("a", python=(99, 0)).absent(1, 10, False, None) == "torch needs Python 99.0 or newer"
    assert CONTESTANTS["bare-loop"].absent(2, 10, False, None) == "one worker only"
    assert CONTESTANTS["flower"].absent(1, 2000, False, None) == (
        "more than 500 participants only with --slow"
    )
    assert CONTESTANTS["bare-loop"].absent(1, 2000, False, None) is None


def test_every_contestant_has_a_file() -> None:
    folder = Path(bench.__file__).parent / "contestants"
    assert [name for name, entry in CONTESTANTS.items() if not (folder / f"{entry.module}.py").exists()] == []


def test_the_gate_lets_one_round_through_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "commands").open("w+") as commands, (tmp_path / "answers").open("w+") as answers:
        commands.write(f"round\nround {tmp_path / 'weights'}\nfinish\n")
        commands.seek(0)
        gate = Gate(commands, answers)
        for number in range(2):
            gate.wait()
            gate.done(lambda: {"w": torch.tensor([float(number)])}, 5)  # noqa: B023
        with pytest.raises(Finished):
            gate.wait()
        answers.seek(0)
        heard = [json.loads(line) for line in answers]
    assert [answer["event"] for answer in heard] == ["ready", "round", "round"]
    assert {answer["steps"] for answer in heard[1:]} == {5}
    assert torch.load(tmp_path / "weights")["w"].item() == 1.0


def test_work_survives_the_trip_to_a_contestant() -> None:
    work = Work("resnet8", 20, 2, cohort_size=4)
    assert Work.read(work.write()) == work


def test_steps_are_those_of_the_shards() -> None:
    work = Work("features", 30)
    assert [len(shard) for shard in work.shards()] == [2] * 30
    assert work.steps() == 30
    assert work.order_free().steps() == 60


def test_quick_is_one_worker_and_one_case_of_two(tmp_path: Path) -> None:
    cases = bench.Bench(bench.parse(["--quick", "--out", str(tmp_path)])).cases()
    assert [case for case in cases if case[2] == 2] == [("cnn", 500, 2)]
    assert {case[1] for case in cases} == {10, 500}


def test_cohorts_are_as_large_as_workers_allow(tmp_path: Path) -> None:
    made = bench.Bench(bench.parse(["--out", str(tmp_path)]))
    assert [made.cohort_size(*case) for case in ((10, 1), (500, 1), (500, 2), (2000, 1), (3, 2))] == [
        10, 500, 250, 500, 2,
    ]  # fmt: skip
    given = bench.Bench(bench.parse(["--out", str(tmp_path), "--cohort-size", "32"]))
    assert given.cohort_size(500, 1) == 32


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--rounds", "2"])
    assert "--rounds must be 3 or more" in capsys.readouterr().err
