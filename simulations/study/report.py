"""``study.html``: the paper's questions, answered from ``study.json`` alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdfed.savings import mean_interval
from simulations.report.figures import INK, drawing, short_name, to_svg
from simulations.report.frame import html_page, html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulations.study.settings import StudySettings

Row = Mapping[str, Any]

_UNTUNED = ("vanilla", "mutual", "partitioned")
_ABLATION = ("vanilla", "tuned-temperature", "tuned-weight", "tuned")


def render(study: StudySettings, summary: Mapping[str, Any]) -> str:
    """Return the page; it needs no other file."""
    measure = "R²" if study.data.task == "regression" else "accuracy"
    points = "hundredths" if study.data.task == "regression" else "percentage points"
    own = "range of the label" if study.data.task == "regression" else "classes"
    cells = summary["cells"]
    centre = [row for row in cells if not row["factor"]]
    grid = [row for row in summary["grid"] if not row["factor"]]
    parts = [
        _head(study, summary),
        _section(
            "Which method wins where",
            f"Gain in test {measure}, in {points}: the student after distillation, less before. Means "
            f"over {len(study.seeds)} seeds with 95% intervals; the best of a row in bold.",
            _by_method(centre, study.methods),
        ),
        _section(
            "Tuned KD against the best method that is not tuned",
            "Paired over seeds. The rival is the untuned method with the best mean test gain, chosen after "
            "the fact, so the comparison favours it. Percent are of the rival's mean gain, and left out "
            "where that is not above 0. Why tuned KD is not ahead is told by the pair of the grid with the "
            "best mean test gain, which no search can beat.",
            _against(centre, grid, "tuned", _UNTUNED),
        ),
        _section(
            "The same with equally many trials for every method",
            "The rivals choose among learning rates and numbers of epochs on the validation split, with as "
            "many trials as tuned KD has temperatures and weights.",
            _against(centre, grid, "tuned", tuple(f"{method}-searched" for method in _UNTUNED)),
        ),
        _section(
            "Temperature alone, weight alone, both",
            f"Gain in {points} when only one of the two is searched, the other at its untuned value.",
            _by_method(centre, _ABLATION),
        ),
        _section(
            "Temperature and weight",
            f"Mean gain in {points} over seeds, for every pair that was tried at the centre.",
            _heat_maps(grid),
        ),
        _section(
            "What else matters",
            f"One factor away from the centre at a time; gain in {points}.",
            _factors(cells, study.methods),
        ),
        _section(
            "Forgetting",
            f"{measure.capitalize()} lost on the {own} that the student itself was trained on, in {points}; "
            "below 0 it got better there.",
            _by_method(centre, study.methods, key="forgetting", largest=False),
        ),
        _section(
            "Where to start",
            "For each distribution and transfer set that was tried: the method with the best mean validation "
            f"{measure}, its setting (most often chosen over seeds), and the evidence on the test split.",
            _recommendations(cells, study.methods),
        ),
        _settings(summary),
    ]
    body = "\n".join(part for part in parts if part)
    return html_page(f"{study.name} · kdfed study", body)


# ----------------------------------------------------------------------------- sections


def _head(study: StudySettings, summary: Mapping[str, Any]) -> str:
    centre = study.centre
    facts = [
        f"data <code>{escape(study.data.source)}</code>",
        f"model <code>{escape(study.model.name)}</code>",
        f"centre: {centre.teachers} teacher{'s' if centre.teachers > 1 else ''}",
        f"transfer set {centre.transfer}, {'labelled' if centre.labels else 'unlabelled'}, "
        f"{centre.images or 'all'} images",
        f"seeds {', '.join(map(str, study.seeds))}",
        f"{len(summary['cells'])} cells",
    ]
    return (
        f'<header><div class="eyebrow">kdfed study</div>\n<h1>{escape(study.name)}</h1>\n'
        f'<p class="soft">{" · ".join(facts)}</p></header>'
    )


def _section(title: str, words: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n<p>{words}</p>\n{content}</section>" if content else ""


def _by_method(rows: Sequence[Row], methods: Sequence[str], key: str = "gain", largest: bool = True) -> str:
    methods = [method for method in methods if any(row["method"] == method for row in rows)]
    if len(methods) < 2:
        return ""
    lines = []
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
                *(_bold(_interval(values[method]), method == best) for method in methods),
            ]
        )
    return html_table(["distribution", "teacher %", "student before %", *methods], lines, numbers_from=1)


def _against(rows: Sequence[Row], grid: Sequence[Row], ours: str, rivals: Sequence[str]) -> str:
    lines, reasons = [], []
    for name in _distinct(row["distribution"] for row in rows):
        here = [row for row in rows if row["distribution"] == name]
        gains = {
            method: {row["seed"]: row["gain"] for row in here if row["method"] == method}
            for method in (ours, *rivals)
        }
        present = [method for method in rivals if gains[method]]
        if not gains[ours] or not present:
            return ""
        rival = max(present, key=lambda method: fmean(gains[method].values()))
        differences = [gains[ours][seed] - gains[rival][seed] for seed in gains[ours]]
        mean, low, high = mean_interval(differences)
        base = fmean(gains[rival].values())
        tried = [row for row in grid if row["distribution"] == name]
        relative = f"{100 * fmean(gains[ours].values()) / base - 100:+.0f}%" if base > 0 else "–"
        if len(differences) == 1:
            verdict = "one seed"
        else:
            verdict = "tuned is ahead" if low > 0 else "tuned is behind" if high < 0 else "too close to call"
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
            reasons.append(f"<li>{_name(name)}: {_why(tried, rival, base)}</li>")
    heads = [
        "distribution",
        "rival",
        "its gain",
        "gain of tuned",
        "difference (points)",
        "relative",
        "verdict",
    ]
    why = f"<p>Where tuned KD is not ahead:</p>\n<ul>{''.join(reasons)}</ul>" if reasons else ""
    return html_table(heads, lines, numbers_from=1) + why


_KNOWS = {
    "mutual": ", which trains the teachers too",
    "partitioned": ", which chooses example by example who teaches",
}


def _why(tried: Sequence[Row], rival: str, base: float) -> str:
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
    return f"no pair reaches {method}{_KNOWS.get(method, '')} (best: {words})"


def _factors(cells: Sequence[Row], methods: Sequence[str]) -> str:
    parts = []
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
                lines.append([_name(name), escape(words), *(_interval(own) for own in values)])
        parts.append(
            f"<h3>{factor}</h3>{html_table(['distribution', factor, *present], lines, numbers_from=1)}"
        )
    return "\n".join(parts)


def _heat_maps(grid: Sequence[Row]) -> str:
    weights = sorted({row["weight"] for row in grid})
    temperatures = sorted({row["temperature"] for row in grid})
    if len(weights) < 2 or len(temperatures) < 2:
        return ""
    pictures = [
        f"<figure>{to_svg(_heat_map(grid, name, temperatures, weights), f'heat-{place}')}</figure>"
        for place, name in enumerate(_distinct(row["distribution"] for row in grid))
    ]
    return f'<div class="curves">{"".join(pictures)}</div>'


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


def _recommendations(cells: Sequence[Row], methods: Sequence[str]) -> str:
    lines = []
    places = _distinct(
        (row["distribution"], row["transfer"], row["labels"])
        for row in cells
        if row["factor"] in ("", "transfer", "labels")
    )
    for name, transfer, labels in places:
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
    return html_table(["distribution", "transfer set", "start from", "setting", "evidence"], lines)


def _setting(row: Row) -> str:
    if row["temperature"] is None:
        return ""
    return f"T = {row['temperature']:g}, w = {row['weight']:g}"


def _settings(summary: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    return (
        "<footer>Students are chosen, and temperatures and weights searched, on the validation split; gains "
        f"are measured on the test split. Every figure stands in <code>study.json</code>. {escape(versions)}"
        "</footer>"
    )


# ----------------------------------------------------------------------------- small helpers


def _name(distribution: str) -> str:
    return escape(short_name(distribution, 40))


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, low, high = (100 * value for value in mean_interval(values))
    return f"{mean:+.1f}" if len(values) == 1 else f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def _bold(text: str, wanted: bool) -> str:
    return f"<b>{text}</b>" if wanted else text
