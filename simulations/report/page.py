"""``report.html``: one page that needs no other file. The HTML is in ``page.html.jinja``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from kdfed.config import Arm, Experiment, dotted
from kdfed.pooled import is_open
from kdfed.records import RoundRecord
from kdfed.savings import FEWEST
from simulations.report.counted import (
    arms_of,
    cells_of,
    comparison_of,
    control_arms,
    is_few,
    level_of,
    median,
    ratios_of,
    spent,
    still_rising,
)
from simulations.report.figures import (
    ARM_COLOURS,
    PANELS,
    PARTICIPANTS_SHOWN,
    curves_figure,
    metric_word,
    partition_figure,
    short_name,
    to_svg,
)
from simulations.report.frame import Cell, Table, render_html
from simulations.report.rows import control_heads, control_rows, labels_of, not_run, rising, score, starts_of
from simulations.report.words import (
    headline,
    number,
    paying_words,
    percent,
    plural,
    recipe_words,
    saving,
    signed,
    sunk_words,
    target_words,
    trips,
    verdict,
    verdict_line,
)

_ABSENT_SHOWN, _PARTITIONS_SHOWN, _REASON_SHOWN = 50, 3, 300


def render_page(
    experiment: Experiment, records: Sequence[RoundRecord], summary: Mapping[str, Any], finished: bool
) -> str:
    """Write the page.

    Parameters
    ----------
    experiment, records, summary
        What the run folder holds.
    finished
        False when the run was killed before its summary.

    Returns
    -------
    str
        HTML with inline styles and pictures.
    """
    absent = _absent(records)
    present = {record.arm for record in records}
    return render_html(
        "report/page.html.jinja",
        name=experiment.name,
        participants=experiment.partition.participants,
        kind=experiment.partition.kind,
        source=experiment.data.source,
        model=experiment.model.title,
        seeds=experiment.seeds,
        engine=summary["engine"],
        finished=finished,
        notes=list(_notes(experiment, summary, finished)),
        baseline=experiment.baseline_arm,
        cards=[_card(experiment, summary, arm, target) for arm, target in cells_of(summary)],
        few=is_few(len(summary["seeds"])),
        fewest=FEWEST,
        verdicts=verdict_line(summary),
        rising=[(_arm(experiment, one.arm), one) for one in rising(summary)],
        controls=_controls(experiment, records, summary),
        not_run=not_run(summary),
        labels=labels_of(summary),
        examples=summary["evaluation_examples"],
        horizon=summary["horizon"],
        early=_early(summary),
        comparisons=_comparisons(experiment, summary),
        alone=[_alone(summary, target) for target in summary["targets"]],
        metric=metric_word(experiment),
        legend=[
            (_arm(experiment, arm), arm in control_arms(summary))
            for arm in experiment.arm_order
            if arm in present
        ],
        panels=[
            {
                "words": panel.title,
                "picture": to_svg(curves_figure(experiment, records, summary, [name]), f"curve-{name}"),
            }
            for name, panel in PANELS.items()
        ],
        partitions=list(_partitions(summary)),
        partitions_shown=_PARTITIONS_SHOWN,
        differing=_differing(experiment),
        settings=Table(
            ["key", "value"],
            [
                [_code(key), _code(_write(value))]
                for key, value in dotted(experiment.model_dump(mode="json"))
                if not key.startswith("arms.")
            ],
        ),
        costs=_costs(experiment, records),
        refits=_refits(experiment, summary),
        runs=_runs(experiment, summary),
        absences=sum(len(record.absent) for record in records),
        absent=absent._replace(rows=absent.rows[:_ABSENT_SHOWN]),
        absent_groups=len(absent.rows),
        versions=summary["versions"],
        hashes=_hashes(summary),
    )


# ----------------------------------------------------------------------------- what came out


def _notes(experiment: Experiment, summary: Mapping[str, Any], finished: bool) -> Iterator[str]:
    if summary.get("note"):
        yield summary["note"]
    told = still_rising(summary)
    if told:
        yield told
    sunk = sunk_words(summary)
    if sunk:
        yield sunk
    yield from filter(None, (recipe_words(summary), paying_words(summary)))
    failures = summary.get("failures", ())
    for failure in failures:
        yield (
            f"{failure['arm']}, seed {failure['seed']}, failed in the phase {failure['phase']}, and is read "
            f"as far as recorded: {failure['reason']}"
        )
    known = {(failure["arm"], failure["seed"]) for failure in failures}
    for stopped in ("failed", "interrupted") if finished else ():
        names = {
            f"{run['arm']} (seed {run['seed']})"
            for run in summary["runs"]
            if run["stopped"] == stopped and (run["arm"], run["seed"]) not in known
        }
        if names:
            listed = ", ".join(sorted(names))
            yield f"{stopped.capitalize()} before the end, and read as far as recorded: {listed}."
    evaluated = {(run["arm"], run["seed"]) for run in summary["runs"]}
    missing = len(experiment.arms) * len(experiment.seeds) - len(evaluated)
    if missing:
        yield f"{plural(missing, 'run')} of an arm and a seed left no evaluation that could be compared."


def _early(summary: Mapping[str, Any]) -> int:
    """Return how many runs ended of themselves before the horizon."""
    ends = {(run["arm"], run["seed"]): run["stopped"] for run in summary["runs"]}
    return sum(stopped in ("target", "plateau", "listener") for stopped in ends.values())


def _alone(summary: Mapping[str, Any], target: str) -> dict[str, Any]:
    """One arm alone saves nothing; tell when it reached a target."""
    arm = arms_of(summary)[0]
    paid = spent(summary, arm, target, "exchanges")
    hits = sum(value < math.inf for value in paid)
    return {
        "target": target_words(target),
        "words": trips(paid) if hits else "",
        "hits": hits,
        "seeds": len(paid),
    }


_TILES = {
    "exchanges": ("Exchanges, teachers counted", "fewer", number),
    "participant_uploads": ("Participant uploads", "fewer", number),
    "bytes": ("Bytes up and down", "less", lambda count: decimal(round(count)).replace(" ", "\u00a0")),
    "local_steps": ("Local steps of training", "fewer", number),
}
"""The first is the loudest."""


def _card(experiment: Experiment, summary: Mapping[str, Any], arm: str, target: str) -> dict[str, Any]:
    sentence, notes = headline(summary, arm, target)
    first = comparison_of(summary, arm, target, "exchanges")
    tiles = []
    for cost, (title, fewer, write) in _TILES.items():
        comparison = comparison_of(summary, arm, target, cost)
        said = saving(summary, comparison, fewer)
        seeds = ratios_of(summary, comparison)
        ours, theirs = (spent(summary, name, target, cost, seeds) for name in (arm, comparison["baseline"]))
        tiles.append(
            {
                "title": title,
                "tone": said.tone,
                "figure": said.figure,
                "details": [part for part in (said.interval, said.others) if part],
                "spent": _instead(ours, theirs, write),
            }
        )
    return {
        "arm": _arm(experiment, arm),
        "target": target_words(target),
        "level": level_of(summary, target) if "%-of-" in target else None,
        "sentence": sentence,
        "verdict": verdict(first),
        "tone": first["verdict"] or "none",
        "tiles": tiles if first["pairs"] else [],
        "seeds": first["pairs"],
        "notes": notes,
    }


def _instead(ours: Sequence[float], theirs: Sequence[float], write: Callable[[float], str]) -> str:
    """Say medians; a miss is later than everything."""
    if not ours or math.isinf(median(ours)) or math.isinf(median(theirs)):
        return ""
    return f"{write(median(ours))} instead of {write(median(theirs))}"


def _comparisons(experiment: Experiment, summary: Mapping[str, Any]) -> Table:
    heads = ["arm", "target", "cost", "saved", "interval", "geometric ratio", "verdict", "p", "seeds"]
    heads += ["missed: baseline / arm / both", "without federation", "left out"]
    rows: list[list[str | Cell]] = []
    for entry in summary["comparisons"]:
        missed, ratio = entry["censored"], entry["ratio"]
        ends = "" if ratio is None or ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        figure, interval = signed(summary, entry)
        rows.append(
            [
                *(_arm(experiment, entry["arm"]), target_words(entry["target"])),
                *(entry["cost"].replace("_", " "), figure, interval or "–"),
                "–" if ratio is None else f"{ratio['geometric_mean']:.2f}{ends}",
                *(verdict(entry) or "–", "–" if entry["p_value"] is None else f"{entry['p_value']:.2g}"),
                *(str(entry["pairs"]), " / ".join(str(missed[key]) for key in ("baseline", "arm", "both"))),
                *(str(entry["without_federation"]), str(entry["failed"])),
            ]
        )
    return Table(heads, rows, numbers_from=3)


def _controls(experiment: Experiment, records: Sequence[RoundRecord], summary: Mapping[str, Any]) -> Table:
    rows: list[list[str | Cell]] = []
    for row in control_rows(summary, starts_of(records)):
        first: str | Cell = row.cells[0]
        if row.arm is not None:
            first = _arm(experiment, row.arm)._replace(text=row.cells[0])
        rows.append([first, *row.cells[1:]])
    return Table(control_heads(summary), rows, numbers_from=1)


# ----------------------------------------------------------------------------- what was run


def _partitions(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for index, entry in enumerate(summary["partitions"]):
        shown = min(entry["participants"], PARTICIPANTS_SHOWN)
        drawn = index < _PARTITIONS_SHOWN
        yield {
            **entry,
            "shown": shown,
            "least": max(420, 7 * shown),
            "picture": to_svg(partition_figure(entry), f"partition-{index}") if drawn else "",
        }


def _differing(experiment: Experiment) -> Table:
    """Return the settings in which the arms differ."""
    order = experiment.arm_order
    flat = {name: dict(dotted(experiment.arm(name).model_dump(mode="json"))) for name in order}
    rows = [
        [key, *(_write(flat[name].get(key, "–")) for name in order)]
        for key in dict.fromkeys(key for values in flat.values() for key in values)
    ]
    return Table(
        ["key", *(_arm(experiment, name) for name in order)],
        [[_code(text) for text in row] for row in rows if len(set(row[1:])) > 1],
    )


def _costs(experiment: Experiment, records: Sequence[RoundRecord]) -> Table:
    heads = ["arm", "phase", "exchanges", "uploads", "bytes up", "bytes down", "local steps", "seconds"]
    rows: list[list[str | Cell]] = []
    for arm in experiment.arm_order:
        curves = [[r for r in records if (r.arm, r.seed) == (arm, seed)] for seed in experiment.seeds]
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        rounds = sum(curve[-1].round for curve in curves) / len(curves)
        starts = _mean_costs([_cost_row(curve[0]) for curve in curves])
        totals = _mean_costs([_cost_row(curve[-1]) for curve in curves])
        between = [total - start for total, start in zip(totals, starts, strict=True)]
        start = ", ".join(_start(experiment.arm(arm)))
        rows.append([_arm(experiment, arm), f"start: {start}", *_cost_cells(starts)])
        rows.append(["", f"{number(rounds)} federated rounds", *_cost_cells(between)])
        rows.append(["", "total", *_cost_cells(totals)])
    return Table(heads, rows, numbers_from=2, sums=3)


def _start(arm: Arm) -> Iterator[str]:
    """Say what an arm does before its first round."""
    head, refits = "a head in closed form", arm.closed_form
    yield "hello"
    if refits is not None and refits.before_teachers:
        yield head
    if arm.start == "server":
        yield "the server's own model"
    if arm.start in ("consolidated", "averaged"):
        beside = f" and {head}" if refits is not None and refits.with_teachers else ""
        yield f"teachers{beside}" if arm.teachers.from_ is None else "teachers that existed"
    if arm.start == "consolidated":
        yield "consolidation"
    if refits is not None and 0 in refits.at:
        yield head


def _cost_row(record: RoundRecord) -> list[float]:
    return [
        record.exchanges,
        record.participant_uploads,
        record.bytes_up,
        record.bytes_down,
        record.local_steps,
        record.seconds,
    ]


def _mean_costs(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _cost_cells(row: Sequence[float]) -> list[str]:
    exchanges, uploads, up, down, steps, seconds = row
    sizes = (decimal(round(up)), decimal(round(down)))
    return [number(exchanges), number(uploads), *sizes, number(steps), f"{seconds:,.1f}"]


def _runs(experiment: Experiment, summary: Mapping[str, Any]) -> Table:
    word = metric_word(experiment)
    heads = [
        "arm",
        "seed",
        "target",
        f"{word} to reach",
        "rounds",
        "exchanges",
        f"{word} there",
        "test there",
    ]
    heads += ["first evaluation at it", "uploads", "bytes", "local steps", "converged", "flat from"]
    heads += ["half / double tolerance", "stopped", "best", "last"]
    rows: list[list[str | Cell]] = []
    for run in summary["runs"]:
        hit, first = run["hit"], run["first_hit"]
        missed = "–" if is_open(run, summary["horizon"]["rounds"]) else "missed"
        rows.append(
            [
                *(_arm(experiment, run["arm"]), str(run["seed"]), target_words(run["target"])),
                "unresolved" if run["target_accuracy"] is None else percent(run["target_accuracy"]),
                *((str(hit["round"]), str(hit["exchanges"])) if hit else (missed, "–")),
                *((score(hit["accuracy"]), score(hit["test_accuracy"])) if hit else ("–", "–")),
                f"round {first['round']}" if first else "–",
                number(hit["participant_uploads"]) if hit else "–",
                decimal(hit["bytes_up"] + hit["bytes_down"]) if hit else "–",
                number(hit["local_steps"]) if hit else "–",
                score(run["converged_accuracy"]),
                _round(run["plateau"]),
                f"{_round(run['plateau_half'])} / {_round(run['plateau_double'])}",
                run["stopped"],
                percent(run["best_accuracy"]),
                percent(run["final_accuracy"]),
            ]
        )
    return Table(heads, rows, numbers_from=3)


def _round(number: int | None) -> str:
    return "never" if number is None else str(number)


def _absent(records: Sequence[RoundRecord]) -> Table:
    grouped: dict[tuple[str, int, int, str], list[int]] = {}
    for record in records:
        for absent in record.absent:
            key = (record.arm, record.seed, record.round, absent.reason)
            grouped.setdefault(key, []).append(absent.participant)
    return Table(
        ["arm", "seed", "round", "participants", "reason"],
        [
            [
                arm,
                str(seed),
                str(number),
                ", ".join(map(str, participants)),
                short_name(reason, _REASON_SHOWN),
            ]
            for (arm, seed, number, reason), participants in grouped.items()
        ],
    )


def _refits(experiment: Experiment, summary: Mapping[str, Any]) -> Table:
    return Table(
        [
            "arm",
            "seed",
            "at",
            "head",
            "participants",
            "examples",
            "chosen",
            "logits times",
            "explains",
            "distilled",
            "",
        ],
        [
            [
                _arm(experiment, refit["arm"]),
                str(refit["seed"]),
                {0: "the start", "before-teachers": "before teachers", "with-teachers": "with teachers"}.get(
                    refit["at"], f"round {refit['at']}"
                ),
                refit["head"],
                number(refit["participants"]),
                number(refit["examples"]),
                _chosen(refit["chosen"], refit["chosen_by"]),
                _chosen(refit["scale"], refit["scale_by"]),
                "–" if refit.get("explained") is None else f"{refit['explained']:.0%}",
                plural(refit["distillation_steps"], "step") if refit.get("distillation_steps") else "–",
                f"kept the head it had: {short_name(refit['why'], _REASON_SHOWN)}" if refit["why"] else "",
            ]
            for refit in summary.get("refits", ())
        ],
    )


def _chosen(value: float | None, by: str) -> str:
    return "–" if value is None else f"{value:.3g} ({by})" if by else f"{value:.3g}"


def _hashes(summary: Mapping[str, Any]) -> Table:
    hashes = {(run["arm"], run["seed"]): run["weights_sha256"] for run in summary["runs"]}
    return Table(
        ["arm", "seed", "SHA-256 of the final weights"],
        [[arm, str(seed), _code(value)] for (arm, seed), value in hashes.items() if value],
    )


# ----------------------------------------------------------------------------- small parts


def _arm(experiment: Experiment, arm: str) -> Cell:
    return Cell(arm, colour=experiment.arm_order.index(arm) % len(ARM_COLOURS))


def _code(text: str) -> Cell:
    return Cell(text, code=True)


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
