from __future__ import annotations

import io
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from kdfed.closed_form import Linear, Refit
from kdfed.errors import RunError, RunFolderError
from kdfed.records import Absent, DataFacts, Failure, Outcome, RoundRecord, RunFolder, summarise
from simulations import report
from simulations.cli import main
from simulations.experiments import build_experiment
from simulations.report import build_report, page, partition_figure, save_partition_picture
from simulations.report.counted import level_of, ratios_of
from simulations.report.figures import FAINT, curves_figure, to_svg
from simulations.savings import main as savings
from simulations.tables import partition_table

VOID = {"meta", "br", "link", "path", "use", "rect", "circle", "line", "image"}


def make_run(
    path: Path, seeds: tuple[int, ...] = (0, 1, 2), summary: bool = True, **changes: Any
) -> RunFolder:
    """Write a run folder of make-believe curves: cold starts at 10%, warm at 60% after a teacher exchange."""
    values = {
        "name": "make-believe",
        "seeds": list(seeds),
        "targets": [0.8, "90%-of-converged"],
        "rounds": {"horizon": 12, "why": "so the tests want it"},
        "arms": {"cold": {}, "warm": {"start": "consolidated"}},
    }
    experiment = build_experiment(values | changes)
    folder = RunFolder.open_for(path, experiment).begin()
    records, outcomes = [], []
    for seed in seeds:
        for arm in experiment.arm_order:
            teachers, start = (1, 0.6) if arm == "warm" else (0, 0.1)
            for r in range(13):
                accuracy = start + (0.95 - start) * (1 - math.exp(-r / (3 + 0.1 * seed)))
                absent = (
                    (Absent(4, "error reply: <script>alert('&')</script>"),) if (r, seed) == (2, 0) else ()
                )
                trips = r + teachers
                record = RoundRecord(
                    *(arm, seed, r, trips, "rounds" if r else "start", accuracy, accuracy, 1.0),
                    *(20 * trips, 3_600_000 * trips + 400, 3_700_000 * trips + 900, 320 * trips),
                    *(20 - len(absent), absent, float(r)),
                )
                records.append(record)
                folder.append(record)
            outcomes.append(Outcome(arm, seed, "horizon", "ab" * 32))
    if summary:
        partitions = [partition(seed) for seed in seeds]
        folder.write_summary(
            summarise(
                experiment, "inprocess", records, outcomes, partitions, facts=DataFacts(2000, 0.1, 0, 500)
            )
        )
    return folder


def partition(seed: int = 0, participants: int = 20, names: tuple[str, ...] = ("a", "b<c")) -> dict[str, Any]:
    counts = np.random.default_rng(seed).integers(0, 30, (min(participants, 100), len(names)))
    return {
        "seed": seed,
        "participants": participants,
        "moved": 3,
        "unused": 2,
        "class_names": list(names),
        "counts": counts.tolist(),
    }


class Outline(HTMLParser):
    """Collects the text outside of pictures, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "svg" not in self.open and "style" not in self.open:
            self.words.append(data)


def read_page(folder: RunFolder) -> tuple[str, str]:
    """Return the page's source and its words."""
    source = (folder.path / "report.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(source)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    return source, " ".join("".join(outline.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("run"))
    build_report(folder.path)
    return folder


def test_a_report_is_a_picture_and_a_page(run):
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    _, words = read_page(run)
    for heading in (
        "What was saved",
        "How accuracy grew",
        "Who holds which classes",
        "Settings",
        "What it cost",
    ):
        assert heading in words


def test_few_seeds_are_shown_as_points_loudest_for_exchanges(run):
    source, words = read_page(run)
    wanted = ("90%-of-converged", "exchanges")
    (entry,) = [c for c in run.read_summary()["comparisons"] if (c["target"], c["cost"]) == wanted]
    points = ratios_of(run.read_summary(), entry).values()
    figure = ", ".join(f"{100 * -math.expm1(d):.0f}" for d in sorted(points, reverse=True)) + "% fewer"
    assert re.search(rf"Exchanges, teachers counted ?{figure} ?one figure a seed", words)
    assert "a saving is shown as points, one figure a seed, without an interval" in words
    assert "none 3 (a verdict needs 6 seeds)" in words
    assert re.findall(r'class="tile \w+ main"><small>(.*?)</small>', source) == 3 * [
        "Exchanges, teachers counted"
    ]


@pytest.mark.slow
def test_more_seeds_have_an_interval_and_a_verdict(tmp_path):
    folder = make_run(tmp_path, tuple(range(8)))
    build_report(tmp_path)
    source, words = read_page(folder)
    (entry,) = [
        c for c in folder.read_summary()["comparisons"] if (c["target"], c["cost"]) == ("0.8", "exchanges")
    ]
    assert entry["verdict"] == "saves"
    saved = entry["saved_percent"]
    interval = f"[{saved['low']:.0f}, {saved['high']:.0f}]; median of 8 seeds"
    assert re.search(rf"{saved['median']:.0f}% fewer ?{re.escape(interval)}", words)
    assert "saves 3, does not lose 0, undecided 0." in words
    assert source.count('<span class="badge saves">saves</span>') == 3


def test_nobody_saves_everything_or_minus_nothing(tmp_path):
    """Warm is at 60% before the first round: none of its federated rounds, and no headline says so."""
    folder = make_run(tmp_path, tuple(range(6)), targets=[0.5])
    build_report(tmp_path)
    _, words = read_page(folder)
    assert not re.search(r"\b100% (fewer|less)|[-−]0%", words)


@pytest.mark.slow
def test_every_arm_has_its_rounds_to_convergence_and_its_plateau(tmp_path):
    plateau = {"rounds": 2, "min-delta": 0.1}
    folder = make_run(tmp_path, rounds={"horizon": 12, "why": "so the tests want it", "plateau": plateau})
    build_report(tmp_path)
    _, words = read_page(folder)
    section = words[words.index("Rounds to convergence") : words.index("Controls")]
    assert re.search(r"cold ?[\dmised, ]+ ?not flat by the end, whatever the tolerance ?ends at", section)
    assert re.search(
        r"warm ?[\dmised, ]+ .*?flat: at round 11 \(half tolerance: never, double: 7\) ?ends at", section
    )


@pytest.mark.slow
def test_controls_and_labels_stand_on_the_page(tmp_path, run):
    _, words = read_page(run)
    assert "labels the server fits on: 0" in words
    assert "2,000 evaluation examples" in words
    assert "12 rounds horizon: so the tests want it" in words
    assert "server alone and start from that model: not run; add it with controls: [server]" in words
    folder = make_run(tmp_path, controls=["averaged"], arms={"cold": {}, "warm": {"start": "consolidated"}})
    build_report(tmp_path)
    _, words = read_page(folder)
    assert re.search(r"averaged teachers ?0 ?10.0% ?\d\d.\d%", words)
    assert "averaged (control)" in words
    assert "averaged reached" not in words


def test_the_runs_tell_the_accuracy_of_the_billed_round(run):
    _, words = read_page(run)
    hit = run.read_summary()["runs"][0]["hit"]
    assert re.search(rf"80.0% ?{hit['round']} ?{hit['exchanges']} ?{100 * hit['accuracy']:.1f}%", words)
    assert hit["accuracy"] >= 0.8


def test_what_a_reader_must_know_is_noted(tmp_path):
    folder = make_run(tmp_path, seeds=(0,))
    folder.write_summary(folder.read_summary() | {"note": "Counted anew."})
    build_report(tmp_path)
    assert "Counted anew." in read_page(folder)[1]


def test_an_exchange_is_explained_where_the_page_first_names_it(run, tmp_path):
    alone = make_run(tmp_path, arms={"cold": {"start": "random"}})
    build_report(alone.path)
    for _, words in (read_page(run), read_page(alone)):
        assert words.count("An exchange is a communication round") == 1
        assert words.index("xchange") == words.index("xchange is a communication round")


def test_a_page_needs_no_other_file(run):
    source, _ = read_page(run)
    assert not re.search(r"<(script|link|img|iframe)\b", source)
    assert not re.search(r"(src|href)=\"(?!#)", source)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)


def test_what_participants_wrote_is_shown_and_not_run(run):
    source, words = read_page(run)
    assert "error reply: <script>alert('&')</script>" in words
    assert "<script>" not in source
    assert "b&lt;c" in source


def test_the_cost_table_tells_the_start_from_the_rounds(run):
    """Warm ran 12 rounds after a teacher exchange of 20 uploads: 260 uploads."""
    _, words = read_page(run)
    assert re.search(r"warm ?start: hello, teachers, consolidation ?1 ?20 ?3.6 MB", words)
    assert re.search(r"12 federated rounds ?12 ?240", words)
    assert re.search(r"total ?13 ?260", words)


def test_the_same_records_give_the_same_page(run, tmp_path):
    before = {name: (run.path / name).read_bytes() for name in ("report.html", "curves.png")}
    build_report(run.path)
    assert before == {name: (run.path / name).read_bytes() for name in before}


def test_every_arm_starts_where_its_teachers_were_paid_for(run):
    figure = curves_figure(run.read_experiment(), run.read_rounds(), run.read_summary())
    assert len(figure.axes) == 4
    starts = {
        (axes.get_xlabel(), line.get_color()): float(line.get_xdata()[0])
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_linewidth() > 2
    }
    assert starts == pytest.approx(
        {
            ("exchanges", "#0072b2"): 0,
            ("exchanges", "#d55e00"): 1,
            ("participant uploads", "#0072b2"): 0,
            ("participant uploads", "#d55e00"): 20,
            ("bytes up and down (MB)", "#0072b2"): 0.0013,
            ("bytes up and down (MB)", "#d55e00"): 7.3013,
        }
    )


def target_lines(axes):
    return [
        line for line in axes.get_lines() if len(set(line.get_ydata())) == 1 and line.get_color() == FAINT
    ]


def test_a_target_line_is_the_mean_over_seeds(run):
    summary = run.read_summary()
    figure = curves_figure(run.read_experiment(), run.read_rounds(), summary)
    levels = {line.get_ydata()[0] for line in target_lines(figure.axes[0])}
    relative = {r["target_accuracy"] for r in summary["runs"] if r["target"] == "90%-of-converged"}
    assert len(relative) == 3
    assert sorted(levels)[:2] == pytest.approx(sorted([0.8, sum(relative) / 3]))


def test_a_dot_sits_on_the_target_line_at_the_billed_cost(run):
    summary = run.read_summary()
    figure = curves_figure(run.read_experiment(), run.read_rounds(), summary)
    for axes, cost in zip(figure.axes[:3], ("exchanges", "exchanges", "participant_uploads"), strict=True):
        dots = {tuple(map(float, dot)) for drawn in axes.collections for dot in drawn.get_offsets()}
        hits = {
            (float(run["hit"][cost]), level_of(summary, run["target"]))
            for run in summary["runs"]
            if run["hit"] is not None
        }
        assert hits
        assert dots == hits


def test_one_panel_is_zoomed_to_the_targets(run):
    summary = run.read_summary()
    whole, near = curves_figure(run.read_experiment(), run.read_rounds(), summary).axes[:2]
    assert whole.get_ylim()[0] < 0.15
    lowest = min(level_of(summary, target) for target in summary["targets"])
    assert lowest - 0.1 < near.get_ylim()[0] < lowest
    assert near.get_ylim()[1] > max(record.accuracy for record in run.read_rounds())
    assert near.get_xlim() == whole.get_xlim()


def test_curves_run_on_to_the_horizon(run):
    axes = curves_figure(run.read_experiment(), run.read_rounds(), run.read_summary()).axes[0]
    assert {max(line.get_xdata()) for line in axes.get_lines() if line.get_linewidth() > 2} == {12, 13}


def test_controls_are_broken_lines_without_single_seeds(tmp_path):
    folder = make_run(tmp_path, controls=["averaged"])
    axes = curves_figure(folder.read_experiment(), folder.read_rounds(), folder.read_summary()).axes[0]
    drawn = [line for line in axes.get_lines() if line.get_color() == "#009e73"]
    assert len(drawn) == 1
    assert drawn[0].is_dashed()


def test_a_single_seed_says_that_it_has_no_interval(tmp_path):
    folder = make_run(tmp_path, seeds=(5,))
    build_report(tmp_path)
    words = read_page(folder)[1]
    assert "(one seed)" in words
    assert re.search("% fewer ?one seed", words)


def test_synthetic_data_are_named_so(tmp_path):
    folder = make_run(tmp_path, seeds=(0,), data={"source": "synthetic:classes=3,size=500"})
    build_report(tmp_path)
    assert "The data are synthetic (synthetic:classes=3,size=500)" in read_page(folder)[1]


def test_one_arm_alone_is_compared_with_nothing(tmp_path):
    folder = make_run(tmp_path, seeds=(0,), arms={"cold": {}})
    build_report(tmp_path)
    words = read_page(folder)[1]
    assert "There is no other arm to compare with." in words
    assert re.search(r"cold reached 80% in \d+ exchanges", words)


def test_a_single_exchange_is_one(tmp_path):
    folder = make_run(tmp_path, seeds=(0,), arms={"cold": {}}, targets=[0.3])
    build_report(tmp_path)
    assert re.search(r"cold reached 30% in 1 exchange\b", read_page(folder)[1])


def test_a_run_that_was_killed_is_shown_as_far_as_recorded(tmp_path):
    folder = make_run(tmp_path, summary=False)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    (tmp_path / "rounds.jsonl").write_text("\n".join(lines[:20]) + '\n{"arm": "wa')
    build_report(tmp_path)
    assert "This run did not end" in read_page(folder)[1]


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    make_run(tmp_path, seeds=(0,))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFolderError, match=r"report\.html: expected a file that can be written"):
        build_report(tmp_path)


def test_a_run_that_failed_is_named(tmp_path):
    folder = make_run(tmp_path, seeds=(0,), summary=False)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rounds.jsonl").write_text("".join(lines[:15]))
    folder.write_summary(summarise(folder.read_experiment(), "flower", folder.read_rounds(), []))
    build_report(tmp_path)
    words = read_page(folder)[1]
    assert "Failed before the end, and read as far as recorded: cold (seed 0), warm (seed 0)." in words
    assert "unresolved" in words


def test_a_run_that_failed_says_why(tmp_path):
    folder = make_run(tmp_path, seeds=(0,), summary=False)
    failures = [Failure("warm", 0, "teachers", "no <power>")]
    records = [record for record in folder.read_rounds() if record.arm == "cold"]
    (tmp_path / "rounds.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records))
    outcomes = [Outcome("cold", 0, "horizon", "ab" * 32)]
    folder.write_summary(summarise(folder.read_experiment(), "flower", records, outcomes, (), failures))
    build_report(tmp_path)
    assert (
        "warm, seed 0, failed in the phase teachers, and is read as far as recorded: no <power>"
        in (read_page(folder)[1])
    )


def test_every_head_in_closed_form_says_what_it_was_solved_from(tmp_path):
    folder = make_run(tmp_path, seeds=(0,), summary=False)
    solved = Refit.of(
        "before-teachers",
        "ridge",
        20,
        1234,
        Linear(torch.ones(2, 3), torch.ones(2), 0.125, chosen_by="penalty: gcv", explained=0.5),
        "no",
        180,
    )
    kept = Refit(3, "lda", why="<b>too few</b>")
    outcomes = [Outcome("cold", 0, "horizon", "ab" * 32, refits=[solved, kept])]
    folder.write_summary(summarise(folder.read_experiment(), "inprocess", folder.read_rounds(), outcomes, ()))
    build_report(tmp_path)
    source, words = read_page(folder)
    assert "cold0before teachersridge201,2340.125 (penalty: gcv)–50%180 steps" in words
    assert "cold0round 3lda00––––kept the head it had: <b>too few</b>" in words
    assert "<b>too" not in source


def test_a_folder_without_records_gives_no_report(tmp_path):
    with pytest.raises(RunFolderError, match=r"experiment\.yaml"):
        build_report(tmp_path)


def test_a_partition_picture_has_a_bubble_for_everything_held(tmp_path):
    entry = partition(names=("a", "b", "c"))
    figure = partition_figure(entry)
    bars, bubbles = figure.axes
    assert len(bubbles.collections[0].get_offsets()) == np.count_nonzero(entry["counts"])
    assert [bar.get_height() for bar in bars.patches] == np.sum(entry["counts"], axis=1).tolist()
    save_partition_picture(entry, tmp_path / "new" / "partition.png")
    assert (tmp_path / "new" / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_first_hundred_participants_are_drawn():
    figure = partition_figure(partition(participants=300))
    assert figure.axes[0].get_title(loc="left") == "Who holds what, seed 0: the first 100 of 300 participants"
    assert len(figure.axes[0].patches) == 100


def test_a_participant_with_nothing_and_a_name_with_dollars_can_be_drawn():
    entry = partition(names=("$x$", "a very long name of a class"))
    entry["counts"][0] = [0, 0]
    svg = to_svg(partition_figure(entry), "p")
    assert "$x$" in svg
    assert "a very long name …" in svg


# ----------------------------------------------------------------------------- damaged records


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run of one seed with its report."""
    path = tmp_path_factory.mktemp("reported")
    make_run(path, seeds=(0,))
    build_report(path)
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


@pytest.fixture
def whole(tmp_path: Path, reported: dict[str, bytes]) -> Path:
    for name, content in reported.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


DAMAGE = {
    "totals that are a number": ("summary.json", rb'"totals": \{[^}]*\}', b'"totals": 3'),
    "a first hit that is a list": ("summary.json", rb'"first_hit": \{[^}]*\}', b'"first_hit": []'),
    "a median that is a word": ("summary.json", rb'"median": [-\d.]+', b'"median": "x"'),
    "an infinity": ("summary.json", rb'"median": [-\d.]+', b'"median": Infinity'),
    "a huge number": ("summary.json", rb'"bytes_up": \d+', b'"bytes_up": 1' + 400 * b"0"),
    "a row too short": ("summary.json", rb'"counts": \[\s*\[\s*\d+,', b'"counts": [['),
    "a target of another experiment": ("summary.json", rb'"target": "0.8"', b'"target": "0.7"'),
    "a round that nobody ran": ("summary.json", rb'"round": \d+', b'"round": 40'),
    "no comparison": ("summary.json", rb'(?s)"comparisons": \[.*?\n \]', b'"comparisons": []'),
    "HTML for a name": ("summary.json", rb'"engine": "\w+"', b'"engine": "<script>' + 999 * b"x" + b'"'),
    "deep nesting": ("summary.json", rb"(?s)^.*$", b"[" * 100_000),
    "an empty summary": ("summary.json", rb"(?s)^.*$", b""),
    "no text": ("summary.json", rb'"engine": "\w+"', b'"engine": "\xff"'),
    "accuracy NaN": ("rounds.jsonl", rb'"accuracy": [\d.]+', b'"accuracy": NaN'),
    "accuracy 5": ("rounds.jsonl", rb'"accuracy": [\d.]+', b'"accuracy": 5'),
    "round -1": ("rounds.jsonl", rb'"round": 0', b'"round": -1'),
    "an unknown arm": ("rounds.jsonl", rb'"arm": "cold"', b'"arm": "hot"'),
    "an unknown seed": ("rounds.jsonl", rb'"seed": 0', b'"seed": 4'),
    "a round twice": ("rounds.jsonl", rb'"round": 3', b'"round": 2'),
    "bytes that fall": ("rounds.jsonl", rb'"bytes_up": 3600400', b'"bytes_up": 3'),
    "a line of braces": ("rounds.jsonl", rb"(?m)^.*$", b"[" * 100_000),
    "no rounds at all": ("rounds.jsonl", rb"(?s)^.*$", b""),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_report_of_damaged_records_is_one_error_and_nothing_is_lost(whole, reported, what, capsys):
    name, pattern, damage = DAMAGE[what]
    content, count = re.subn(pattern, lambda _: damage, reported[name], count=1)
    assert count == 1
    (whole / name).write_bytes(content)
    assert main(["report", str(whole)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {whole / name}")
    assert len(shown.err) < 1200
    after = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert after == {**reported, name: content}


@pytest.mark.parametrize("name", ["summary.json", "rounds.jsonl", "experiment.yaml"])
def test_a_folder_where_a_record_should_be_is_one_error(whole, name, capsys):
    (whole / name).unlink()
    (whole / name).mkdir()
    assert main(["report", str(whole)]) == 2
    assert f"readable {name}" in capsys.readouterr().err


@pytest.mark.parametrize("read", [savings, lambda folders: main(["report", *folders])])
def test_whoever_reads_a_damaged_summary_says_so(whole, reported, read, capsys):
    damaged = json.loads(reported["summary.json"]) | {"comparisons": [3]}
    (whole / "summary.json").write_text(json.dumps(damaged))
    assert read([str(whole)]) == 2
    assert "summary.json: comparisons.0: expected an object, got 3" in capsys.readouterr().err


def _leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    if not items:
        yield path, values
    for key, value in items:
        yield from _leaves(value, (*path, key))


@pytest.mark.slow
def test_whatever_summary_is_read_can_be_shown(whole, reported, monkeypatch):
    """Leaves of a summary swap places; what passes the checks must make a page, without an exception."""
    monkeypatch.setattr(page, "to_svg", lambda figure, name: "")
    monkeypatch.setattr(report, "to_png", lambda figure: b"")
    monkeypatch.setattr(page, "curves_figure", lambda *_: None)
    monkeypatch.setattr(page, "partition_figure", lambda entry: None)
    text, shown = reported["summary.json"].decode(), 0
    leaves = list(_leaves(json.loads(text)))
    draw = random.Random(0)
    for _ in range(60):
        summary = json.loads(text)
        (path, _), (_, value) = draw.sample(leaves, 2)
        holder = summary
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = draw.choice([value, None, 0, 10**6, 0.5, -1e9])
        (whole / "summary.json").write_text(json.dumps(summary))
        try:
            build_report(whole)
            shown += 1
        except RunFolderError as error:
            assert str(error).startswith(str(whole / "summary.json"))  # noqa: PT017
    assert shown > 2


# ----------------------------------------------------------------------------- names, and matplotlib

NAMES = (
    *("$\\frac", "$x^2$", "\U0001f600 \U0001f389", "<script>alert(1)</script>", "x" * 10_000, ""),
    *("שלום \u202eעולם", "a\x00\x1b[31m\nb", "\udc80", "漢字", "\\"),
)


@pytest.mark.slow
def test_classes_can_be_called_anything(tmp_path, capsys):
    entry = partition(names=NAMES)
    save_partition_picture(entry, tmp_path / "who.png")
    svg = to_svg(partition_figure(entry), "p")
    assert "$\\frac" in svg
    assert "<script" not in svg
    assert "xxxxx…" in svg
    assert not any(character in svg for character in "\x00\x1b\udc80\u202e")
    folder = make_run(tmp_path, seeds=(0,), summary=False)
    records = folder.read_rounds()
    outcomes = [Outcome(arm, 0, "horizon", "") for arm in ("cold", "warm")]
    readable = partition(names=tuple(name for name in NAMES if name != "\udc80"))
    folder.write_summary(summarise(folder.read_experiment(), "ray", records, outcomes, [readable]))
    assert main(["report", str(tmp_path)]) == 0
    assert "<script" not in read_page(folder)[0]


def test_the_table_of_a_partition_can_hold_any_name():
    console = Console(file=io.StringIO(), width=300)
    console.print(partition_table(np.ones((2, len(NAMES)), dtype=np.int64), NAMES, "who"))
    shown = console.file.getvalue()
    assert "<script>alert(1)" in shown
    assert "xxxxx…" in shown
    assert not any(character in shown for character in "\x00\x1b\udc80\u202e")


def test_a_long_reason_of_an_absence_is_shortened(tmp_path):
    folder = make_run(tmp_path, seeds=(0,))
    text = (tmp_path / "rounds.jsonl").read_text()
    (tmp_path / "rounds.jsonl").write_text(text.replace("error reply: ", "error reply: " + "y" * 100_000))
    build_report(tmp_path)
    source, words = read_page(folder)
    assert "error reply: yyy" in words
    assert "y" * 301 not in source


@pytest.mark.slow
def test_pictures_do_not_depend_on_the_users_matplotlib(tmp_path, run):
    """A backend that is not there, no folder to write to, and settings that need LaTeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: black\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    nowhere = tmp_path / "matplotlibrc" / "cache"
    environment |= {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": str(nowhere), "HOME": str(nowhere)}
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom simulations.report import build_report\n"
        "build_report(Path(sys.argv[1]))\nassert os.environ['MPLBACKEND'] == 'nonsense'\n"
    )
    folder = make_run(tmp_path / "run")
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder.path)],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0), ended.stderr
    for name in ("curves.png", "report.html"):
        assert (folder.path / name).read_bytes() == (run.path / name).read_bytes()


def test_without_matplotlib_the_records_stay_and_the_error_says_what_is_missing(whole, reported, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match=r"the pictures need matplotlib.*install kdfed\[sim\]"):
        build_report(whole)
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == reported


def test_without_jinja_the_records_stay_and_the_error_says_what_is_missing(whole, reported, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RunError, match=r"pages need the package 'jinja2': pip install 'kdfed\[sim\]'"):
        build_report(whole)
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == reported
