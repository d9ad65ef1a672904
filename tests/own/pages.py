"""The pages of docs/own, their files, and the command in a folder that holds nothing else."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from kdfed import named
from kdfed.data import prepare
from kdfed.partition import partition_of
from simulations.cli import main

ROOT = Path(__file__).parents[2]


class Page(NamedTuple):
    """A page of docs/own: its files, its commands, and what the command that is refused prints."""

    name: str
    files: dict[str, str]
    commands: tuple[list[str], ...]
    refused: list[str]
    error: str

    @property
    def module(self) -> str:
        """The file's module."""
        return next(name for name in self.files if name.endswith(".py")).removesuffix(".py")

    def write(self, folder: Path) -> None:
        """Write the files of the page into a folder."""
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def read_page(name: str) -> Page:
    """Return the blocks of a page, word for word."""
    text = (ROOT / "docs" / "own" / f"{name}.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    commands = [
        shlex.split(block) for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]
    (refused,) = (words for words in commands if "--set" in words)
    error = re.search(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert error is not None
    others = tuple(words for words in commands if words is not refused)
    return Page(name, files, others, refused, error[1])


PAGES = tuple(sorted(page.stem for page in (ROOT / "docs" / "own").glob("*.md") if page.stem != "index"))


@contextmanager
def imports_undone() -> Iterator[None]:
    """Let modules be imported and folders be searched, and forget them again."""
    path, folders, modules = list(sys.path), list(named._FOLDERS), set(sys.modules)
    prepare.cache_clear()
    partition_of.cache_clear()
    try:
        yield
    finally:
        sys.path[:], named._FOLDERS[:] = path, folders
        for module in set(sys.modules) - modules:
            if getattr(sys.modules[module], "__file__", None) and "my_" in module:
                del sys.modules[module]


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def kdfed(folder: Path, words: Sequence[str]) -> int:
    """Run the command in this process, in a folder; what it imported there is forgotten.

    A run draws no pictures: they would take most of the time.
    """
    assert words[0] == "kdfed"
    drawing: Any = patch("simulations.report.build_report") if words[1] == "run" else nullcontext()
    with imports_undone(), in_folder(folder), drawing:
        return main(words[1:])


def in_a_process(
    folder: Path, words: Sequence[str], path: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, in a folder.

    Its PYTHONPATH is ``path``, and this checkout where it was on ours: never the folder.
    """
    ours = [str(ROOT)] if str(ROOT) in os.environ.get("PYTHONPATH", "").split(os.pathsep) else []
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if ours or path:
        environment["PYTHONPATH"] = os.pathsep.join([*ours, *map(str, path)])
    command = Path(sys.executable).with_name(words[0])
    return subprocess.run(
        [command, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )


def weights(run: Path) -> dict[str, str]:
    """Return the hash of the weights of each arm of a run folder."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {entry["arm"]: entry["weights_sha256"] for entry in summary["runs"]}
