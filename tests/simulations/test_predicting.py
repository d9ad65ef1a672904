from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clients.client_app import app
from kdfed.config import Experiment
from kdfed.data import PreparedData, prepare
from kdfed.errors import ConfigError, DataError
from kdfed.models import build_model, state_of
from kdfed.records import RunFolder
from kdfed.saved import Card, load, save
from kdfed.settings import ColumnSettings, DataSettings, ModelSettings
from simulations.cli import main
from simulations.engines.inprocess import InProcessGrid
from simulations.predicting import predict_source, settings_of
from simulations.server_app import run_experiment
from tests.kdfed.data.written import write, write_images
from tests.small_backbones import TINY

MLP = ModelSettings(name="mlp", options={"hidden": (4,)})


def saved(folder: Path, **data: Any) -> tuple[Path, PreparedData]:
    """Save a model with random weights, fitted to data."""
    settings = DataSettings(**data)
    prepared = prepare(settings)
    model = build_model(MLP, prepared.input_shape, prepared.classes, seed=1)
    save(folder / "m.safetensors", state_of(model), Card.of(MLP, settings, prepared))
    return folder / "m.safetensors", prepared


def table(path: Path, rows: int = 80, **columns: Any) -> Path:
    draw = np.random.default_rng(0)
    given = {
        "a": draw.normal(size=rows),
        "b": draw.normal(size=rows),
        "label": np.arange(rows) % 2,
        **columns,
    }
    return write(path, {name: values for name, values in given.items() if values is not None})


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ----------------------------------------------------------------------------- the model that a run left


@pytest.mark.parametrize("model", [None, {"backbone": TINY}], ids=["mlp", "backbone"])
def test_a_saved_model_scores_on_raw_inputs_what_its_run_recorded(
    tiny: Callable[..., Experiment], tmp_path: Path, model: dict[str, Any] | None
) -> None:
    experiment = tiny(only="cold", **({} if model is None else {"model": model}))
    with RunFolder.open_for(tmp_path, experiment) as folder:
        run_experiment(InProcessGrid(app, 2), experiment, folder, "inprocess")
    last = folder.read_rounds()[-1]
    data, used = (
        prepare(experiment.data),
        load(folder.model_path("cold", 3), model="" if model is None else TINY, device="cpu"),
    )
    for part, recorded in (
        (data.splits.evaluation, last.accuracy),
        (data.splits.test, last.test_accuracy),
    ):
        outputs = used.outputs(np.asarray(data.dataset.inputs[part]))
        assert used.score(outputs, data.dataset.labels[part]) == recorded


# ----------------------------------------------------------------------------- the command


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return saved(tmp_path, source="digits", limit=300)[0]


def test_rows_are_printed_and_the_accuracy_is_told_beside_them(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(digits), "digits", "--set", "data.limit=50"]) == 0
    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert list(rows[0]) == ["example", "class", "probability", "label"]
    hits = [row["class"] == row["label"] for row in rows]
    assert err == f"accuracy {sum(hits) / 50:.4f} of 50 examples\n"
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_rows_are_written_where_out_says(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(digits), "digits", "--set", "data.limit=50", "--out", "a/p.csv"]) == 0
    assert len(rows_of(Path("a/p.csv").read_text())) == 50
    assert "of 50 examples; rows: " in capsys.readouterr().out


def test_rows_replace_no_model_no_data_and_nothing_that_is_there(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.csv").write_text("mine")
    Path("folder.csv").mkdir()
    before = digits.read_bytes()
    for out, said in (
        (str(digits), "--out: expected a file .csv"),
        ("mine.csv", "mine.csv exists already"),
        ("folder.csv", "is a folder"),
        ("/dev/null/p.csv", "expected a file that can be written"),
    ):
        assert main(["predict", str(digits), "digits", "--out", out]) == 2
        assert said in capsys.readouterr().err
    assert (digits.read_bytes(), Path("mine.csv").read_text()) == (before, "mine")
    words = ["--set", "data.limit=50", "--out", "mine.csv", "--overwrite"]
    assert main(["predict", str(digits), "digits", *words]) == 0
    assert len(rows_of(Path("mine.csv").read_text())) == 50


def test_a_terminal_does_not_obey_names_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loose").mkdir()
    Image.new("L", (8, 8), 9).save(tmp_path / "loose" / "new.png")
    settings = DataSettings(source="digits", limit=300)
    prepared = prepare(settings)
    state = state_of(build_model(MLP, prepared.input_shape, prepared.classes, seed=1))
    evil = Card.of(MLP, settings, prepared).model_copy(
        update={"classes": tuple(f"\x1b[2J{digit}" for digit in range(10))}
    )
    save("m.safetensors", state, evil)
    assert main(["predict", "m.safetensors", "folder:loose"]) == 0
    assert "\x1b[2J" in capsys.readouterr().out, "a file holds the names as they are"
    monkeypatch.setattr("simulations.streams.Patient.isatty", lambda stream: True)
    assert main(["predict", "m.safetensors", "folder:loose"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["predict", "\x1b[2Jm.safetensors", "folder:loose"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_another_source_of_another_shape_is_refused_or_converted(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(digits), "mnist5k", "--set", "data.limit=50"]) == 2
    assert "expected examples of shape [1, 8, 8]" in capsys.readouterr().err
    words = ["--set", "data.limit=50", "data.shape=[1,8,8]"]
    assert main(["predict", str(digits), "mnist5k", *words]) == 0


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("limit=3", "limit: expected one of data.columns, data.limit, data.shape; did you mean 'limit'?"),
        ("data.splits.test=0.5", "data.splits: expected one of data.columns, data.limit, data.shape"),
        ("data.normalise=auto", "data.normalise: expected one of"),
        ("data.limit=-1", "data.limit: expected a number of at least 1"),
        ("data=3", "data: expected one of"),
    ],
)
def test_keys_that_are_the_models_own_cannot_be_set(
    digits: Path, capsys: pytest.CaptureFixture[str], assignment: str, said: str
) -> None:
    assert main(["predict", str(digits), "digits", "--set", assignment]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_model_is_an_error_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.safetensors").write_text("no model")
    assert main(["predict", str(tmp_path / "m.safetensors"), "nowhere:x"]) == 2
    assert "expected a readable .safetensors file" in capsys.readouterr().err


def test_a_model_of_ones_own_is_found_beside_where_the_command_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from torch import nn\n\ndef net(shape, classes):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    (tmp_path / "model_beside_here.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    own, settings = ModelSettings(name="model_beside_here:net"), DataSettings(source="digits", limit=300)
    data = prepare(settings)
    state = state_of(build_model(own, data.input_shape, data.classes, seed=0))
    save("m.safetensors", state, Card.of(own, settings, data))
    assert main(["predict", "m.safetensors", "digits", "--set", "data.limit=50"]) == 2
    assert "names somebody's code as its model, 'model_beside_here:net'" in capsys.readouterr().err
    words = ["--model", "model_beside_here:net", "--set", "data.limit=50"]
    assert main(["predict", "m.safetensors", "digits", *words]) == 0


# ----------------------------------------------------------------------------- tables and folders


def test_a_table_is_read_by_the_columns_of_the_training_in_their_order(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    file, data = saved(tmp_path, source=f"parquet:{path}", classes=("no", "yes"))
    other = table(tmp_path / "o.parquet", c=np.full(80, 1e9))
    swapped = write(
        tmp_path / "s.parquet",
        {name: np.asarray(column) for name, column in _columns(other, ["c", "b", "a", "label"]).items()},
    )
    found = predict_source(load(file), f"parquet:{swapped}")
    assert found.outputs.tolist() == load(file).outputs(np.asarray(data.dataset.inputs[:])).tolist()
    assert found.labels is not None
    assert "accuracy" in found.line


def _columns(path: Path, names: list[str]) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    return {name: pq.read_table(path)[name].to_pylist() for name in names}


def test_a_table_without_labels_is_predicted_all_the_same(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    file, _ = saved(tmp_path, source=f"parquet:{path}", classes=("no", "yes"))
    found = predict_source(load(file), f"parquet:{table(tmp_path / 'o.parquet', label=None)}")
    assert found.line == "80 examples, without labels"
    rows = rows_of(found.csv())
    assert list(rows[0]) == ["example", "class", "probability"]
    assert {row["class"] for row in rows} <= {"no", "yes"}
    assert [row["example"] for row in rows[:2]] == ["row 0", "row 1"]


def test_a_label_column_that_is_asked_for_and_missing_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    file, _ = saved(tmp_path, source=f"parquet:{path}", classes=2)
    with pytest.raises(DataError, match="has no column 'lable'"):
        predict_source(load(file), f"parquet:{path}", ["data.columns.label=lable"])


def test_a_column_that_the_model_needs_is_missed_by_name(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    file, _ = saved(tmp_path, source=f"parquet:{path}", classes=2)
    with pytest.raises(DataError, match="has no column 'b'"):
        predict_source(load(file), f"parquet:{table(tmp_path / 'o.parquet', b=None)}")
    renamed = table(tmp_path / "r.parquet", b=None, beta=np.zeros(80))
    found = predict_source(load(file), f"parquet:{renamed}", ["data.columns.inputs=[a, beta]"])
    assert len(found.outputs) == 80


def test_other_classes_are_refused_with_those_of_the_model(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    file, _ = saved(tmp_path, source=f"parquet:{path}", classes=("no", "yes"))
    more = table(tmp_path / "o.parquet", label=np.arange(80) % 3)
    with pytest.raises(
        DataError, match=r"expected the classes that the model was trained on, \['no', 'yes'\]"
    ):
        predict_source(load(file), f"parquet:{more}")
    images = write_images(tmp_path / "i.parquet", 12)
    digits, _ = saved(tmp_path, source="digits", limit=300)
    with pytest.raises(DataError, match=r"declares the classes .*cat"):
        predict_source(load(digits), f"parquet:{images}")


def test_numbers_are_predicted_in_the_units_of_the_labels(tmp_path: Path) -> None:
    label = np.random.default_rng(1).normal(100, 10, 80)
    path = table(tmp_path / "t.parquet", label=label)
    file, _ = saved(tmp_path, source=f"parquet:{path}", task="regression")
    used = load(file)
    found = predict_source(used, f"parquet:{path}")
    rows = rows_of(found.csv())
    assert list(rows[0]) == ["example", "value", "label"]
    assert [float(row["value"]) for row in rows] == pytest.approx(used.named(found.outputs), rel=1e-6)
    assert [float(row["label"]) for row in rows] == pytest.approx(label, rel=1e-6)
    assert found.line.startswith("R² ")


def test_images_in_a_folder_are_named_by_their_files_with_or_without_classes(tmp_path: Path) -> None:
    for number in range(20):
        for name in ("cat", "dog"):
            file = tmp_path / "sorted" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 6), 10 * number + 5 * (name == "dog")).save(file)
    (tmp_path / "loose").mkdir()
    Image.new("RGB", (9, 9), (9, 9, 9)).save(tmp_path / "loose" / "new.png")
    data = {"source": f"folder:{tmp_path / 'sorted'}", "classes": ("cat", "dog"), "shape": (1, 4, 4)}
    model, _ = saved(tmp_path, **data)
    known = predict_source(load(model), f"folder:{tmp_path / 'sorted'}")
    assert rows_of(known.csv())[0]["example"] == str(Path("cat/0.png"))
    assert known.labels is not None
    new = predict_source(load(model), f"folder:{tmp_path / 'loose'}")
    assert [row["example"] for row in rows_of(new.csv())] == ["new.png"]
    assert new.labels is None


def test_what_a_source_is_read_with_is_what_the_model_was_trained_with(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    file, _ = saved(tmp_path, source=f"parquet:{path}", classes=("no", "yes"))
    settings, asked = settings_of(load(file).card, "parquet:x", ["data.columns.label=y"])
    assert settings.columns == ColumnSettings(inputs=("a", "b"), label="y")
    assert (settings.classes, settings.task, settings.shape, asked) == (
        ("no", "yes"),
        "classification",
        None,
        True,
    )
    with pytest.raises(ConfigError, match=r"data\.columns\.lable: unknown key"):
        settings_of(load(file).card, "parquet:x", ["data.columns.lable=y"])
