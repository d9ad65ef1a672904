"""What a consolidation without federation says of itself: tables on the terminal, and one page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table as Printed

from kdfed.errors import shortened
from kdfed.records.versions import versions
from kdfed.task import CLASSIFICATION
from simulations.consolidating.plan import Plan
from simulations.consolidating.running import Outcome
from simulations.report.frame import Cell, Table, render_html
from simulations.report.words import plural

SHOWN_CLASSES = 12
"""Columns of the table per class on a terminal; the page has all."""

_LONGEST = 24  # characters of a class in a heading


def render(plan: Plan, outcome: Outcome) -> str:
    """Return the page; it needs no other file.

    Raises
    ------
    RunError
        If Jinja2 is not installed.
    """
    heads, rows = comparison(plan, outcome)
    names, per_class = by_class(plan, outcome)
    page = Table(heads, [[*row[:-1], Cell(row[-1], bold=row[0] == outcome.after.name)] for row in rows], 3)
    return render_html(
        "consolidating/report.html.jinja",
        name=plan.out.name,
        measure=measured_words(plan, outcome),
        comparison=page,
        per_class=Table(names, per_class, numbers_from=1) if per_class else None,
        settings=Table(
            ["what", "value"], [[key, Cell(value, code=True)] for key, value in settings_rows(plan, outcome)]
        ),
        warning=outcome.result.warning,
        unknown=unknown_words(plan),
        versions=versions(),
    )


def comparison(plan: Plan, outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the table of all models."""
    classes = len(plan.card.classes)
    rows = [
        [row.name, row.model, f"{row.knows} of {classes}" if classes else "", _written(plan, row.score)]
        for row in outcome.rows
    ]
    return ["", "model", "classes", _measure(plan)], rows


def by_class(plan: Plan, outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return the same for each class; no rows where labels are lacking."""
    if not outcome.after.per_class:
        return [], []
    rows = [
        [row.name, *("" if value is None else _written(plan, value) for value in row.per_class)]
        for row in outcome.rows
    ]
    return ["", *(shortened(name, _LONGEST) for name in plan.card.classes)], rows


def comparison_tables(plan: Plan, outcome: Outcome) -> list[Printed]:
    """Return the tables for a terminal."""
    heads, rows = comparison(plan, outcome)
    tables = [_printed(heads, rows, numbers_from=3)]
    names, per_class = by_class(plan, outcome)
    if per_class and len(plan.card.classes) <= SHOWN_CLASSES:
        tables.append(_printed(names, per_class, numbers_from=1))
    return tables


def settings_rows(plan: Plan, outcome: Outcome) -> list[tuple[str, str]]:
    """Return what was done, for people."""
    method, result = plan.arm.consolidation, outcome.result
    shown = [
        ("method", method.method),
        ("transfer set", f"{method.transfer.transfer}, {plural(outcome.transferred, 'example')}"),
        ("labels of it", "used" if method.labels else "not used"),
        ("data", plan.arm.data.source),
        ("student", plan.arm.model.name),
        ("starts from", plan.start),
        ("epochs", f"{result.epochs} (kept: {result.best_epoch})"),
        ("optimiser steps", f"{result.steps:,}"),
        ("seed", str(plan.seed)),
        ("seconds", f"{outcome.seconds:.1f}"),
    ]
    for key in ("temperature", "weight"):
        if hasattr(method, key):
            shown.insert(1, (key, f"{getattr(method, key):g}"))
    return shown


def measured_words(plan: Plan, outcome: Outcome) -> str:
    """Say what the scores are of."""
    count = plural(outcome.measured, "example")
    if plan.is_labelled:
        return f"{_measure(plan)} on {count} of the test split, which the student does not see"
    return f"share of {count}, held out, on which a model answers as the ensemble does: there are no labels"


def unknown_words(plan: Plan) -> str:
    """Say which classes no teacher knows; empty where there is none."""
    names = [
        name
        for place, name in enumerate(plan.card.classes)
        if not any(teacher.knows[place] for teacher in plan.teachers)
    ]
    return f"no teacher knows {shortened(', '.join(names))}: the student is not taught it" if names else ""


def _measure(plan: Plan) -> str:
    return plan.data.task.metric_word if plan.is_labelled else "agreement"


def _written(plan: Plan, value: float) -> str:
    return f"{100 * value:.1f}%" if plan.data.task is CLASSIFICATION else f"{value:.3f}"


def _printed(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> Printed:
    table = Printed(box=None, pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if place >= numbers_from else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
