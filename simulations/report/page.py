"""``report.html``: one page that needs no other file. The HTML is in ``page.html.jinja``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from kdfed.config import Experiment, dotted
from kdfed.records import RoundRecord
from simulations.report.figures import (
    ARM_COLOURS,
    PANELS,
    PARTICIPANTS_SHOWN,
    curves_figure,
    metric_word,
    partition_figure,
    short_name,
    target_words,
    to_svg,
)
from simulations.report.frame import Cell, Table, render_html
from simulations.report.words import comparison_of, headline, number, percent, plural, saving

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
        model=experiment.model.name,
        seeds=experiment.seeds,
        engine=summary["engine"],
        finished=finished,
        notes=list(_notes(experiment, summary, finished)),
        baseline=experiment.baseline_arm,
        cards=[
            _card(experiment, summary, arm, target)
            for arm in experiment.arm_order[1:]
            for target in summary["targets"]
        ],
        alone=[_alone(summary, target) for target in summary["targets"]],
        metric=metric_word(experiment),
        legend=[_arm(experiment, arm) for arm in experiment.arm_order if arm in present],
        panels=[
            {
                "words": words,
                "picture": to_svg(curves_figure(experiment, records, summary, [panel]), f"curve-{panel}"),
            }
            for panel, (words, _) in PANELS.items()
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
        runs=_runs(experiment, summary),
        absences=sum(len(record.absent) for record in records),
        absent=absent._replace(rows=absent.rows[:_ABSENT_SHOWN]),
        absent_groups=len(absent.rows),
        rule=experiment.rounds.rule,
        most_rounds=experiment.rounds.horizon,
        versions=summary["versions"],
        hashes=_hashes(summary),
    )


# ----------------------------------------------------------------------------- what came out


def _notes(experiment: Experiment, summary: Mapping[str, Any], finished: bool) -> Iterator[str]:
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


def _alone(summary: Mapping[str, Any], target: str) -> dict[str, Any]:
    """One arm alone saves nothing; tell when it reached a target."""
    runs = [r for r in summary["runs"] if r["target"] == target and r["target_accuracy"] is not None]
    hits = [run["exchanges_to_target"] for run in runs if run["exchanges_to_target"] is not None]
    return {
        "target": target_words(target),
        "hits": len(hits),
        "mean": sum(hits) / len(hits) if hits else None,
        "seeds": len(runs),
    }


_TILES = {
    "rounds": ("Federated rounds", "fewer", number),
    "exchanges": ("Exchanges, teachers included", "fewer", number),
    "participant_uploads": ("Participant uploads", "fewer", number),
    "bytes": ("Bytes up and down", "less", lambda count: decimal(round(count))),
}


def _card(experiment: Experiment, summary: Mapping[str, Any], arm: str, target: str) -> dict[str, Any]:
    sentence, notes = headline(summary, experiment, arm, target)
    levels = [
        run["target_accuracy"]
        for run in summary["runs"]
        if run["target"] == target and run["target_accuracy"] is not None
    ]
    tiles = []
    for cost, (title, fewer, write) in _TILES.items():
        said = saving(comparison_of(summary, arm, target, cost), fewer)
        ours, theirs = _hit_costs(summary, experiment, arm, target, cost)
        tiles.append(
            {
                "title": title,
                "tone": said.tone,
                "figure": said.figure,
                "interval": said.interval,
                "spent": ""
                if ours is None or theirs is None
                else f"{write(ours)} instead of {write(theirs)}",
            }
        )
    compared = any(comparison_of(summary, arm, target, cost)["pairs"] for cost in _TILES)
    return {
        "arm": _arm(experiment, arm),
        "target": target_words(target),
        "level": sum(levels) / len(levels) if levels and "best" in target else None,
        "sentence": sentence,
        "tiles": tiles if compared else [],
        "notes": notes,
    }


def _hit_costs(
    summary: Mapping[str, Any], experiment: Experiment, arm: str, target: str, cost: str
) -> tuple[float | None, float | None]:
    """Return the mean costs of arm and baseline over the seeds in which both reached the target."""
    hits: dict[str, dict[int, float]] = {arm: {}, experiment.baseline_arm: {}}
    for run in summary["runs"]:
        hit = run[f"{run['rule']}_hit"]
        if run["arm"] in hits and run["target"] == target and hit is not None:
            key = "round" if cost == "rounds" else cost
            hits[run["arm"]][run["seed"]] = (
                hit["bytes_up"] + hit["bytes_down"] if cost == "bytes" else hit[key]
            )
    both = set(hits[arm]) & set(hits[experiment.baseline_arm])
    if not both:
        return None, None
    return tuple(sum(hits[name][seed] for seed in both) / len(both) for name in hits)  # type: ignore[return-value]


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
        start = "start: hello" if starts[0] == 0 else "start: hello, teachers, consolidation"
        if experiment.arm(arm).start == "averaged":
            start = "start: hello, teachers"
        rows.append([_arm(experiment, arm), start, *_cost_cells(starts)])
        rows.append(["", f"{number(rounds)} federated rounds", *_cost_cells(between)])
        rows.append(["", "total", *_cost_cells(totals)])
    return Table(heads, rows, numbers_from=2, sums=3)


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
    score = metric_word(experiment)
    heads = ["arm", "seed", "target", f"{score} to reach", "rounds", "exchanges", "first hit", "uploads"]
    heads += ["bytes", f"test {score} there", "plateau", "stopped", "best", "last"]
    rows: list[list[str | Cell]] = []
    for run in summary["runs"]:
        hit, first = run[f"{run['rule']}_hit"], run["first_hit"]
        test = hit["test_accuracy"] if hit else None
        rows.append(
            [
                _arm(experiment, run["arm"]),
                str(run["seed"]),
                target_words(run["target"]),
                percent(run["target_accuracy"]) if run["target_accuracy"] is not None else "unresolved",
                str(hit["round"]) if hit else "missed" if run["target_accuracy"] is not None else "–",
                str(hit["exchanges"]) if hit else "–",
                f"round {first['round']}" if first else "–",
                number(hit["participant_uploads"]) if hit else "–",
                decimal(hit["bytes_up"] + hit["bytes_down"]) if hit else "–",
                percent(test) if test is not None else "–",
                f"round {run['rounds_to_plateau']}" if run["rounds_to_plateau"] is not None else "–",
                run["stopped"],
                percent(run["best_accuracy"]),
                percent(run["final_accuracy"]),
            ]
        )
    return Table(heads, rows, numbers_from=3)


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
