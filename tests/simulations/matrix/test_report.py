"""The page of a matrix."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from simulations.cli import main
from simulations.matrix.report import mean_curve, render
from tests.simulations.matrix.matrices import recorded, shown

CELLS = {
    "skewed": {"cold": [10] * 6, "solved": [6] * 6, "warm": [4] * 6},
    "even": {"cold": [8] * 6, "warm": [2] * 6},
}
HEAD = {"arm": "warm", "baseline": "cold", "beside": "solved", "aims": {"0.8": 60.0}}


class Words(HTMLParser):
    """Collects tags and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += f"{data} "


def test_the_page_says_both_sentences_cells_curves_and_controls():
    page = render(shown(CELLS, headline=HEAD, held_out=["even"]))
    words = " ".join(Words(page).text.split())
    for said in (
        "At 80%, warm saves 62% [62, 62] of the exchanges against cold, over 1 held-out cell",
        "At 80%, warm saves 17% [17, 17] of the exchanges against solved, over 1 cell",
        "even (held out)",
        "all cells whose ceiling allows 60%",
        "dirichlet(alpha=0.5)",
        "server alone not run",
    ):
        assert said in words
    assert page.count("<svg") == 2
    assert len(re.findall(r'id="cell-0-', page)) == len(set(re.findall(r'id="(cell-0-[^"]*)"', page)))


def test_the_page_needs_no_other_file_and_escapes_names():
    page = render(shown(CELLS, headline=HEAD))
    sources = [attributes for tag, attributes in Words(page).tags if {"src", "href"} & set(attributes)]
    assert not [one for one in sources if not str(one.get("href", one.get("src"))).startswith("#")]
    assert "<script" not in page


def test_cells_that_are_not_finished_are_named():
    found = shown(CELLS, headline=HEAD)
    object.__setattr__(found, "unfinished", ["table"])
    assert "Not finished, and in no figure: table." in render(found)


def test_a_matrix_of_which_nothing_is_finished_has_a_page():
    found = shown(CELLS, headline=HEAD)
    object.__setattr__(found, "cells", [])
    assert "No complete cell has both arms." in render(found)


def test_a_curve_is_the_mean_of_its_seeds_against_the_mean_of_their_bytes():
    """Of two seeds one is at 0.9 from round 4 on, one from round 6; an exchange costs 300 bytes."""
    cell = shown({"a": {"cold": [10, 10], "warm": [4, 6]}}, headline=HEAD | {"beside": None}).cells[0]
    curve = mean_curve(cell, "warm")
    assert curve[3:7] == [
        (x, pytest.approx(y)) for x, y in ((1200, 0.1), (1500, 0.5), (1800, 0.5), (2100, 0.9))
    ]
    assert mean_curve(cell, "nobody") == []


def test_the_report_of_a_matrix_folder_is_drawn_anew(tmp_path, capsys):
    _, out = recorded(tmp_path, CELLS, headline=HEAD)
    assert main(["report", str(out)]) == 0
    assert "over 2 cells" in capsys.readouterr().out
    assert "against solved" in (out / "matrix.html").read_text()
