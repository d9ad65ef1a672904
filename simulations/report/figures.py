"""Pictures: accuracy against cost, and who holds which classes.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart. The page swaps
:data:`INK`, :data:`FAINT`, :data:`PAPER` and the arms' colours for CSS variables, so that they suit light and
dark.
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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdfed.config import Experiment
from kdfed.errors import RunError
from kdfed.records import RoundRecord
from kdfed.task import TASKS
from simulations.report.counted import Summary, control_arms, level_of, spent
from simulations.report.words import target_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, FAINT, PAPER = "#22262b", "#8b9199", "#fefefe"
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


class Panel(NamedTuple):
    """What accuracy is drawn against.

    Parameters
    ----------
    title
        Above the panel.
    words
        Below its axis.
    cost
        A record's.
    cost_name
        The same in ``hit`` of a summary.
    near_targets
        Whether only accuracies near the targets and above are drawn.
    """

    title: str
    words: str
    cost: CostOf
    cost_name: str
    near_targets: bool = False


PANELS = {
    "exchanges": Panel("exchanges", "exchanges", lambda record: record.exchanges, "exchanges"),
    "targets": Panel(
        "exchanges, near the targets", "exchanges", lambda record: record.exchanges, "exchanges", True
    ),
    "uploads": Panel(
        "participant uploads",
        "participant uploads",
        lambda record: record.participant_uploads,
        "participant_uploads",
    ),
    "bytes": Panel("bytes", "bytes up and down", lambda record: record.bytes_up + record.bytes_down, "bytes"),
}
"""A panel's name -> what is drawn in it."""

DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
"""How the curves of controls are broken, the first control first."""

_DOTTED: Any = (0, (1, 2.2))


def colour_of(experiment: Experiment, arm: str) -> str:
    """Return an arm's colour; the baseline has the first."""
    return ARM_COLOURS[experiment.arm_order.index(arm) % len(ARM_COLOURS)]


def metric_word(experiment: Experiment) -> str:
    """Return what an experiment's scores are called."""
    return TASKS[experiment.data.task].metric_word


def curves_figure(
    experiment: Experiment,
    records: Sequence[RoundRecord],
    summary: Summary,
    panels: Sequence[str] = tuple(PANELS),
) -> Figure:
    """Draw accuracy on the evaluation split against costs, one panel a cost.

    Thin lines are single seeds, bold lines are means, as far as every seed ran; of controls, which are broken
    lines, there is the mean alone. Dotted lines are the targets (of relative targets, the mean over seeds); a
    dot on one of them is where a seed reached it.

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
    controls = [arm for arm in arms if arm in control_arms(summary)]
    with drawing():
        from matplotlib.figure import Figure

        single = len(panels) == 1
        rows, columns = (1, 1) if single else (-(-len(panels) // 2), 2)
        size = (5.0, 3.5) if single else (5.6 * columns, 4.0 * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, name in zip(grid.flat, panels, strict=True):
            _draw_panel(axes, experiment, arms, controls, records, summary, PANELS[name])
            _name_targets(axes, _levels(summary))
            if not single:
                axes.set_title(f"{metric_word(experiment)} against {PANELS[name].title}")
        for axes in grid[:, 0]:
            axes.set_ylabel(f"{metric_word(experiment)} on the evaluation split")
        if not single:
            _draw_legend(figure, experiment, arms, controls)
    return figure


def _draw_legend(
    figure: Figure, experiment: Experiment, arms: Sequence[str], controls: Sequence[str]
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour_of(experiment, arm), **_line(arm, controls), solid_capstyle="round")
        for arm in arms
    ]
    handles.append(Line2D([], [], color=FAINT, linestyle=_DOTTED, linewidth=1.4))
    figure.legend(
        handles,
        [*(short_name(arm, 24) for arm in arms), "target"],
        loc="outside upper left",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=11.5,
    )


def _line(arm: str, controls: Sequence[str]) -> dict[str, Any]:
    if arm in controls:
        return {"linewidth": 1.5, "linestyle": DASHES[controls.index(arm) % len(DASHES)], "alpha": 0.9}
    return {"linewidth": 2.6, "linestyle": "-"}


def _draw_panel(
    axes: Axes,
    experiment: Experiment,
    arms: Sequence[str],
    controls: Sequence[str],
    records: Sequence[RoundRecord],
    summary: Summary,
    panel: Panel,
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    cost, is_bytes = panel.cost, panel.cost_name == "bytes"
    scale, unit = _unit(max(map(cost, records), default=0)) if is_bytes else (1.0, "")
    levels = _levels(summary)
    for level in levels.values():
        axes.axhline(level, color=FAINT, linestyle=_DOTTED, linewidth=1.4, zorder=1)
    for arm in arms:
        colour, style = colour_of(experiment, arm), _line(arm, controls)
        curves = [
            [record for record in records if (record.arm, record.seed) == (arm, seed)]
            for seed in experiment.seeds
        ]
        curves = [curve for curve in curves if curve]
        common = min(len(curve) for curve in curves)
        for curve in curves if arm not in controls else ():
            x, y = [cost(record) / scale for record in curve], [record.accuracy for record in curve]
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.45 if len(curves) < 6 else 0.28)
        mean_x = np.mean([[cost(record) / scale for record in curve[:common]] for curve in curves], axis=0)
        mean_y = np.mean([[record.accuracy for record in curve[:common]] for curve in curves], axis=0)
        above = 2 if arm in controls else 3
        axes.plot(mean_x, mean_y, color=colour, solid_capstyle="round", zorder=above, **style)
        for target, level in levels.items():
            paid = [value / scale for value in spent(summary, arm, target, panel.cost_name) if value < np.inf]
            size = 12 if arm in controls else 26
            axes.scatter(
                *(paid, [level] * len(paid)),
                s=size,
                color=colour,
                edgecolors=PAPER,
                linewidths=0.7,
                zorder=above + 2,
            )
    axes.set_xlabel(f"{panel.words} ({unit})" if unit else panel.words)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=not is_bytes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(left=0)
    bottom, top = axes.get_ylim()
    if panel.near_targets and levels:
        axes.set_ylim(*_near(list(levels.values()), max(record.accuracy for record in records)))
    elif top > -1.0:
        axes.set_ylim(bottom=max(bottom, -1.0))  # R² has no lower bound
    axes.grid(visible=True)
    axes.tick_params(length=0)


def _near(levels: Sequence[float], best: float) -> tuple[float, float]:
    """Return a range from a little below the lowest target that can be reached to just above the best."""
    lowest = min(min(levels), best)
    room = max(best - lowest, 0.02)
    return lowest - 0.35 * room, best + 0.08 * room


def _levels(summary: Summary) -> dict[str, float]:
    """Return the mean accuracy to reach of each target, lowest first."""
    levels = {target: level_of(summary, target) for target in summary["targets"]}
    known = {target: level for target, level in levels.items() if level is not None}
    return dict(sorted(known.items(), key=lambda item: item[1]))


def _name_targets(axes: Axes, levels: Mapping[str, float]) -> None:
    """Write the targets' names to the right of a panel, so that they do not cover one another."""
    low, high = axes.get_ylim()
    height = -np.inf
    for target, level in levels.items():
        if not low <= level <= high:
            continue
        height = max(level, height + 0.055 * (high - low))
        axes.annotate(
            target_words(target),
            (1.015, height),
            xycoords=("axes fraction", "data"),
            va="center",
            color=INK,
            fontsize=8.5,
            annotation_clip=False,
        )


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
    for colour, variable in ((INK, "ink"), (FAINT, "faint"), (PAPER, "card")):
        svg = svg.replace(colour, f"var(--{variable})")
    width, height = figure.get_size_inches()
    opening = f'<svg viewBox="0 0 {72 * width:g} {72 * height:g}" style="max-width:{round(110 * width)}px">'
    return re.sub(r"<svg .*?>", opening, svg, count=1, flags=re.DOTALL)
