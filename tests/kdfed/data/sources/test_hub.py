from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdfed.data import load_source
from kdfed.errors import DataError
from kdfed.settings import ColumnSettings, DataSettings
from tests.kdfed.data.written import NAMES, png, write_images

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: small
  data_files:
  - split: train
    path: data/test-*
---
"""


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """Write a data set as a clone of a Hub repository holds it."""
    folder = tmp_path / "tiny"
    write_images(folder / "data/train-00000-of-00001.parquet", 8)
    write_images(folder / "data/test-00000-of-00001.parquet", 4)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_local_folder_in_the_hubs_layout_is_a_data_set(hub_folder: Path) -> None:
    data = load_source(DataSettings(source=f"hf:{hub_folder}"))
    assert data.class_names == tuple(NAMES)
    assert data.inputs.shape == (12, 1, 4, 4)
    assert data.official_test is not None
    assert data.inputs[data.official_test, 0, 0, 0].tolist() == [0, 10, 20, 30]


def test_a_configuration_is_named_behind_an_at_sign(hub_folder: Path) -> None:
    data = load_source(DataSettings(source=f"hf:{hub_folder}@small"))
    assert len(data) == 4
    assert data.official_test is None


def test_an_unknown_configuration_is_refused(hub_folder: Path) -> None:
    with pytest.raises(DataError, match="cannot load the Hugging Face data set"):
        load_source(DataSettings(source=f"hf:{hub_folder}@large"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves its CSV open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_table_of_features_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table/train.csv").write_text("a,b,kind\n1,2,x\n3,4,y\n5,6,x\n")
    settings = DataSettings(
        source=f"hf:{tmp_path / 'table'}", classes=("y", "x"), columns=ColumnSettings(label="kind")
    )
    data = load_source(settings)
    assert data.inputs.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.labels.tolist() == [1, 0, 1]


def test_images_in_class_folders_are_read_as_the_hub_does(tmp_path: Path) -> None:
    """The layout `imagefolder`: images stay files, the table holds their paths."""
    for split in ("train", "test"):
        for value, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(png(100 * value))
    data = load_source(DataSettings(source=f"hf:{tmp_path / 'pets'}"))
    assert data.class_names == ("cat", "dog")
    assert (data.inputs[:, 0, 0, 0] == 100 * data.labels).all()
    assert data.official_test is not None
    assert len(data.official_test) == 2


def cached(hub: Path, folder: Path) -> None:
    """Lay a folder into a Hub cache as `huggingface_hub` leaves it after a download."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / "datasets--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)


def test_a_name_is_found_in_the_local_cache_without_the_network(hub_folder: Path, tmp_path: Path) -> None:
    cached(tmp_path / "hub", hub_folder)
    assert len(load_source(DataSettings(source="hf:someone/tiny"))) == 12


def test_a_name_that_is_nowhere_is_refused_without_the_network() -> None:
    with pytest.raises(DataError, match="cannot load the Hugging Face data set 'someone/missing'"):
        load_source(DataSettings(source="hf:someone/missing"))


@pytest.mark.slow
def test_the_environment_variable_alone_keeps_a_process_offline(hub_folder: Path, tmp_path: Path) -> None:
    cached(tmp_path / "home/hub", hub_folder)
    code = (
        "from kdfed.data import load_source; from kdfed.settings import DataSettings;"
        "print(len(load_source(DataSettings(source='hf:someone/tiny'))))"
    )
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[4]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.strip() == "12", done.stderr


def test_any_column_can_be_read_of_all_splits(hub_folder: Path) -> None:
    data = load_source(DataSettings(source=f"hf:{hub_folder}"))
    assert data.values_of is not None
    assert data.values_of("label").tolist() == data.labels.tolist()
    assert data.columns == ColumnSettings(inputs=("image",), label="label")
