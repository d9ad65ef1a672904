from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from kdfed.closed_form import Refit
from kdfed.records import Absent, Outcome, RoundRecord

RECORD = RoundRecord(
    arm="cold",
    seed=3,
    round=2,
    exchanges=2,
    phase="rounds",
    accuracy=0.1 + 0.2,
    test_accuracy=0.25,
    loss=2.302585092994046,
    participant_uploads=9,
    bytes_up=10**12,
    bytes_down=5,
    local_steps=70,
    answered=4,
    absent=(Absent(4, "error reply: naïve\n{}"),),
    seconds=1.5,
)


def test_a_record_reads_back_equal():
    assert RoundRecord.from_json(RECORD.to_json()) == RECORD


def test_a_record_is_one_line_with_the_keys_of_the_contract():
    line = RECORD.to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == [
        *("arm", "seed", "round", "exchanges", "phase", "accuracy", "test_accuracy", "loss"),
        *("participant_uploads", "bytes_up", "bytes_down", "local_steps", "answered", "absent", "seconds"),
        "validation_accuracy",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_does_not_know_become_null(value):
    record = replace(RECORD, loss=value, test_accuracy=value, validation_accuracy=value)
    assert (record.loss, record.validation_accuracy) == (None, None)
    assert json.loads(record.to_json())["test_accuracy"] is None
    assert RoundRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("accuracy", None), ("accuracy", "0.5"), ("seed", 1.5), ("round", True), ("phase", "end")),
        *(("absent", None), ("absent", [3]), ("absent", [{"participant": "4", "reason": ""}])),
    ],
)
def test_a_value_of_another_type_is_refused_and_its_key_named(key, value):
    with pytest.raises(ValueError, match=rf"^{key}[^\n]*got [^\n]*$"):
        RoundRecord.from_json(json.dumps(json.loads(RECORD.to_json()) | {key: value}))


def test_a_line_of_the_first_version_has_no_validation_accuracy():
    line = json.loads(replace(RECORD, validation_accuracy=0.5).to_json())
    assert RoundRecord.from_json(json.dumps(line)).validation_accuracy == 0.5
    del line["validation_accuracy"]
    assert RoundRecord.from_json(json.dumps(line)) == RECORD
    with pytest.raises(ValueError, match="expected an object with the keys"):
        RoundRecord.from_json(json.dumps({**line, "rule": "first"}))


def test_an_outcome_of_the_first_version_ended_at_the_horizon():
    outcome = Outcome("cold", 0, "horizon", "ab" * 32, None, 5, {"torch": "2"})
    old = {**json.loads(outcome.to_json()), "stopped": "max-rounds", "targets": [0.5]}
    assert Outcome.from_json(outcome.to_json()) == Outcome.from_json(json.dumps(old)) == outcome


def test_an_outcome_keeps_what_became_of_refits_and_an_old_one_has_none():
    solved = Refit("before-teachers", "ridge", 5, 280, 3.16, "penalty: gcv")
    refits = [solved, Refit(3, "lda", why="nobody answered")]
    outcome = Outcome("solved", 0, "horizon", "ab" * 32, refits=refits)
    assert Outcome.from_json(outcome.to_json()) == outcome
    old = {key: value for key, value in json.loads(outcome.to_json()).items() if key != "refits"}
    assert Outcome.from_json(json.dumps(old)).refits == []
    with pytest.raises(ValueError, match=r"refits\.0\.head"):
        Outcome.from_json(json.dumps({**old, "refits": [{"at": 0}]}))


def test_a_line_with_other_keys_is_refused():
    with pytest.raises(ValueError, match="expected an object with the keys absent, accuracy"):
        RoundRecord.from_json('{"arm": "cold"}')
