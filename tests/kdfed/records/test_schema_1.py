"""A folder that the first version wrote is counted by today's rules, and left as it is.

``schema_1`` holds the records of a run of that version: ten-class digits, 12 rounds at most, arms that stop
at their targets.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdfed.errors import RunFolderError
from kdfed.records import RoundRecord, RunFolder, Summary
from kdfed.records.reading import RecordedRun

FIRST = Path(__file__).parent / "schema_1"
OLD: dict[str, Any] = json.loads((FIRST / "summary.json").read_text())

COLD = [1, 5, 10, 11, 15, 15, 14, 22, 19, 20, 21, 23, 25]
"""Of seed 0, right answers of 30, by round."""


@pytest.fixture
def folder(tmp_path: Path) -> RecordedRun:
    shutil.copytree(FIRST, tmp_path / "run")
    return RecordedRun(tmp_path / "run")


def _run(summary: dict[str, Any], arm: str, seed: int, target: str) -> dict[str, Any]:
    (found,) = [r for r in summary["runs"] if (r["arm"], r["seed"], r["target"]) == (arm, seed, target)]
    return found


def _with(folder: RecordedRun, **changes: Any) -> None:
    (folder.path / "summary.json").write_text(json.dumps({**OLD, **changes}))


def test_it_is_counted_anew_and_says_so(folder: RecordedRun) -> None:
    summary = folder.read_summary()
    assert summary["schema"] == 2
    assert "Recorded by the first version of kdfed, and counted anew by today's rules" in summary["note"]
    assert Summary.model_validate(summary).model_dump(by_alias=True) == summary
    assert summary["targets"] == ["0.6", "90%-of-converged", "99%-of-converged"]
    assert summary["horizon"]["rounds"] == 12
    assert (summary["evaluation_examples"], summary["server_labels"]) == (None, None)
    assert (summary["engine"], summary["partitions"]) == (OLD["engine"], OLD["partitions"])


def test_nothing_in_the_folder_changes(folder: RecordedRun) -> None:
    folder.read_summary()
    folder.read_summary(folder.read_experiment(), folder.read_rounds())
    assert {file.name: file.read_bytes() for file in folder.path.iterdir()} == {
        file.name: file.read_bytes() for file in FIRST.iterdir()
    }


def test_a_round_that_was_billed_below_the_target_is_billed_no_more(folder: RecordedRun) -> None:
    """Target 0.6, 18 of 30. From round 6 on three evaluations have (14 + 22 + 19) / 3 = 18.3 right, and the
    model of round 6 has 14. Round 7 has 22, and 20.3 with the next two."""
    assert [30 * r.accuracy for r in folder.read_rounds()[: len(COLD)]] == pytest.approx(COLD)
    old = next(run for run in OLD["runs"] if (run["arm"], run["seed"], run["target"]) == ("cold", 0, "0.6"))
    assert old["rounds_to_target"] == 6
    run = _run(folder.read_summary(), "cold", 0, "0.6")
    assert run["rounds_to_target"] == 7
    assert run["hit"]["accuracy"] == pytest.approx(22 / 30)
    assert run["first_hit"]["round"] == 7


def test_shares_of_the_best_are_shares_of_what_is_converged_to(folder: RecordedRun) -> None:
    """The last ten of seed 0 have 18.5 of 30 right on average; the best has 25."""
    run = _run(folder.read_summary(), "cold", 0, "90%-of-converged")
    assert run["converged_accuracy"] == pytest.approx(sum(COLD[3:]) / 300)
    assert run["target_accuracy"] == pytest.approx(0.9 * sum(COLD[3:]) / 300)


def test_an_arm_that_stopped_at_its_targets_is_no_miss(folder: RecordedRun) -> None:
    """In seed 1 it ended in round 11; what it converges to is unknown."""
    summary = folder.read_summary()
    stopped = {(run["arm"], run["seed"]): run["stopped"] for run in summary["runs"]}
    assert stopped["cold", 0] == "horizon"
    assert stopped["consolidated", 1] == "target"
    assert _run(summary, "consolidated", 1, "0.6")["converged_accuracy"] is None
    assert all(set(entry["censored"].values()) == {0} for entry in summary["comparisons"])


def test_two_seeds_are_points_where_the_first_version_gave_an_interval(folder: RecordedRun) -> None:
    entry = next(entry for entry in OLD["comparisons"] if entry["cost"] == "rounds")
    assert entry["saved_percent"]["low"] < entry["saved_percent"]["high"]
    for found in folder.read_summary()["comparisons"]:
        assert (found["saved_percent"]["low"], found["saved_percent"]["high"]) == (None, None)
        assert found["verdict"] is None


def test_old_lines_have_no_validation_accuracy_and_are_read(folder: RecordedRun) -> None:
    records = folder.read_rounds(folder.read_experiment())
    assert {record.validation_accuracy for record in records} == {None}
    again = [RoundRecord.from_json(record.to_json()) for record in records]
    assert again == records


def test_the_old_experiment_reads_in_todays_words(folder: RecordedRun) -> None:
    experiment = folder.read_experiment()
    assert experiment.horizon == 12
    assert experiment.rounds.why == "the most rounds of an earlier release"
    assert experiment.targets == (0.6, "90%-of-converged")
    assert experiment.data.splits.evaluation == 0
    assert experiment.rounds.plateau.rounds == 20


def test_why_a_run_could_not_go_on_is_still_told(folder: RecordedRun) -> None:
    failure = {"arm": "consolidated", "seed": 1, "phase": "rounds", "reason": "no power"}
    _with(folder, failures=[failure])
    lines = (FIRST / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (folder.path / "outcomes.jsonl").write_text("".join(lines[:3]))
    summary = folder.read_summary()
    assert summary["failures"] == [failure]
    assert _run(summary, "consolidated", 1, "0.6")["stopped"] == "failed"
    assert {entry["failed"] for entry in summary["comparisons"]} == {1}


def test_a_run_of_which_nothing_was_recorded_is_of_the_first_version_too(folder: RecordedRun) -> None:
    _with(folder, runs=[])
    (folder.path / "rounds.jsonl").write_text("")
    assert folder.read_summary()["runs"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": 3}, "engine: .*got 3"),
        ({"partitions": [{"seed": 0}]}, r"partitions\.0\.participants: expected this key"),
        ({"failures": "many"}, "failures: .*got 'many'"),
        ({"failures": [{"arm": "<b>"}]}, r"failures\.0\.arm: .*got '<b>'"),
        ({"partitions": [{**OLD["partitions"][0], "seed": 7}]}, r"partitions\.0\.seed: expected one of 0, 1"),
    ],
)
def test_a_damaged_one_is_refused_and_the_entry_is_named(
    folder: RecordedRun, changes: dict[str, Any], message: str
) -> None:
    _with(folder, **changes)
    with pytest.raises(RunFolderError, match=rf"summary\.json: .*{message}"):
        folder.read_summary()


def test_damaged_rounds_of_it_are_refused(folder: RecordedRun) -> None:
    text = (folder.path / "rounds.jsonl").read_text()
    (folder.path / "rounds.jsonl").write_text(text.replace('"round": 3', '"round": 4', 1))
    with pytest.raises(RunFolderError, match=r"rounds\.jsonl, line 4: round: expected round 3"):
        folder.read_summary()


def test_a_summary_of_today_that_lost_its_schema_is_not_taken_for_it(folder: RecordedRun) -> None:
    today = folder.read_summary()
    del today["schema"], today["controls"]
    (folder.path / "summary.json").write_text(json.dumps(today))
    with pytest.raises(RunFolderError, match="controls: expected this key"):
        folder.read_summary()


def test_another_experiment_does_not_go_on_in_such_a_folder(folder: RecordedRun) -> None:
    """Its arms ran by other rules."""
    experiment = folder.read_experiment()
    rounds = experiment.rounds.model_copy(update={"horizon": 13})
    with pytest.raises(RunFolderError, match="holds another experiment"):
        RunFolder.open_for(folder.path, experiment.model_copy(update={"rounds": rounds}))
