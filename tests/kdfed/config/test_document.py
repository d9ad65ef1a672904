from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdfed.config.document import MOST_LEVELS, MOST_VALUES, DocumentError, dump, parse
from kdfed.errors import ConfigError
from simulations.experiments import load_experiment
from simulations.study import load_study

TAGS = [
    "!!bool x", "!!int ''", "!!float x", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a: 1]",
    "!!str 020", "!!python/object/apply:os.getcwd []", "!own x", "! x",
]  # fmt: skip
BOMB = "{a: &a [x, x, x, x, x, x, x, x, x, x], b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a], "
BOMB += "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b], d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c], "
BOMB += "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d], f: [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]}"
BAD = [
    *((tag, "expected a value without a tag") for tag in TAGS),
    ("&a [*a]", "does not contain itself"),
    ("&a {b: *a}", "does not contain itself"),
    ("{<<: &a {<<: *a}}", "does not contain itself"),
    (BOMB, f"expected at most {MOST_VALUES} values"),
    ("{? " + "a." * 2000 + "b : 1}", "expected at most 30 levels"),
    ("[" * 3000, "expected at most 30 levels"),
    ('"\\0"', "without control characters"),
    ('"\\ud800"', "without control characters"),
    ("020", "write 20, or '020' for the word"),
    ("-08", "write -8, or '-08' for the word"),
    ("1:30", "to the base 60"),
    ("1:30.5", "to the base 60"),
    ("yes", "write true, or 'yes' for the word"),
    ("OFF", "write false, or 'OFF' for the word"),
    ("9" * 5000, r"expected a number, got '9+\.\.\. \(5002 characters\)"),
    ("{<<: 3}", "expected a mapping to merge"),
    ("{a: 1, a: 2}", "the key 'a' stands twice"),
    ("{<<: {a: 1}, <<: {b: 1}}", "write <<: "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "message"), BAD, ids=lambda value: value[:20])
def test_what_yaml_would_surprise_with_is_one_mistake_everywhere(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DocumentError, match=message):
        parse(text)
    file = tmp_path / "bad.yaml"
    file.write_text(f"name: x\nthreads: {text}\n")
    good = tmp_path / "good.yaml"
    good.write_text("name: x\narms: {cold: {}}\n")
    for read in (
        lambda: load_experiment(file),
        lambda: load_experiment(good, [f"threads={text}"]),
        lambda: load_study(file),
        lambda: load_study(good, [f"threads={text}"]),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read()
        assert len(caught.value.mistakes) == 1
        assert len(str(caught.value)) < 1500


def test_harmless_readings_stay() -> None:
    text = "[1_000, 0x1F, 0b11, -5, +5, 0, 1e-3, 1e3, .5, 2., 2020-01-01, ~, true, '020', '1:30', y, 0o17]"
    assert parse(text) == [
        *(
            1000,
            31,
            3,
            -5,
            5,
            0,
            0.001,
            1000.0,
            0.5,
            2.0,
            "2020-01-01",
            None,
            True,
            "020",
            "1:30",
            "y",
            "0o17",
        )
    ]
    assert parse("[.inf, -.Inf]") == [math.inf, -math.inf]
    assert math.isnan(parse(".nan"))


def test_an_explicit_key_wins_over_a_merged_one_and_the_first_merge_over_the_second() -> None:
    both = "{b: &b {max: 3, rule: first}, c: {<<: *b, max: 4}, d: {max: 4, <<: *b}}"
    assert parse(both)["c"] == parse(both)["d"] == {"max": 4, "rule": "first"}
    assert parse("{<<: [{a: 1, b: 1}, {a: 2, c: 2}], c: 3}") == {"a": 1, "b": 1, "c": 3}
    assert list(parse("{<<: {cold: 1, warm: 2}, cold: 3}")) == ["cold", "warm"]


def test_a_merge_key_works_in_a_file_and_in_set(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("name: x\nrounds: {<<: &b {horizon: 3, why: quick}, horizon: 4}\narms: {cold: {}}\n")
    rounds = load_experiment(file).rounds
    assert (rounds.horizon, rounds.why) == (4, "quick")
    assert load_experiment(file, ["rounds={<<: {horizon: 5}, why: slow}"]).rounds.horizon == 5


def test_levels_up_to_the_bound_are_read() -> None:
    assert parse("[" * MOST_LEVELS + "]" * MOST_LEVELS) != []
    with pytest.raises(DocumentError, match="levels"):
        parse("[" * MOST_LEVELS + "1" + "]" * MOST_LEVELS, levels=1)


WORDS = [
    *(
        "08",
        "020",
        "yes",
        "No",
        "1:30",
        "0:30",
        "1e3",
        "2020-01-01",
        "<<",
        "=",
        "~",
        "null",
        "",
        "true",
        "0x1F",
    ),
    *(
        "1_000",
        ".inf",
        "a: b",
        "- x",
        "#c",
        "'q'",
        '"',
        "x\ny",
        "+1",
        "---",
        "@b",
        "!t",
        "&a",
        "*a",
        "é" * 200,
    ),
]


def test_words_are_read_back_as_they_were_written() -> None:
    values = {"words": WORDS, **dict.fromkeys(WORDS, 1), "numbers": [1, 0.5, 1e-5, True, None]}
    assert parse(dump(values)) == values


@pytest.mark.parametrize("key", ["", " ", "a\0b", "a\udcffb"])
def test_a_key_of_set_is_a_word(tmp_path: Path, key: str) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("name: x\narms: {cold: {}}\n")
    with pytest.raises(ConfigError, match="1 mistake\n  expected key=value"):
        load_experiment(file, [f"{key}=1"])


@pytest.mark.parametrize(
    "assignment",
    [
        *(
            "name={}",
            "{}=1",
            "model.name={}",
            "data.source={}",
            "start={}",
            "partition.kind={}",
            "threads={}",
        ),
        *("arms.cold.start={}", "model.options.width={}", "model.options.{}=3", "targets=[{}]", "{}"),
        *("baseline={}", "model.name=torchvision:{}", "model.name=a:{}", "data.classes=[{}, {}]"),
        *("device=cuda:1{}", "arms.{}={{}}"),
    ],
)
def test_a_long_value_is_not_repeated_whole(tmp_path: Path, assignment: str) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("name: x\narms: {cold: {}}\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, [assignment.format(*["z" * 100_000] * 2)])
    assert len(str(caught.value)) < 2500


def test_ten_thousand_mistakes_are_not_all_listed(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text("name: x\narms: {cold: {}}\n" + "".join(f"k{i}: 1\n" for i in range(300)))
    with pytest.raises(ConfigError, match="and 200 more") as caught:
        load_experiment(file)
    assert len(caught.value.mistakes) == 300
