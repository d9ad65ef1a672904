"""Pictures: accuracy against cost, and who holds which classes.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart. The page swaps
:data:`INK`, :data:`FAINT` and the arms' colours for CSS variables, so that they suit light and dark.
"""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfed.config import Experiment
from kdfed.errors import RunError
from kdfed.records import RoundRecord
from kdfed.task import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, FAINT = "#22262b", "#8b9199"
PARTICIPANTS_SHOWN = 100

_STYLE: Any = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelsize": 10.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": FAINT,
    "grid.alpha": 0.2,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "kdfed",
}

_NO_MATHEMATICS = {"text.parse_math": False}
"""A name may hold dollar signs, which would begin mathematics."""


@contextmanager
def drawing(style: Mapping[str, Any] = _STYLE) -> Iterator[None]:
    """Draw or save a figure inside: in this style whatever the user's matplotlibrc says, without a display.

    A character that the font lacks is drawn as a box.

    Raises
    ------
    RunError
        If matplotlib cannot be loaded.
    """
    try:
        matplotlib = _load_matplotlib()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"the pictures need matplotlib, which cannot be loaded: {error}; install kdfed[sim], and let "
            "MPLCONFIGDIR name a folder that can be written to"
        ) from error
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**defaults, **_NO_MATHEMATICS, **style}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def _load_matplotlib() -> ModuleType:
    """Import matplotlib; an MPLBACKEND that this Python does not have would end its import."""
    name, backend = "MPLBACKEND", os.environ.get("MPLBACKEND", "")
    if backend and "matplotlib" not in sys.modules:
        os.environ[name] = "agg"  # nothing here shows a window
        try:
            matplotlib = import_module("matplotlib")
        finally:
            os.environ[name] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # for whoever does
    import_module("matplotlib.figure")
    return import_module("matplotlib")


CostOf = Callable[[RoundRecord], float]

PANELS: dict[str, tuple[str, CostOf]] = {
    "exchanges": ("exchanges", lambda record: record.exchanges),
    "uploads": ("participant uploads", lambda record: record.participant_uploads),
    "bytes": ("bytes up and down", lambda record: record.bytes_up + record.bytes_down),
}
"""What accuracy is drawn against: a name, words for the axis, and the cost itself."""


def colour_of(experiment: Experiment, arm: str) -> str:
    """Return an arm's colour; the baseline has the first."""
    return ARM_COLOURS[experiment.arm_order.index(arm) % len(ARM_COLOURS)]


def metric_word(experiment: Experiment) -> str:
    """Return what an experiment's scores are called."""
    return TASKS[experiment.data.task].metric_word


def curves_figure(
    experiment: Experiment,
    records: Sequence[RoundRecord],
    summary: Mapping[str, Any],
    panels: Sequence[str] = tuple(PANELS),
) -> Figure:
    """Draw validation accuracy against costs, one panel a cost.

    Thin lines are single seeds, dots on them the hits; bold lines are means, as far as every seed ran.
    Dashed lines are the targets (of relative targets, the mean over seeds).

    Parameters
    ----------
    experiment, records, summary
        What the run folder holds.
    panels
        Keys of :data:`PANELS`. Several have titles and a legend; a single one has neither.

    Returns
    -------
    Figure
        Of matplotlib; not known to pyplot.
    """
    arms = [arm for arm in experiment.arm_order if any(record.arm == arm for record in records)]
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        size = (4.1, 3.6) if len(panels) == 1 else (4.9 * len(panels), 4.6)
        figure = Figure(figsize=size, layout="constrained")
        for axes, panel in zip(np.ravel(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
            _draw_panel(axes, experiment, arms, records, summary, panel)
            if len(panels) > 1:
                axes.set_title(f"{metric_word(experiment)} against {PANELS[panel][0]}")
        _name_targets(figure.axes[-1], _levels(summary))
        figure.axes[0].set_ylabel(f"validation {metric_word(experiment)}")
        if len(panels) > 1:
            handles = [Line2D([], [], color=colour_of(experiment, arm), linewidth=2.6) for arm in arms]
            handles.append(Line2D([], [], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2))
            figure.legend(
                handles,
                [*(short_name(arm, 24) for arm in arms), "target"],
                loc="outside upper left",
                ncols=len(handles),
                frameon=False,
                fontsize=11.5,
            )
    return figure


def _draw_panel(
    axes: Axes,
    experiment: Experiment,
    arms: Sequence[str],
    records: Sequence[RoundRecord],
    summary: Mapping[str, Any],
    panel: str,
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    words, cost = PANELS[panel]
    scale, unit = _unit(max(map(cost, records), default=0)) if panel == "bytes" else (1.0, "")
    for level in _levels(summary).values():
        axes.axhline(level, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    for arm in arms:
        colour = colour_of(experiment, arm)
        curves = [
            [record for record in records if (record.arm, record.seed) == (arm, seed)]
            for seed in experiment.seeds
        ]
        curves = [curve for curve in curves if curve]
        common = min(len(curve) for curve in curves)
        for curve in curves:
            x, y = [cost(record) / scale for record in curve], [record.accuracy for record in curve]
            axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.45)
            hits = sorted(_hit_rounds(summary, arm, curve[0].seed))
            axes.scatter([x[i] for i in hits], [y[i] for i in hits], s=13, color=colour, zorder=4)
        mean_x = np.mean([[cost(record) / scale for record in curve[:common]] for curve in curves], axis=0)
        mean_y = np.mean([[record.accuracy for record in curve[:common]] for curve in curves], axis=0)
        axes.plot(mean_x, mean_y, color=colour, linewidth=2.6, solid_capstyle="round", zorder=3)
    axes.set_xlabel(f"{words} ({unit})" if unit else words)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=panel != "bytes"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(left=0)
    bottom, top = axes.get_ylim()
    if top > -1.0:
        axes.set_ylim(bottom=max(bottom, -1.0))  # R² has no lower bound
    axes.grid(visible=True)
    axes.tick_params(length=0)


def _levels(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean accuracy to reach of each target, lowest first."""
    levels = {}
    for target in summary["targets"]:
        wanted = [
            run["target_accuracy"]
            for run in summary["runs"]
            if run["target"] == target and run["target_accuracy"] is not None
        ]
        if wanted:
            levels[target] = float(np.mean(wanted))
    return dict(sorted(levels.items(), key=lambda item: item[1]))


def _name_targets(axes: Axes, levels: Mapping[str, float]) -> None:
    """Write the targets' names to the right of the last panel, so that they do not cover one another."""
    low, high = axes.get_ylim()
    height = -np.inf
    for target, level in levels.items():
        height = max(level, height + 0.045 * (high - low))
        axes.annotate(
            target_words(target),
            (1.015, height),
            xycoords=("axes fraction", "data"),
            va="center",
            color=INK,
            fontsize=8.5,
            annotation_clip=False,
        )


def _hit_rounds(summary: Mapping[str, Any], arm: str, seed: int) -> set[int]:
    runs = [run for run in summary["runs"] if (run["arm"], run["seed"]) == (arm, seed)]
    return {run["rounds_to_target"] for run in runs if run["rounds_to_target"] is not None}


def target_words(target: str) -> str:
    """Say a target as people do: ``90% of best``, ``90%``."""
    if target.endswith("-of-converged"):
        return target.replace("%-of-converged", "% of best")
    return f"{100 * float(target):g}%"


def _unit(largest: float) -> tuple[float, str]:
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= scale:
            return scale, unit
    return 1.0, "B"


def partition_figure(entry: Mapping[str, Any]) -> Figure:
    """Draw who holds which classes: a bubble's area is the number of examples, bars are the sums.

    Parameters
    ----------
    entry
        One entry of ``partitions`` in ``summary.json``; ``counts`` is [participants, classes].

    Returns
    -------
    Figure
        Of the first 100 participants.
    """
    counts = np.asarray(entry["counts"])[:PARTICIPANTS_SHOWN]
    participants, classes = counts.shape
    step = min(0.3, 12 / classes)
    width, height = (
        max(6.0, 1.5 + 0.3 * min(participants, 40) + 0.12 * max(0, participants - 40)),
        step * classes,
    )
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(width, height + 2.2), layout="constrained")
        bars, bubbles = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, max(height, 1.0)))
        bars.bar(np.arange(participants), counts.sum(axis=1), color=ARM_COLOURS[0], width=0.72)
        bars.set_ylabel("examples")
        bars.set_title(_partition_title(entry, participants))
        bars.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        holder, held = np.nonzero(counts)
        across = min(step, (width - 1.5) / participants) * 72 * 0.92
        area = across**2 * counts[holder, held] / max(1, counts.max())
        bubbles.scatter(holder, held, s=np.maximum(area, 1.0), color=ARM_COLOURS[0], linewidths=0, alpha=0.85)
        bubbles.set_xlabel("participant")
        bubbles.set_ylabel("class")
        every = -(-classes // 40)
        names = [short_name(str(name)) for name in entry["class_names"]]
        bubbles.set_yticks(range(0, classes, every), names[:classes:every])
        bubbles.set_ylim(classes - 0.4, -0.6)
        bubbles.set_xlim(-0.7, participants - 0.3)
        bubbles.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
        for axes in (bars, bubbles):
            axes.grid(visible=True, axis="y" if axes is bars else "both")
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
    return figure


def _partition_title(entry: Mapping[str, Any], shown: int) -> str:
    everyone = int(entry["participants"])
    participants = (
        f"{everyone} participants" if shown == everyone else f"the first {shown} of {everyone} participants"
    )
    return f"Who holds what, seed {entry['seed']}: {participants}"


def short_name(name: str, most: int = 18) -> str:
    """Return what somebody named, as pictures, pages and tables show it.

    On one line, at most ``most`` characters, and without characters that turn the text around it or steer a
    terminal.
    """
    begun = " ".join(name[: 8 * most].split())
    cut = begun if len(name) <= 8 * most and len(begun) <= most else f"{begun[: most - 1]}…"
    return "".join("\ufffd" if _is_unprintable(character) else character for character in cut)


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _TURNS


_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Embeddings, overrides and isolates of a direction of writing."""


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG on white."""
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element whose colours are the page's CSS variables.

    Parameters
    ----------
    figure
        Drawn with this module's colours.
    name
        Begins every id in it, so that several fit into one page.
    """
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d. a-z]*?)([\d.]+px) [^;\"]*", r"font: \1\2 var(--font)", svg)
    for index, colour in enumerate(ARM_COLOURS):
        svg = svg.replace(colour, f"var(--arm-{index})")
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    width, height = figure.get_size_inches()
    opening = f'<svg viewBox="0 0 {72 * width:g} {72 * height:g}" style="max-width:{round(110 * width)}px">'
    return re.sub(r"<svg .*?>", opening, svg, count=1, flags=re.DOTALL)
