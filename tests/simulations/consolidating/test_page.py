"""The page on consolidating models that exist does what it says, word for word, from an empty folder."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from kdfed.saved import load, read_card
from tests.own.pages import ROOT, imports_undone, in_folder, kdfed

PAGE = (ROOT / "docs" / "consolidate.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
]


def run_file(folder: Path, name: str) -> None:
    with imports_undone(), in_folder(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        runpy.run_path(str(folder / name))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, and the models that the first of them makes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("page")
    for name, text in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(text, encoding="utf-8")
    run_file(folder, "shelf.py")
    assert {path.name for path in folder.glob("*.pt")} == {"low.pt", "middle.pt", "high.pt"}
    return folder


@pytest.fixture
def folder(shelf: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(shelf, tmp_path / "copy")


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_the_command_prints_what_the_page_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = (words for words in COMMANDS if "--teacher-model" in words and "--set" in words)
    assert kdfed(folder, words) == 0
    shown = capsys.readouterr().out
    said = re.search(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert said is not None
    lines = said[1].splitlines()
    first = next(place for place, line in enumerate(shown.splitlines()) if line.split() == lines[0].split())
    found = shown.splitlines()[first : first + len(lines)]
    for theirs, ours in zip(found, lines, strict=True):
        assert theirs.split()[:-1] == ours.split()[:-1]
        assert numbers(theirs) == pytest.approx(numbers(ours), abs=5)  # other machines give other bits
    assert (folder / "student.html").exists()
    assert read_card(folder / "student.safetensors").classes == tuple("0123456789")


def test_the_first_command_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of a run say what they are; these of torch.save do not, and are named one by one."""
    models = folder / COMMANDS[0][2]
    models.mkdir(parents=True)
    for path in folder.glob("*.pt"):
        shutil.copy(path, models)
    assert kdfed(folder, COMMANDS[0]) == 2
    assert capsys.readouterr().err.count("does not say which model its weights are of") == 3


def test_the_same_by_hand_gives_a_student(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file(folder, "by_hand.py")
    said = re.search(r"ensemble ([\d.]+), student ([\d.]+)", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) > 0.75
    assert float(said[2]) > 0.65
    assert load(folder / "by_hand.safetensors").card.model.name == "mlp"
