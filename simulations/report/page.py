"""``report.html``: one page that needs no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
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
from simulations.report.frame import html_page, html_table
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
    body = "\n".join(
        [
            _head(experiment, summary),
            _warnings(experiment, summary, finished),
            _savings(experiment, summary),
            _curves(experiment, records, summary),
            _partitions(summary),
            _settings(experiment),
            _costs(experiment, records),
            _runs(experiment, summary),
            _absent(records),
            _counting(experiment),
            _versions(summary),
        ]
    )
    return html_page(f"{experiment.name} · kdfed", body)


# ----------------------------------------------------------------------------- what came out


def _head(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, experiment.seeds))
    facts = [
        f"{plural(experiment.partition.participants, 'participant')}, {experiment.partition.kind}",
        f"data <code>{escape(experiment.data.source)}</code>",
        f"model <code>{escape(experiment.model.name)}</code>",
        f"{'seed' if len(experiment.seeds) == 1 else 'seeds'} {seeds}",
        f"engine {escape(summary['engine'])}",
    ]
    return (
        f'<header><div class="eyebrow">kdfed experiment</div>\n<h1>{escape(experiment.name)}</h1>\n'
        f'<p class="soft">{" · ".join(facts)}</p></header>'
    )


def _warnings(experiment: Experiment, summary: Mapping[str, Any], finished: bool) -> str:
    notes = []
    if not finished:
        notes.append("This run did not end: the page shows what was recorded until then.")
    if experiment.data.source.startswith("synthetic:"):
        notes.append(
            f"The data are synthetic (<code>{escape(experiment.data.source)}</code>): the figures tell of "
            "scale and cost, not of how well anything learns."
        )
    notes += [
        f"{escape(failure['arm'])}, seed {failure['seed']}, failed in the phase {escape(failure['phase'])}, "
        f"and is read as far as recorded: {escape(failure['reason'])}"
        for failure in summary.get("failures", ())
    ]
    ended = {stopped: set[str]() for stopped in ("failed", "interrupted")}
    known = {(failure["arm"], failure["seed"]) for failure in summary.get("failures", ())}
    for run in summary["runs"]:
        if run["stopped"] in ended and (run["arm"], run["seed"]) not in known:
            ended[run["stopped"]].add(f"{escape(run['arm'])} (seed {run['seed']})")
    notes += [
        f"{stopped.capitalize()} before the end, and read as far as recorded: {', '.join(sorted(names))}."
        for stopped, names in ended.items()
        if names and finished
    ]
    missing = len(experiment.arms) * len(experiment.seeds) - len(
        {(r["arm"], r["seed"]) for r in summary["runs"]}
    )
    if missing:
        notes.append(
            f"{plural(missing, 'run')} of an arm and a seed left no evaluation that could be compared."
        )
    return "\n".join(f'<p class="note">{note}</p>' for note in notes)


def _savings(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    arms = experiment.arm_order[1:]
    if not arms:
        return _single(experiment, summary)
    cards = [_card(experiment, summary, arm, target) for arm in arms for target in summary["targets"]]
    baseline = escape(experiment.baseline_arm)
    return (
        f"<h2>What was saved</h2>\n<p class='soft'>Against {baseline}, paired by seed; figures are means "
        "over seeds. In brackets: the 95% interval of the mean (below 0: the other way round).</p>\n"
        + "\n".join(cards)
    )


def _single(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """One arm alone saves nothing; say when it reached its targets."""
    lines = []
    for target in summary["targets"]:
        runs = [r for r in summary["runs"] if r["target"] == target and r["target_accuracy"] is not None]
        hits = [run["exchanges_to_target"] for run in runs if run["exchanges_to_target"] is not None]
        words = f"after {number(sum(hits) / len(hits))} exchanges (mean)" if hits else "in no seed"
        lines.append(
            f'<div class="card"><h3>{escape(experiment.baseline_arm)} reached {escape(target_words(target))} '
            f"{words}</h3><p>Reached in {len(hits)} of {plural(len(runs), 'seed')}. There is no other arm to "
            "compare with.</p></div>"
        )
    return "<h2>What it took</h2>\n" + "\n".join(lines)


_TILES = {
    "rounds": ("Federated rounds", "fewer", number),
    "exchanges": ("Exchanges, teachers included", "fewer", number),
    "participant_uploads": ("Participant uploads", "fewer", number),
    "bytes": ("Bytes up and down", "less", lambda count: decimal(round(count))),
}


def _card(experiment: Experiment, summary: Mapping[str, Any], arm: str, target: str) -> str:
    sentence, notes = headline(summary, experiment, arm, target)
    levels = [
        run["target_accuracy"]
        for run in summary["runs"]
        if run["target"] == target and run["target_accuracy"] is not None
    ]
    level = f", {percent(sum(levels) / len(levels))} on average" if levels and "best" in target else ""
    tiles = []
    for cost, (title, fewer, write) in _TILES.items():
        said = saving(comparison_of(summary, arm, target, cost), fewer)
        ours, theirs = _hit_costs(summary, experiment, arm, target, cost)
        spent = f"{write(ours)} instead of {write(theirs)}" if ours is not None and theirs is not None else ""
        interval = f"interval {said.interval}" if said.interval else ""
        tiles.append(
            f'<div class="tile {said.tone}"><small>{title}</small><b>{escape(said.figure)}</b>'
            f"<small>{escape(interval)}</small><small>{spent}</small></div>"
        )
    compared = any(comparison_of(summary, arm, target, cost)["pairs"] for cost in _TILES)
    grid = f'<div class="tiles">{"".join(tiles)}</div>' if compared else ""
    extra = f'<p class="soft">{escape(notes)}</p>' if notes else ""
    return (
        f'<section class="card"><div class="eyebrow">{_swatch(experiment, arm)}{escape(arm)} · '
        f"{escape(target_words(target))}{level}</div>\n<h3>{escape(sentence)}.</h3>\n"
        f"{grid}{extra}</section>"
    )


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


def _curves(experiment: Experiment, records: Sequence[RoundRecord], summary: Mapping[str, Any]) -> str:
    arms = [arm for arm in experiment.arm_order if any(record.arm == arm for record in records)]
    legend = [
        f'<li><i style="background:{_variable(experiment, arm)}"></i>{escape(arm)}</li>' for arm in arms
    ] + ['<li><i class="dashed"></i>target</li>']
    panels = []
    for panel, (words, _) in PANELS.items():
        svg = to_svg(curves_figure(experiment, records, summary, [panel]), f"curve-{panel}")
        panels.append(f'<figure><div class="eyebrow">Against {words}</div>{svg}</figure>')
    return (
        f"<h2>How {metric_word(experiment)} grew</h2>\n"
        f'<ul class="legend">{"".join(legend)}</ul>\n<div class="curves">{"".join(panels)}</div>\n'
        f'<p class="soft">Validation {metric_word(experiment)}. Thin lines are single seeds, dots on them '
        "are where a target counts as reached; bold lines are means, as far as every seed ran. A start that "
        "needed teachers begins where its teachers were paid for.</p>"
    )


# ----------------------------------------------------------------------------- what was run


def _partitions(summary: Mapping[str, Any]) -> str:
    pictures = []
    for index, entry in enumerate(summary["partitions"][:_PARTITIONS_SHOWN]):
        shown = min(entry["participants"], PARTICIPANTS_SHOWN)
        moved, unused = entry["moved"], entry["unused"]
        caption = (
            "A bubble's area is the number of examples of a class that a participant holds. "
            + (f"{plural(moved, 'example')} moved to meet min-examples. " if moved else "")
            + (f"{plural(unused, 'example')} of classes that nobody holds are not used." if unused else "")
            + (f" Only the first {shown} participants are drawn." if shown < entry["participants"] else "")
        )
        svg = to_svg(partition_figure(entry), f"partition-{index}")
        figure = (
            f'<figure><div class="scroll" style="--least:{max(420, 7 * shown)}px">{svg}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
        if index:
            figure = f"<details><summary>Seed {entry['seed']}</summary>{figure}</details>"
        pictures.append(figure)
    if len(summary["partitions"]) > _PARTITIONS_SHOWN:
        pictures.append(
            f'<p class="soft">The first {_PARTITIONS_SHOWN} seeds; <code>kdfed partition</code> '
            "draws any.</p>"
        )
    return "<h2>Who holds which classes</h2>\n" + "\n".join(pictures) if pictures else ""


def _settings(experiment: Experiment) -> str:
    order = experiment.arm_order
    flat = {name: dict(dotted(experiment.arm(name).model_dump(mode="json"))) for name in order}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    differing = [key for key in keys if len({_write(flat[name].get(key, "–")) for name in order}) > 1]
    rows = [[_code(key), *(_code(_write(flat[name].get(key, "–"))) for name in order)] for key in differing]
    heads = ["key", *(f"{_swatch(experiment, name)}{escape(name)}" for name in order)]
    table = html_table(heads, rows) if rows else "<p>The arms have the same settings.</p>"
    everything = [
        [_code(key), _code(_write(value))]
        for key, value in dotted(experiment.model_dump(mode="json"))
        if not key.startswith("arms.")
    ]
    first = (
        f"<h2>Settings</h2>\n<p class='soft'>Where the arms differ:</p>{table}"
        if len(order) > 1
        else ("<h2>Settings</h2>")
    )
    every_setting = html_table(["key", "value"], everything)
    return f"{first}\n<details><summary>Every setting</summary>{every_setting}</details>"


def _costs(experiment: Experiment, records: Sequence[RoundRecord]) -> str:
    heads = ["arm", "phase", "exchanges", "uploads", "bytes up", "bytes down", "local steps", "seconds"]
    rows = []
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
        name = f"{_swatch(experiment, arm)}{escape(arm)}"
        rows.append([name, start, *_cost_cells(starts)])
        rows.append(["", f"{number(rounds)} federated rounds", *_cost_cells(between)])
        rows.append(["", "total", *_cost_cells(totals)])
    return (
        "<h2>What it cost</h2>\n<p class='soft'>To the end of each run, mean over seeds. An arm that stopped "
        f"at its targets ran fewer rounds.</p>{html_table(heads, rows, numbers_from=2, sums=3)}"
    )


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
    return [
        number(exchanges),
        number(uploads),
        decimal(round(up)),
        decimal(round(down)),
        number(steps),
        f"{seconds:,.1f}",
    ]


def _runs(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    score = metric_word(experiment)
    heads = ["arm", "seed", "target", f"{score} to reach", "rounds", "exchanges", "first hit", "uploads"]
    heads += ["bytes", f"test {score} there", "plateau", "stopped", "best", "last"]
    rows = []
    for run in summary["runs"]:
        hit, first = run[f"{run['rule']}_hit"], run["first_hit"]
        test = hit["test_accuracy"] if hit else None
        rows.append(
            [
                f"{_swatch(experiment, run['arm'])}{escape(run['arm'])}",
                str(run["seed"]),
                escape(target_words(run["target"])),
                percent(run["target_accuracy"]) if run["target_accuracy"] is not None else "unresolved",
                str(hit["round"]) if hit else "missed" if run["target_accuracy"] is not None else "–",
                str(hit["exchanges"]) if hit else "–",
                f"round {first['round']}" if first else "–",
                number(hit["participant_uploads"]) if hit else "–",
                decimal(hit["bytes_up"] + hit["bytes_down"]) if hit else "–",
                percent(test) if test is not None else "–",
                f"round {run['rounds_to_plateau']}" if run["rounds_to_plateau"] is not None else "–",
                escape(run["stopped"]),
                percent(run["best_accuracy"]),
                percent(run["final_accuracy"]),
            ]
        )
    table = html_table(heads, rows, numbers_from=3)
    return f"<details><summary>Every run: what it took to reach each target</summary>{table}</details>"


def _absent(records: Sequence[RoundRecord]) -> str:
    grouped: dict[tuple[str, int, int, str], list[int]] = {}
    for record in records:
        for absent in record.absent:
            key = (record.arm, record.seed, record.round, absent.reason)
            grouped.setdefault(key, []).append(absent.participant)
    if not grouped:
        return "<h2>Who was missing</h2>\n<p>Nobody: every participant that was asked answered.</p>"
    rows = [
        [
            escape(arm),
            str(seed),
            str(server_round),
            ", ".join(map(str, who)),
            escape(short_name(reason, _REASON_SHOWN)),
        ]
        for (arm, seed, server_round, reason), who in list(grouped.items())[:_ABSENT_SHOWN]
    ]
    count = sum(map(len, grouped.values()))
    more = f" The first {_ABSENT_SHOWN} entries:" if len(grouped) > _ABSENT_SHOWN else ""
    return (
        f"<h2>Who was missing</h2>\n<p>{plural(count, 'answer')} left out; the rounds went on without "
        f"{'it' if count == 1 else 'them'}.{more}</p>"
        + html_table(["arm", "seed", "round", "participants", "reason"], rows)
    )


def _counting(experiment: Experiment) -> str:
    rule = (
        "the first round from which the mean of three evaluations reaches it"
        if experiment.rounds.rule == "sustained"
        else "the first evaluation that reaches it"
    )
    return (
        "<h2>How it is counted</h2>\n<p>A target counts as reached at "
        f"{rule}, on the validation split; the test split is reported and decides nothing. An exchange is "
        "one trip from the server to its participants and back: a federated round is one, the teacher upload "
        "is one, and bytes are those of the messages that a device alone would exchange. Savings are means "
        "over seeds that share data and participants; an arm that misses counts as "
        f"{experiment.rounds.max + 1} rounds plus its teacher exchange, and a seed in which the baseline "
        "misses is left out and counted beside.</p>"
    )


def _versions(summary: Mapping[str, Any]) -> str:
    versions = " · ".join(
        f"{escape(name)} {escape(str(value))}" for name, value in summary["versions"].items()
    )
    hashes = {(run["arm"], run["seed"]): run["weights_sha256"] for run in summary["runs"]}
    rows = [[escape(arm), str(seed), _code(value)] for (arm, seed), value in hashes.items() if value]
    table = html_table(["arm", "seed", "SHA-256 of the final weights"], rows)
    models = f"<details><summary>Final weights</summary>{table}</details>" if rows else ""
    return f"<footer><div>{versions}</div>{models}</footer>"


# ----------------------------------------------------------------------------- small parts


def _variable(experiment: Experiment, arm: str) -> str:
    return f"var(--arm-{experiment.arm_order.index(arm) % len(ARM_COLOURS)})"


def _swatch(experiment: Experiment, arm: str) -> str:
    return f'<span class="swatch" style="background:{_variable(experiment, arm)}"></span>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
