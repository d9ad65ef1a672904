"""What the tests of things of one's own share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.own.pages import PAGES, Page, kdfed, read_page


@pytest.fixture(scope="session")
def pages() -> dict[str, Page]:
    """The pages by name."""
    return {name: read_page(name) for name in PAGES}


@pytest.fixture(scope="session")
def ran(pages: dict[str, Page], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that runs a page's first command in an empty folder, once, and returns the run's."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            pages[name].write(folder)
            assert kdfed(folder, pages[name].commands[0]) == 0
            done[name] = folder / "runs" / f"own-{name}"
        return done[name]

    return run


@pytest.fixture(params=PAGES)
def page(request: Any, pages: dict[str, Page]) -> Page:
    """Every page."""
    return pages[request.param]


@pytest.fixture
def folder(page: Page, tmp_path: Path) -> Path:
    """An empty folder with the files of the page."""
    page.write(tmp_path)
    return tmp_path


@pytest.fixture
def folder_of(ran: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies the folder in which a page's first command was run."""
    return lambda name: Path(shutil.copytree(ran(name).parents[1], tmp_path / "copy"))
