from __future__ import annotations

import os
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from simulations.report.frame import Cell, Table, render_html

ROOT = Path(__file__).parents[3]
TEMPLATES = (
    *("report/frame.html.jinja", "report/parts.html.jinja", "report/page.html.jinja"),
    *("report/page.css", "study/report.html.jinja", "consolidating/report.html.jinja"),
    "matrix/report.html.jinja",
)


def test_what_a_page_is_made_of_lies_in_the_package():
    assert [name for name in TEMPLATES if not files("simulations").joinpath(name).is_file()] == []
    there = {
        path.relative_to(ROOT / "simulations").as_posix()
        for path in (ROOT / "simulations").rglob("*")
        if path.suffix in (".jinja", ".css", ".html")
    }
    assert there == set(TEMPLATES)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_no_template_is_ignored_and_so_left_out_of_the_wheel():
    """Hatchling packs whatever lies in a package, but for what git ignores."""
    paths = [os.fspath(ROOT / "simulations" / name) for name in TEMPLATES]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, "")


def rendered(content: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a table as the pages write it."""
    import jinja2

    monkeypatch.setattr(
        jinja2,
        "PackageLoader",
        lambda package, path: jinja2.ChoiceLoader(
            [jinja2.FileSystemLoader(tmp_path), jinja2.FileSystemLoader(ROOT / package)]
        ),
    )
    (tmp_path / "one.jinja").write_text(
        '{% from "report/parts.html.jinja" import table %}\n{{ table(content) }}'
    )
    return "".join(render_html("one.jinja", content=content).split("\n"))


def test_a_table_escapes_its_cells_and_tells_numbers_and_sums(tmp_path, monkeypatch):
    content = Table(["who", "<n>"], [[Cell("a&b", colour=2), "1"], ["all", Cell("'1'", code=True)]], 1, 2)
    assert rendered(content, tmp_path, monkeypatch) == (
        '<div class="scroll table"><table><thead><tr><th scope="col">who</th>'
        '<th scope="col" class="number">&lt;n&gt;</th></tr></thead><tbody>'
        '<tr><td><span class="swatch" style="background:var(--arm-2)"></span>a&amp;b</td>'
        '<td class="number">1</td></tr>'
        '<tr class="sum"><td>all</td><td class="number"><code>&#39;1&#39;</code></td></tr>'
        "</tbody></table></div>"
    )


def test_a_value_that_a_template_lacks_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'name' is undefined"):
        render_html("report/page.html.jinja")
