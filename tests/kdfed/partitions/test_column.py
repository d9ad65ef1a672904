from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdfed.data import Dataset, PreparedData, prepare
from kdfed.errors import ConfigError, DataError
from kdfed.partition import make_partition, partition_of
from kdfed.partitions import ColumnPartition
from kdfed.settings import ColumnSettings, DataSettings
from simulations.experiments import build_experiment
from tests.kdfed.data.written import IMAGE_FEATURES, png, write

USERS = ["mia", "bo", "Zoë", "al"]
ROWS = 200


def table(path: Path, rows: int = ROWS, **columns: Any) -> Path:
    """Write rows of two features and two classes that four users hold in turn."""
    draw = np.random.default_rng(0)
    given = {
        "a": draw.normal(size=rows),
        "b": draw.normal(size=rows),
        "label": np.arange(rows) // 2 % 2,
        "user": [USERS[row % 4] for row in range(rows)],
        **columns,
    }
    return write(path, given)


def data_of(path: Path, **keys: Any) -> PreparedData:
    columns = ColumnSettings(inputs=("a", "b"))
    return prepare(DataSettings(**{"source": f"parquet:{path}", "columns": columns, "classes": 2, **keys}))


def experiment(path: Path, **partition: Any) -> dict[str, Any]:
    return {
        "name": "users",
        "data": {"source": f"parquet:{path}", "columns": {"inputs": ["a", "b"]}, "classes": 2},
        "partition": {"kind": "column", "column": "user", **partition},
        "model": {"name": "mlp"},
        "arms": {"cold": {"start": "random"}},
    }


def test_each_value_in_its_order_is_one_participant_that_holds_all_of_its_training_examples(
    tmp_path: Path,
) -> None:
    """The slow twin: a loop over the sorted names and the rows."""
    data = data_of(table(tmp_path / "t.parquet"))
    partition = partition_of(data, ColumnPartition(column="user"), 0)
    train = set(data.splits.train.tolist())
    expected = [
        [row for row in range(ROWS) if USERS[row % 4] == who and row in train] for who in sorted(USERS)
    ]
    assert [part.tolist() for part in partition.indices] == expected
    assert (partition.moved, partition.unused) == (0, 0)


def test_every_seed_deals_the_same(tmp_path: Path) -> None:
    data = data_of(table(tmp_path / "t.parquet"))
    one, other = (partition_of(data, ColumnPartition(column="user"), seed) for seed in (0, 1))
    assert one.examples.tolist() == other.examples.tolist()


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ([10, 9, 2, 10], ["2", "9", "10"]),
        ([3.0, 1.0, 2.0, 3.0], ["1", "2", "3"]),
        ([True, False, True, True], ["0", "1"]),
        ([datetime.date(2020, 1, 2), datetime.date(1999, 1, 1)] * 2, ["1999-01-01", "2020-01-02"]),
        (["b", "a", "10", "9"], ["10", "9", "a", "b"]),
    ],
)
def test_numbers_are_in_the_order_of_numbers_and_texts_in_that_of_texts(
    tmp_path: Path, values: list[Any], order: list[str]
) -> None:
    path = table(tmp_path / "t.parquet", who=[values[row % 4] for row in range(ROWS)])
    data = data_of(path)
    held = partition_of(data, ColumnPartition(column="who"), 0)
    stored = data.dataset.values_of("who")  # type: ignore[misc]
    assert [{str(value) for value in stored[part]} for part in held.indices] == [{name} for name in order]


def test_two_unicode_forms_of_a_name_are_one_participant(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", user=["Zoe\u0308", "Zo\u00eb"] * (ROWS // 2))
    assert len(partition_of(data_of(path), ColumnPartition(column="user"), 0)) == 1


def test_rows_that_a_limit_draws_keep_their_value(tmp_path: Path) -> None:
    data = data_of(table(tmp_path / "t.parquet", a=np.arange(ROWS, dtype=float)), limit=80)
    rows = np.asarray(data.dataset.inputs[:])[:, 0].astype(int)
    assert data.dataset.values_of is not None
    assert data.dataset.values_of("user").tolist() == [USERS[row % 4] for row in rows]


def test_held_out_splits_are_those_of_any_other_partition(tmp_path: Path) -> None:
    data = data_of(table(tmp_path / "t.parquet"))
    held_out = np.setdiff1d(np.arange(ROWS), data.splits.train)
    partition = partition_of(data, ColumnPartition(column="user"), 0)
    assert np.intersect1d(partition.examples, held_out).size == 0
    assert len(partition.examples) + len(held_out) == ROWS


def test_an_experiment_has_as_many_participants_as_there_are_values(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    read = build_experiment(experiment(path))
    assert read.partition.participants == read.arm("cold").partition.participants == 4
    assert "participants: 4" in read.to_yaml()
    assert build_experiment(experiment(path, participants=4)) == read


def test_what_goes_with_the_number_of_participants_is_checked_against_that_number(tmp_path: Path) -> None:
    values = experiment(table(tmp_path / "t.parquet")) | {"server": {"strategy": "fedavg", "sampled": 5}}
    with pytest.raises(ConfigError, match="expected at most the 4 participants, got 5"):
        build_experiment(values)


def test_data_that_cannot_be_read_are_one_mistake_and_none_about_participants(tmp_path: Path) -> None:
    values = experiment(tmp_path / "gone.parquet") | {"server": {"strategy": "fedavg", "sampled": 5}}
    with pytest.raises(ConfigError, match="expected a parquet file") as caught:
        build_experiment(values)
    assert [mistake.key for mistake in caught.value.mistakes] == ["data.source"]


def test_a_mistake_in_the_data_section_is_said_without_reading_any(tmp_path: Path) -> None:
    values = experiment(table(tmp_path / "t.parquet"))
    values["data"]["limit"] = -1
    with pytest.raises(ConfigError) as caught:
        build_experiment(values)
    assert [mistake.key for mistake in caught.value.mistakes] == ["data.limit"]


def refusal(path: Path, columns: ColumnSettings | None = None, **partition: Any) -> DataError:
    data = data_of(path, **({} if columns is None else {"columns": columns}))
    with pytest.raises(DataError) as caught:
        partition_of(data, ColumnPartition(**{"column": "user", **partition}), 0)
    return caught.value


def test_another_number_of_participants_is_refused_with_how_many_values_there_are(tmp_path: Path) -> None:
    error = refusal(table(tmp_path / "t.parquet"), participants=5)
    assert error.key == "partition.participants"
    assert str(error) == "expected 4, one for each value of column 'user', got 5; remove it, or set it to 0"


def test_rare_values_are_refused_by_name_or_left_out_and_counted(tmp_path: Path) -> None:
    users = ["rare" if row < 6 else USERS[row % 4] for row in range(ROWS)]
    path = table(tmp_path / "t.parquet", user=users)
    error = refusal(path, min_examples=10)
    assert error.key == "partition.min-examples"
    assert "of column 'user' in the train split, 1 of 5 have fewer (rare has " in str(error)
    data = data_of(path)
    left = partition_of(data, ColumnPartition(column="user", min_examples=10, rare="leave-out"), 0)
    dropped = [row for row in data.splits.train if users[row] == "rare"]
    assert (len(left), left.unused, left.moved) == (4, len(dropped), 0)
    assert dropped
    assert np.intersect1d(left.examples, dropped).size == 0


def test_values_that_all_differ_are_refused_or_participants_of_one_example(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", user=np.arange(ROWS))
    error = refusal(path)
    assert "expected min-examples, 1, of each value" in str(error)
    assert str(error).endswith("has 0): lower data.splits, or set rare: leave-out")
    data = data_of(path)
    parts = partition_of(data, ColumnPartition(column="user", rare="leave-out"), 0)
    assert len(parts) == len(parts.examples) == len(data.splits.train)


def test_the_label_can_say_whose_an_example_is(tmp_path: Path) -> None:
    data = data_of(table(tmp_path / "t.parquet"))
    parts = partition_of(data, ColumnPartition(column="label"), 0)
    assert [set(data.dataset.labels[part]) for part in parts.indices] == [{0}, {1}]


def test_a_minimum_that_nobody_meets_is_refused(tmp_path: Path) -> None:
    error = refusal(table(tmp_path / "t.parquet"), min_examples=500, rare="leave-out")
    assert "with 500 examples in the train split, got" in str(error)


def test_who_is_in_the_sources_test_part_alone_is_no_participant(tmp_path: Path) -> None:
    table(tmp_path / "train-0.parquet")
    table(tmp_path / "test-0.parquet", 40, user=["tested"] * 39 + ["mia"])
    data = data_of(tmp_path, splits={"test": "official"})
    partition = partition_of(data, ColumnPartition(column="user"), 0)
    assert data.dataset.values_of is not None
    held = [set(data.dataset.values_of("user")[part]) for part in partition.indices]
    assert held == [{name} for name in sorted(USERS)]


@pytest.mark.parametrize(
    ("columns", "key", "said"),
    [
        ({"user": [None, "a"] * (ROWS // 2)}, "partition.column", "100 are missing, the first in row 0"),
        ({"user": [0.5, 1.0] * (ROWS // 2)}, "partition.column", "got 0.5 in row 0"),
        ({"user": [float("inf"), 1.0] * (ROWS // 2)}, "partition.column", "got inf in row 0"),
        ({"user": [1.0, float("nan")] * (ROWS // 2)}, "partition.column", "got nan in row 1"),
        ({"user": [datetime.datetime(2020, 1, 1)] * ROWS}, "partition.column", "got timestamp[us]"),
        ({"user": [[1], [2]] * (ROWS // 2)}, "partition.column", r"got list<"),
    ],
)
def test_columns_that_name_nobody_are_refused_with_the_row(
    tmp_path: Path, columns: dict[str, Any], key: str, said: str
) -> None:
    error = refusal(table(tmp_path / "t.parquet", **columns))
    assert error.key == key
    assert said in str(error)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    error = refusal(table(tmp_path / "t.parquet"), column="usr")
    assert error.key == "partition.column"
    assert "has no column 'usr'" in str(error)
    assert "'user'" in str(error)


def test_a_number_that_says_who_is_no_input_unless_it_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", user=np.arange(ROWS) % 4)
    error = refusal(path, ColumnSettings(label="label"))
    assert error.key == "data.columns.inputs"
    assert "would be an input too" in str(error)
    named = data_of(path, columns=ColumnSettings(inputs=("a", "user")))
    assert len(partition_of(named, ColumnPartition(column="user"), 0)) == 4


def test_a_source_without_columns_is_refused() -> None:
    with pytest.raises(DataError, match="expected a source with columns") as caught:
        partition_of(prepare(DataSettings(source="digits", limit=200)), ColumnPartition(column="user"), 0)
    assert caught.value.key == "partition.kind"


def test_images_can_be_dealt_by_a_column_that_is_no_input(tmp_path: Path) -> None:
    images = [{"bytes": png(row), "path": None} for row in range(60)]
    columns = {
        "image": images,
        "label": [row % 2 for row in range(60)],
        "writer": [row % 3 for row in range(60)],
    }
    path = write(tmp_path / "t.parquet", columns, IMAGE_FEATURES)
    partition = partition_of(
        prepare(DataSettings(source=f"parquet:{path}")), ColumnPartition(column="writer"), 0
    )
    assert [set(part % 3) for part in partition.indices] == [{0}, {1}, {2}]


def two_users(settings: DataSettings) -> Dataset:
    users = np.array(["u", "v"] * 50)
    inputs = np.random.default_rng(0).normal(size=(100, 3))
    wrong = np.arange(3)
    return Dataset(
        inputs,
        np.arange(100) // 2 % 2,
        ("a", "b"),
        values_of=lambda name: {"user": users, "short": wrong}[name],
    )


def test_a_function_of_ones_own_can_say_whose_examples_are() -> None:
    data = prepare(DataSettings(source=f"{__name__}:two_users"))
    partition = partition_of(data, ColumnPartition(column="user"), 0)
    assert [set(part % 2) for part in partition.indices] == [{0}, {1}]
    for column, said in (("short", r"got int64 \(3,\)"), ("gone", "KeyError")):
        with pytest.raises(DataError, match=said):
            partition_of(data, ColumnPartition(column=column), 0)


def test_a_deal_without_data_gives_each_label_its_own() -> None:
    owner = np.array([1, -1, 0, 1, 2])
    partition = make_partition(ColumnPartition(column="x", participants=3), owner, np.arange(5), 3, 0)
    assert [part.tolist() for part in partition.indices] == [[2], [0, 3], [4]]
    assert partition.unused == 1
