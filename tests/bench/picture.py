"""The benchmark as a picture: seconds a round against participants, for each model and number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.report.figures import ARM_COLOURS, FAINT, INK


def draw(rows: Sequence[dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """Write the picture; contestants without a figure are left out.

    Parameters
    ----------
    rows
        Of ``bench.json``.
    names
        Contestants in the order of their colours.
    path
        A PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = [row for row in rows if row["status"] == "ok"]
    if not known:
        return
    models = list(dict.fromkeys(row["model"] for row in known))
    workers = sorted({row["workers"] for row in known})
    figure = Figure(figsize=(4.4 * len(models), 3.6 * len(workers) + 0.4), layout="constrained")
    panels = figure.subplots(len(workers), len(models), squeeze=False)
    drawn: dict[str, Any] = {}
    for line, count in zip(panels, workers, strict=True):
        for axes, model in zip(line, models, strict=True):
            here = [row for row in known if (row["model"], row["workers"]) == (model, count)]
            for name in names:
                own = sorted(
                    (row["participants"], row["seconds_per_round"])
                    for row in here
                    if row["contestant"] == name
                )
                if own:
                    drawn[name] = axes.plot(*zip(*own, strict=True), **_look(name, names))[0]
            people = sorted({row["participants"] for row in here})
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(people, [f"{number:,}" for number in people])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{model}, {count} worker{'s' if count > 1 else ''}", loc="left", weight="bold")
            axes.title.set_color(INK)
            axes.grid(visible=True, color=FAINT, alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(FAINT)
            axes.tick_params(length=0, which="both", labelcolor=INK)
        line[0].set_ylabel("seconds a round", color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("participants", color=INK)
    figure.legend(
        list(drawn.values()),
        list(drawn),
        loc="outside upper left",
        ncols=len(drawn),
        frameon=False,
        labelcolor=INK,
    )
    figure.savefig(path, dpi=144, facecolor="white", metadata={"Software": None})


def _look(name: str, names: Sequence[str]) -> dict[str, Any]:
    ours = name.startswith("kdfed")
    return {
        "color": ARM_COLOURS[names.index(name) % len(ARM_COLOURS)],
        "linewidth": 2.6 if ours else 1.4,
        "linestyle": (0, (4, 3)) if name == "bare-loop" else "-",
        "marker": "o",
        "markersize": 4.5,
        "zorder": 3 if ours else 2,
    }
