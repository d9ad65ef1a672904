"""A device's folder: what it says, and every mistake in it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.device_folder import read_device_folder
from kdfed.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in order, without its node.yaml."""
    (tmp_path / "images").mkdir()
    for name in ("ca.crt", "key", "teacher.safetensors"):
        (tmp_path / name).write_text("x")
    (tmp_path / "key").chmod(0o600)
    return tmp_path


def written(folder: Path, own: dict[str, Any] | None = None, **keys: Any) -> Path:
    node_config = {"participant": "north", "data": "folder:images", **(own or {})}
    values = {"superlink": "server.example:8000", "node-config": node_config, **keys}
    (folder / "node.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v != "-"}))
    return folder


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_device_folder(folder)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_paths_are_relative_to_the_folder(folder: Path) -> None:
    own = {"store": "kept", "teacher": "teacher.safetensors", "allow": "mine:model"}
    read = read_device_folder(written(folder, own))
    assert (read.root_certificates, read.key) == (folder / "ca.crt", folder / "key")
    assert read.node_config.data == f"folder:{folder / 'images'}"
    assert read.node_config.store == str(folder / "kept")
    assert read.node_config.teacher == str(folder / "teacher.safetensors")
    assert (read.superlink, read.port) == ("server.example:8000", 9094)


def test_absolute_paths_stay_and_a_function_is_no_path(folder: Path, tmp_path: Path) -> None:
    own = {"data": f"folder:{folder / 'images'}"}
    assert read_device_folder(written(folder, own)).node_config.data == own["data"]
    assert read_device_folder(written(folder, {"data": "json:loads"})).node_config.data == "json:loads"


def test_without_tls_nothing_of_it_is_needed(folder: Path) -> None:
    for name in ("ca.crt", "key"):
        (folder / name).unlink()
    read = read_device_folder(written(folder, insecure=True))
    assert (read.root_certificates, read.key) == (None, None)


def test_what_would_be_ignored_without_tls_is_refused(folder: Path) -> None:
    assert mistakes(written(folder, insecure=True, key="key")) == [
        "expected no key where insecure is true; remove one of them"
    ]


def test_every_mistake_is_told_at_once(folder: Path) -> None:
    own = {"participant": "nor th", "dta": "folder:images", "data": "-", "threads": 0}
    del own["data"]
    (folder / "node.yaml").write_text(
        yaml.safe_dump({"superlink": "http://server", "prt": 1, "node-config": own})
    )
    found = mistakes(folder)
    assert found[0] == "superlink: expected HOST:PORT, got 'http://server'"
    assert "did you mean 'port'?" in "\n".join(found)
    assert "did you mean 'data'?" in "\n".join(found)
    assert "node-config.data: expected a value, got none" in found
    assert any(one.startswith("node-config.participant: expected letters, digits") for one in found)
    assert any(one.startswith("node-config.threads: ") and one.endswith("got 0") for one in found)
    assert len(found) == 6


def test_everything_that_is_missing_is_told_at_once(folder: Path) -> None:
    (folder / "ca.crt").unlink()
    (folder / "key").chmod(0o644)
    found = mistakes(written(folder, {"data": "folder:pictures", "teacher": "none.safetensors"}))
    assert [one.partition(":")[0] for one in found] == [
        "root-certificates",
        "key",
        "node-config.data",
        "node-config.teacher",
    ]
    assert "No such file" in found[0]
    assert found[1].endswith(f"got mode 644; chmod 600 {folder / 'key'}")
    assert f"expected a folder of images, got '{folder / 'pictures'}': no such folder" in found[2]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("csv:none.csv", "expected the data's file"),
        ("images", "expected KIND:PATH or package.module:name, got 'images'"),
        ("fodler:images", "did you mean 'folder'?"),
        ("no_such_package.module:load", "or a package that is installed on this device"),
    ],
)
def test_data_that_cannot_be_there_is_told(folder: Path, data: str, said: str) -> None:
    (found,) = mistakes(written(folder, {"data": data}))
    assert found.startswith("node-config.data: ")
    assert said in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "expected a device's folder with node.yaml: No such file or directory"),
        ("[1, 2]", "expected a mapping of keys, got list"),
        ("a: [", "expected YAML: "),
    ],
)
def test_a_folder_without_a_readable_file_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "node.yaml").write_text(text)
    (found,) = mistakes(tmp_path)
    assert found.startswith(said)


def test_the_folder_of_the_docs_is_in_order(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/deploy/node.md").read_text(encoding="utf-8")
    text = page.partition('```yaml title="node.yaml"\n')[2].partition("```")[0]
    (folder / "node.yaml").write_text(text)
    assert read_device_folder(folder).node_config.participant == "north"


@pytest.mark.parametrize("text", ["superlink: 2026-99-99\n", "[" * 3000])
def test_yaml_that_breaks_its_reader_is_a_mistake_like_any_other(folder: Path, text: str) -> None:
    (folder / "node.yaml").write_text(text)
    assert mistakes(folder)[0].startswith("expected YAML")


def test_data_without_a_path_are_not_the_folder_itself(folder: Path) -> None:
    found = mistakes(written(folder, {"data": "folder:"}))
    assert found == [
        "node-config.data: expected KIND:PATH or package.module:name, got 'folder:'",
    ]
