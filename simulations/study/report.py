"""``study.html``: the paper's questions, answered from ``study.json`` alone.

The HTML is in ``report.html.jinja``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from kdfed.savings import FEWEST, mean_interval
from simulations.report.figures import INK, drawing, short_name, to_svg
from simulations.report.frame import Cell, Table, render_html
from simulations.report.words import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulations.study.settings import StudySettings

Row = Mapping[str, Any]


class Comparison(NamedTuple):
    """Tuned KD beside its best rival, and (distribution, why) where it is not ahead."""

    table: Table | None
    reasons: list[tuple[str, str]]


def render(study: StudySettings, summary: Mapping[str, Any]) -> str:
    """Return the page; it needs no other file."""
    regression = study.data.task == "regression"
    cells = summary["cells"]
    centre = [row for row in cells if not row["factor"]]
    grid = [row for row in summary["grid"] if not row["factor"]]
    rivals = [method for method in study.methods if not study.method(method).searches]
    return render_html(
        "study/report.html.jinja",
        name=study.name,
        source=study.data.source,
        model=study.model.title,
        centre=study.centre,
        seeds=study.seeds,
        spread=_spread(len(study.seeds)),
        cells=len(cells),
        measure="R²" if regression else "accuracy",
        points="hundredths" if regression else "percentage points",
        own="range of the label" if regression else "classes",
        by_method=_by_method(centre, study.methods),
        against_untuned=_compare(study, centre, grid, rivals),
        against_searched=_compare(study, centre, grid, [f"{method}-searched" for method in rivals]),
        ablation=_by_method(centre, _ablation(study)),
        heat_maps=_heat_maps(grid),
        factors=_factors(cells, study.methods),
        forgetting=_by_method(centre, study.methods, key="forgetting", largest=False),
        recommendations=_recommendations(cells, study.methods),
        versions=summary["versions"],
    )


def _spread(seeds: int) -> str:
    if seeds < FEWEST:
        return f"the single seeds in brackets; fewer than {FEWEST} seeds have no interval"
    return "95% t intervals in brackets"


# ----------------------------------------------------------------------------- sections


def _by_method(
    rows: Sequence[Row], methods: Sequence[str], key: str = "gain", largest: bool = True
) -> Table | None:
    methods = [method for method in methods if any(row["method"] == method for row in rows)]
    if len(methods) < 2:
        return None
    lines: list[list[str | Cell]] = []
    for name in _distinct(row["distribution"] for row in rows):
        here = [row for row in rows if row["distribution"] == name]
        values = {method: [row[key] for row in here if row["method"] == method] for method in methods}
        means = {method: fmean(own) for method, own in values.items() if own}
        best = (max if largest else min)(means, key=means.__getitem__)
        one = {row["seed"]: row for row in here}.values()
        lines.append(
            [
                _name(name),
                _points(fmean(row["teacher_accuracy"] for row in one)),
                _points(fmean(row["before"] for row in one)),
                *(Cell(_interval(values[method]), bold=method == best) for method in methods),
            ]
        )
    return Table(["distribution", "teacher %", "student before %", *methods], lines, numbers_from=1)


def _ablation(study: StudySettings) -> list[str]:
    """Return the first search beside what it searches: with nothing, one, and both of the two searched."""
    for method in study.methods:
        searched = study.method(method).searches
        if searched:
            return [searched, f"{method}-temperature", f"{method}-weight", method]
    return []


def _compare(
    study: StudySettings, rows: Sequence[Row], grid: Sequence[Row], rivals: Sequence[str]
) -> Comparison:
    """Compare the first method that searches with the best of those that do not."""
    lines, reasons = [], []
    ours = next((method for method in study.methods if study.method(method).searches), None)
    if ours is None:
        return Comparison(None, [])
    for name in _distinct(row["distribution"] for row in rows):
        here = [row for row in rows if row["distribution"] == name]
        gains = {
            method: {row["seed"]: row["gain"] for row in here if row["method"] == method}
            for method in (ours, *rivals)
        }
        present = [method for method in rivals if gains[method]]
        if not gains[ours] or not present:
            return Comparison(None, [])
        rival = max(present, key=lambda method: fmean(gains[method].values()))
        differences = [gains[ours][seed] - gains[rival][seed] for seed in gains[ours]]
        mean, low, high = mean_interval(differences)
        base = fmean(gains[rival].values())
        tried = [row for row in grid if row["distribution"] == name]
        relative = f"{100 * fmean(gains[ours].values()) / base - 100:+.0f}%" if base > 0 else "–"
        if low is None or high is None:
            verdict = f"none: {plural(len(differences), 'seed')}"
        else:
            verdict = (
                f"{ours} is ahead" if low > 0 else f"{ours} is behind" if high < 0 else "too close to call"
            )
        lines.append(
            [
                _name(name),
                rival,
                _interval(list(gains[rival].values())),
                _interval(list(gains[ours].values())),
                _interval(differences),
                relative,
                verdict if abs(mean) > 0 else "no difference",
            ]
        )
        if mean <= 0:
            reasons.append((_name(name), _why(study, tried, rival, base)))
    heads = [
        "distribution",
        "rival",
        "its gain",
        f"gain of {ours}",
        "difference (points)",
        "relative",
        "verdict",
    ]
    return Comparison(Table(heads, lines, numbers_from=1), reasons)


def _why(study: StudySettings, tried: Sequence[Row], rival: str, base: float) -> str:
    """Say why tuned KD is not ahead: no pair of the grid is, or the validation split chose another."""
    pairs = _distinct((row["temperature"], row["weight"]) for row in tried)
    means = {
        pair: fmean(row["gain"] for row in tried if (row["temperature"], row["weight"]) == pair)
        for pair in pairs
    }
    best = max(means, key=means.__getitem__)
    words = f"T = {best[0]:g}, w = {best[1]:g}, {100 * means[best]:+.1f}"
    axes = [sorted(set(values)) for values in zip(*pairs, strict=True)]
    if any(len(axis) > 1 and value in (axis[0], axis[-1]) for axis, value in zip(axes, best, strict=True)):
        words += ", at the grid's edge"
    if means[best] > base:
        return f"validation chose other pairs than the best ({words})"
    method = rival.removesuffix("-searched")
    knows = study.method(method).knows
    return f"no pair reaches {method}{f', {knows}' if knows else ''} (best: {words})"


def _factors(cells: Sequence[Row], methods: Sequence[str]) -> dict[str, Table]:
    tables = {}
    for factor in ("teachers", "transfer", "labels", "images", "model"):
        away = [row for row in cells if row["factor"] == factor]
        if not away:
            continue
        names = {row["distribution"] for row in away}
        rows = [row for row in cells if not row["factor"] and row["distribution"] in names] + away
        present = [method for method in methods if any(row["method"] == method for row in rows)]
        lines = []
        for name in _distinct(row["distribution"] for row in rows):
            for value in _distinct(row[factor] for row in rows):
                here = [row for row in rows if row["distribution"] == name and row[factor] == value]
                words = "all" if value is None else str(value)
                if isinstance(value, bool):
                    words = "yes" if value else "no"
                values = [[row["gain"] for row in here if row["method"] == method] for method in present]
                lines.append([_name(name), words, *(_interval(own) for own in values)])
        tables[factor] = Table(["distribution", factor, *present], lines, numbers_from=1)
    return tables


def _heat_maps(grid: Sequence[Row]) -> list[str]:
    weights = sorted({row["weight"] for row in grid})
    temperatures = sorted({row["temperature"] for row in grid})
    if len(weights) < 2 or len(temperatures) < 2:
        return []
    return [
        to_svg(_heat_map(grid, name, temperatures, weights), f"heat-{number}")
        for number, name in enumerate(_distinct(row["distribution"] for row in grid))
    ]


def _heat_map(
    grid: Sequence[Row], name: str, temperatures: Sequence[float], weights: Sequence[float]
) -> Figure:
    gains = [
        [
            100
            * fmean(
                row["gain"]
                for row in grid
                if (row["distribution"], row["temperature"], row["weight"]) == (name, t, w)
            )
            for t in temperatures
        ]
        for w in weights
    ]
    reach = max(abs(value) for row in gains for value in row) or 1.0
    with drawing({}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.imshow(gains, cmap="RdBu", vmin=-reach, vmax=reach, origin="lower", aspect="auto")
        for y, row in enumerate(gains):
            for x, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 * reach else "black"
                axes.text(x, y, f"{value:+.1f}", ha="center", va="center", fontsize=8.5, color=colour)
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures], color=INK)
        axes.set_yticks(range(len(weights)), [f"{w:g}" for w in weights], color=INK)
        axes.set_xlabel("temperature", color=INK)
        axes.set_ylabel("weight", color=INK)
        axes.set_title(short_name(name, 40), color=INK, loc="left", fontsize=11, fontweight="bold")
    return figure


def _recommendations(cells: Sequence[Row], methods: Sequence[str]) -> Table:
    lines = []
    settings = _distinct(
        (row["distribution"], row["transfer"], row["labels"])
        for row in cells
        if row["factor"] in ("", "transfer", "labels")
    )
    for name, transfer, labels in settings:
        here = [
            row
            for row in cells
            if (row["distribution"], row["transfer"], row["labels"]) == (name, transfer, labels)
            and row["factor"] in ("", "transfer", "labels")
            and row["method"] in methods
        ]
        scores = {
            method: fmean(row["validation_accuracy"] for row in here if row["method"] == method)
            for method in methods
        }
        best, *others = sorted(scores, key=lambda method: -scores[method])
        own = [row for row in here if row["method"] == best]
        setting = Counter(_setting(row) for row in own).most_common(1)[0]
        evidence = f"{_interval([row['gain'] for row in own])} points over {len(own)} seeds"
        if others:
            rest = [row["gain"] for row in here if row["method"] == others[0]]
            evidence += f"; next {others[0]}, {_interval(rest)}"
        chosen = setting[0] or "as in the study"
        lines.append(
            [
                _name(name),
                f"{transfer}, {'labelled' if labels else 'unlabelled'}",
                best,
                f"{chosen} ({setting[1]} of {len(own)})" if setting[0] else chosen,
                evidence,
            ]
        )
    return Table(["distribution", "transfer set", "start from", "setting", "evidence"], lines)


def _setting(row: Row) -> str:
    if row["temperature"] is None:
        return ""
    return f"T = {row['temperature']:g}, w = {row['weight']:g}"


# ----------------------------------------------------------------------------- small helpers


def _name(distribution: str) -> str:
    return short_name(distribution, 40)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(values: Sequence[float]) -> str:
    """Say the mean and its interval; of fewer than six seeds, the mean and the single seeds' values."""
    if not values:
        return ""
    mean, low, high = mean_interval(values)
    if len(values) == 1:
        return f"{100 * mean:+.1f}"
    if low is None or high is None:
        return f"{100 * mean:+.1f} ({', '.join(f'{100 * value:.1f}' for value in sorted(values))})"
    return f"{100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
