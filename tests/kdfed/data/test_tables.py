from __future__ import annotations

import io
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdfed.data import Dataset, load_source, prepare
from kdfed.errors import DataError
from kdfed.settings import ColumnSettings, DataSettings, SplitSettings
from tests.kdfed.data.written import IMAGE_FEATURES, NAMES, png, write, write_images

CIFAR10 = Path(__file__).parents[3] / "../shared/data/cifar10"


def load(path: Path, **settings: Any) -> Dataset:
    return load_source(DataSettings(source=f"parquet:{path}", **settings))


def test_class_names_come_from_the_files_metadata_not_from_the_labels_present(tmp_path: Path) -> None:
    """Of cat, dog and owl the file holds no owl; there are three classes all the same."""
    data = load(write_images(tmp_path / "a.parquet", 6))
    assert data.class_names == ("cat", "dog", "owl")
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.inputs.shape == (6, 1, 4, 4)
    assert data.inputs[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert data.official_test is None


def test_a_limit_decodes_only_the_rows_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image as image

    opened = []
    real = image.open
    monkeypatch.setattr(image, "open", lambda *a, **k: opened.append(1) or real(*a, **k))
    data = load(write_images(tmp_path / "a.parquet", 20), limit=5)
    assert len(data) == 5
    assert len(opened) <= 2 * 5
    assert (data.inputs[:, 0, 0, 0] // 10 % 2 == data.labels).all()


def test_colour_images_keep_their_channels_in_order(tmp_path: Path) -> None:
    data = load(write_images(tmp_path / "a.parquet", 3, mode="RGB"))
    assert data.inputs[2, :, 0, 0].tolist() == [20, 0, 235]


def test_images_of_differing_sizes_need_a_shape(tmp_path: Path) -> None:
    images = [{"bytes": png(9, (4, 4)), "path": None}, {"bytes": png(9, (5, 4)), "path": None}]
    path = write(tmp_path / "a.parquet", {"image": images, "label": [0, 1]}, IMAGE_FEATURES)
    with pytest.raises(
        DataError, match=r"row 0 is \(1, 4, 4\).*row 1 is \(1, 4, 5\); set data\.shape"
    ) as caught:
        load(path)
    assert caught.value.key == "data.shape"
    assert load(path, shape=(1, 6, 6)).inputs.shape == (2, 1, 6, 6)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    images = [{"bytes": png(9), "path": None}, {"bytes": b"no image", "path": None}]
    path = write(tmp_path / "a.parquet", {"image": images, "label": [0, 1]}, IMAGE_FEATURES)
    with pytest.raises(DataError, match="cannot decode the image in row 1"):
        load(path)


def test_an_image_without_bytes_or_file_is_named(tmp_path: Path) -> None:
    images = pa.array(
        [{"bytes": None, "path": "gone.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    path = write(tmp_path / "a.parquet", {"image": images, "label": [0]}, IMAGE_FEATURES)
    with pytest.raises(DataError, match="neither bytes nor the path of a file"):
        load(path)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(stream, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None}]
    path = write(tmp_path / "a.parquet", {"image": images, "label": [0]}, IMAGE_FEATURES)
    with pytest.raises(DataError, match="8 bits a channel"):
        load(path)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs the CIFAR-10 parquet files in ../shared/data/cifar10")
def test_real_cifar10_is_read_with_its_names_and_test_part() -> None:
    settings = DataSettings(
        source=f"parquet:{CIFAR10}",
        limit=1200,
        splits=SplitSettings(test="official", validation=0.1, transfer=0.2),
    )
    data = prepare(settings)
    assert data.input_shape == (3, 32, 32)
    assert data.dataset.class_names[:2] == ("airplane", "automobile")
    assert [len(part) for part in vars(data.splits).values()] == [200, 200, 100, 200, 500]
    assert abs(np.bincount(data.dataset.labels) - 120).max() <= 2


def test_feature_columns_are_all_numeric_ones_but_the_label(tmp_path: Path) -> None:
    columns = {"height": [1, 2], "name": ["x", "y"], "weight": [0.5, 1.5], "label": [1, 0]}
    data = load(write(tmp_path / "a.parquet", columns), classes=2)
    assert data.inputs.tolist() == [[1, 0.5], [2, 1.5]]
    assert data.inputs.dtype == np.float32
    assert not data.is_images


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1, 2], "b": [3, 4], "c": [0, 1]})
    data = load(path, classes=2, columns=ColumnSettings(inputs=("b", "a"), label="c"))
    assert data.inputs.tolist() == [[3, 1], [4, 2]]
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_label_words_get_the_place_they_have_in_classes(tmp_path: Path, kind: pa.DataType) -> None:
    """Alphabetical order of what is present would make dog 0; in classes it is 2."""
    labels = pa.array(["owl", "dog", "owl"], pa.string()).cast(kind)
    path = write(tmp_path / "a.parquet", {"x": [1, 2, 3], "label": labels})
    assert load(path, classes=("owl", "cat", "dog")).labels.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("columns", "settings", "key", "message"),
    [
        ({"x": [1], "label": ["a"]}, {}, "data.classes", "does not declare its classes"),
        ({"x": [1], "label": ["a"]}, {"classes": 2}, "data.classes", "holds names and not indices"),
        ({"x": [1], "label": ["a"]}, {"classes": ("b", "c")}, "data.classes", r"holds the classes \['a'\]"),
        ({"x": [1], "label": [3]}, {"classes": 3}, "data.classes", "labels from 0 to 2.*got 3 in row 0"),
        ({"x": [1], "label": [0]}, {}, "data.classes", "to their number"),
        ({"x": [1], "y": [0]}, {"classes": 1}, "data.columns.label", r"set data\.columns\.label"),
        ({"x": ["w"], "label": [0]}, {"classes": 1}, "data.columns.inputs", r"set data\.columns\.inputs"),
        ({"x": [None, 1.0], "label": [0, 0]}, {"classes": 1}, "data.columns.inputs", "1 are missing"),
        ({"x": [1, 1], "label": [0, None]}, {"classes": 1}, "data.source", "a label in every row"),
        ({"x": [1], "label": [0.5]}, {"classes": 1}, "data.source", "whole numbers as labels"),
        (
            {"x": [1], "label": [0]},
            {"classes": 1, "columns": ColumnSettings(label="lable")},
            "data.columns",
            "no column 'lable'",
        ),
        (
            {"x": ["w"], "label": [0]},
            {"classes": 1, "columns": ColumnSettings(inputs="x")},
            "data.columns.inputs",
            "expected numbers in the feature column 'x'",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], key: str, message: str
) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=message) as caught:
        load(path, **settings)
    assert caught.value.key == key


def test_two_columns_of_classes_need_a_choice(tmp_path: Path) -> None:
    """As in CIFAR-100, which has fine and coarse labels."""
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"_type": "ClassLabel", "names": ["a", "b"]},
        "coarse_label": {"_type": "ClassLabel", "names": ["c"]},
    }
    images = [{"bytes": png(row), "path": None} for row in range(2)]
    columns = {"img": images, "fine_label": [0, 1], "coarse_label": [0, 0]}
    path = write(tmp_path / "a.parquet", columns, features)
    with pytest.raises(DataError, match="got 2 columns of classes"):
        load(path)
    assert load(path, columns=ColumnSettings(label="fine_label")).class_names == ("a", "b")


def numbers(**columns: Any) -> dict[str, Any]:
    return {"a": [float(i) for i in range(40)], "kind": [i % 3 for i in range(40)], **columns}


def test_a_table_can_have_numbers_as_labels(tmp_path: Path) -> None:
    price = [1.5 * i for i in range(40)]
    file = write(tmp_path / "t.parquet", numbers(price=price))
    data = load(file, task="regression", columns=ColumnSettings(label="price"))
    assert data.labels.dtype == np.float32
    assert data.labels.tolist() == price
    assert (data.inputs.shape, data.class_names) == ((40, 2), ())


def test_a_column_of_classes_is_not_the_label_of_a_regression(tmp_path: Path) -> None:
    declared = {"kind": {"_type": "ClassLabel", "names": NAMES}}
    file = write(tmp_path / "t.parquet", numbers(label=list(range(40))), declared)
    data = load(file, task="regression")
    assert data.labels.tolist() == list(range(40))
    assert data.inputs.shape == (40, 1)
    bare = write(tmp_path / "u.parquet", numbers(), declared)
    with pytest.raises(DataError, match=r"set data.columns.label"):
        load(bare, task="regression")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([None, *range(39)], r"expected a label in every row.*1 are missing"),
        (["a", *"b" * 39], r"expected numbers as labels.*'regression'"),
        ([float("nan"), *map(float, range(39))], r"expected a finite label.*got nan in row 0"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    file = write(tmp_path / "t.parquet", numbers(label=labels))
    with pytest.raises(DataError, match=message):
        load(file, task="regression")


def test_features_of_nested_columns_say_nothing(tmp_path: Path) -> None:
    """As the Hub's library writes lists of structs: a list, or a mapping without a ``_type``."""
    features = {"boxes": [{"x": {"_type": "Value"}}], "place": {"lat": {"_type": "Value"}}}
    columns = {"x": [1, 2], "label": [0, 1]}
    assert load(write(tmp_path / "a.parquet", columns, features), classes=2).labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["x", "label", "other"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str, form: str) -> None:
    double = unicodedata.normalize(form, f"{name} \u00e9")
    table = pa.table([pa.array([1, 2])] * 4, names=["x", "label", f"{name} \u00e9", double])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"\['{name} \u00e9'\] more than once"):
        load(tmp_path / "a.parquet", classes=3)


@pytest.mark.parametrize("inputs", ["label", ("x", "label"), ("x", "x"), ()])
@pytest.mark.parametrize("label", [None, "label"])
def test_inputs_that_are_the_label_or_doubled_or_none_are_refused(
    tmp_path: Path, inputs: Any, label: str | None
) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1, 2], "label": [0, 1]})
    with pytest.raises(DataError, match="one or more different input columns") as caught:
        load(path, classes=2, columns=ColumnSettings(inputs=inputs, label=label))
    assert caught.value.key == "data.columns.inputs"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["31", "40", "?", "52"], "text among numbers, '\\?' in row 2"),
        (["?", "?", "1e3", None], "text among numbers, '\\?' in row 0"),
        (["31", "40", "41", "52"], "numbers as text, '31' in row 0"),
    ],
)
def test_a_column_that_is_text_by_mistake_is_not_dropped_in_silence(
    tmp_path: Path, kind: pa.DataType, values: list[str | None], message: str
) -> None:
    age = pa.array(values, pa.string()).cast(kind)
    path = write(tmp_path / "a.parquet", {"x": [1, 2, 3, 4], "age": age, "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=f"column 'age' holds {message}") as caught:
        load(path, classes=2)
    assert caught.value.key == "data.columns.inputs"
    assert load(path, classes=2, columns=ColumnSettings(inputs="x")).inputs.shape == (4, 1)


def test_an_empty_column_is_not_dropped_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1, 2], "age": pa.nulls(2), "label": [0, 1]})
    with pytest.raises(DataError, match="column 'age', all of them are missing"):
        load(path, classes=2)


def test_decimal_columns_are_numbers(tmp_path: Path) -> None:
    price = [Decimal("1.5"), Decimal("2.25")]
    path = write(tmp_path / "a.parquet", {"x": [1, 2], "price": price, "label": [0, 1]})
    assert load(path, classes=2).inputs.tolist() == [[1, 1.5], [2, 2.25]]
    data = load(path, task="regression", columns=ColumnSettings(inputs="x", label="price"))
    assert data.labels.tolist() == [1.5, 2.25]


def test_rows_are_named_within_their_file(tmp_path: Path) -> None:
    write(tmp_path / "d/a.parquet", {"x": [1.0, 2.0], "label": [0, 1]})
    write(tmp_path / "d/b.parquet", {"x": [1.0, float("nan")], "label": [0, 1]})
    with pytest.raises(DataError, match=r"column 'x' of .*d, 1 are missing.*in row 1 of b\.parquet"):
        load(tmp_path / "d", classes=2)
    write(tmp_path / "d/b.parquet", {"x": [1.0, 1e300], "label": [0, 1]})
    with pytest.raises(DataError, match=r"infinite in float32, the first in row 1 of b\.parquet"):
        load(tmp_path / "d", classes=2)
    write(tmp_path / "d/b.parquet", {"x": [1.0, 2.0], "label": [None, 1]})
    with pytest.raises(DataError, match=r"1 are missing, the first in row 0 of b\.parquet"):
        load(tmp_path / "d", classes=2)
    write(tmp_path / "d/b.parquet", {"x": [1.0, 2.0], "label": [0, 7]})
    with pytest.raises(DataError, match=r"got 7 in row 1 of b\.parquet"):
        load(tmp_path / "d", classes=2)


def test_a_bomb_among_the_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdfed.data import images

    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    pictures = [{"bytes": png(9), "path": None}, {"bytes": png(9, (40, 40)), "path": None}]
    path = write(tmp_path / "a.parquet", {"image": pictures, "label": [0, 1]}, IMAGE_FEATURES)
    with pytest.raises(DataError, match=r"image in row 1 of column 'image'.*1 to 1000 pixels, got 40 x 40"):
        load(path, shape=(1, 4, 4))


def test_an_image_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x", b"y"], "label": [0, 1]}, IMAGE_FEATURES)
    with pytest.raises(DataError, match=r"row 0 of column 'image'.*expected bytes and path, got bytes"):
        load(path)


def test_label_words_and_columns_are_the_same_in_any_unicode_form(tmp_path: Path) -> None:
    one, other = "caf\u00e9", "cafe\u0301"
    path = write(tmp_path / "a.parquet", {other: [1, 2, 3], "kind": [one, other, "tea"]})
    columns = ColumnSettings(inputs=one, label="kind")
    assert load(path, classes=(one, "tea"), columns=columns).labels.tolist() == [0, 0, 1]
    assert load(path, classes=("tea", other), columns=columns).labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_table_without_rows_says_so(tmp_path: Path, labelled: bool) -> None:
    path = write(tmp_path / "t.parquet", {"a": np.zeros(0), "label": np.zeros(0, int)})
    with pytest.raises(DataError, match=r"expected examples in .*t\.parquet, got none"):
        load_source(DataSettings(source=f"parquet:{path}", classes=2), labelled=labelled)
