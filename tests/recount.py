"""An independent recount of ``summary.json``: ``python tests/recount.py RUN_FOLDER...``.

It reads ``experiment.yaml``, ``rounds.jsonl`` and ``outcomes.jsonl``, counts every figure anew from the rules
in docs/records.md, prints every figure of ``summary.json`` that disagrees, and exits 1 when there is one. It
imports nothing of kdfed on purpose: a mistake there must not be repeated here. It is written to be read
beside the rules, not to be quick.

What cannot be counted from those files is not checked: versions, partitions, the reasons of failures, how
many labelled examples the server used, how many examples an evaluation has, and which teachers existed. The
share of the largest class (``majority``), which targets of the form ``95%-of-gain`` need, is taken from the
summary.

Choices, where the rules leave one
----------------------------------
Targets and hits

- Accuracies that differ by less than 1e-9 are the same accuracy.
- The start is no federated round: it is in no converged accuracy, unless no round was run. It can be a hit.
- A share of a converged accuracy, or of a gain, that is not above 0 is out of reach: 2. Without ``majority``,
  a share of a gain is unresolved.
- ``rounds_to_target`` is the round as recorded, 0 included; only a comparison bills at least 1.
- The convergence target is appended unless it stands there in the same words.

Which seeds are pairs (in this order; a seed is counted once)

- failed: the target is unresolved, or one of the two runs has no evaluation, failed or was interrupted (with
  a hit or without: it did not run to the horizon), or ended before the horizon without a hit.
- without federation: the arm's hit has 0 exchanges, whatever the baseline did.
- a pair: in every other case. A run that a listener stopped early is in a pair if it has its hit.

Figures of a cell

- Of an even number of log-ratios, the median is the mean of the middle two; where one of those is infinite,
  the larger of them.
- Ranks of the order-statistic interval are those of all pairs, both-missed ones included; these lie at minus
  infinity for its lower end and at plus infinity for its upper one.
- Sign test: log-ratios of exactly 0 are left out; a both-missed pair counts against the majority of the
  signs; p is 1 where all are ties or misses. There is a p-value from six pairs on, for controls, too, but not
  in a cell where a cost is 0.
- Holm: over the cells of one cost that have a p-value and are no control's. A cell without one is no test.
- One 0 among the costs of a cell's hits makes the whole cell a point without an interval: the median over its
  pairs, of which a cost of 0 is minus infinity. If it is the baseline's, there is no point either.
- "Does not lose": with no seed in which both finished, a cell is undecided. So is one where all missed.
- The ceiling: over all seeds in which the baseline hit the target or ran to the horizon, pairs or not, as if
  an arm had hit the target at a cost of 1 in each: by the median of log-ratios, like a saving. There is none
  without a hit of the baseline's.

Controls

- An arm that is none by name shows what a control would where it starts like one (``server``, ``averaged``).
- The server alone has no federated round, so it converges to nothing: null.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

SAME = 1e-9
CONVERGENCE = "99%-of-converged"
COSTS = ("rounds", "exchanges", "participant_uploads", "bytes", "local_steps")
COUNTED = (
    "round",
    "accuracy",
    "exchanges",
    "participant_uploads",
    "bytes_up",
    "bytes_down",
    "local_steps",
    "seconds",
    "simulated_seconds",
    "test_accuracy",
)
NOT_RECOUNTED = {
    "engine",
    "versions",
    "partitions",
    "server_labels",
    "evaluation_examples",
    "majority",
    "note",
    "sunk",
}

Record = dict[str, Any]
Runs = dict[tuple[str, int], "Run"]


# Curves


def hit(curve: Sequence[float], target: float) -> int | None:
    """The first round that reaches the target itself, and on average with the two rounds after it."""
    for r in range(len(curve) - 2):
        itself, mean = curve[r], (curve[r] + curve[r + 1] + curve[r + 2]) / 3
        if itself >= target - SAME and mean >= target - SAME:
            return r
    return None


def first_hit(curve: Sequence[float], target: float) -> int | None:
    """The first round that reaches the target, sustained or not."""
    return next((r for r, accuracy in enumerate(curve) if accuracy >= target - SAME), None)


def converged(curve: Sequence[float]) -> float:
    """The mean of the last ten federated evaluations; of all where there are fewer; else of the start."""
    federated = curve[1:] or curve[:1]
    return statistics.fmean(federated[-10:])


def plateau(curve: Sequence[float], rounds: int = 20, min_delta: float = 0.005) -> int | None:
    """The first round r whose best five-round mean rose at most min_delta over max(rounds, r/2) rounds."""
    for r in range(len(curve)):
        before = r - max(rounds, r // 2)
        if before >= 4 and _best5(curve, r) - _best5(curve, before) <= min_delta + SAME:
            return r
    return None


def _best5(curve: Sequence[float], r: int) -> float:
    return max(statistics.fmean(curve[s - 4 : s + 1]) for s in range(4, r + 1))


def resolve(target: str, baseline: float | None, majority: float | None) -> float | None:
    """The accuracy that a target means; None where its baseline did not finish or has no majority share."""
    if "%" not in target:
        return float(target)
    percent, of = target.split("%", 1)
    if baseline is None:
        return None
    base = 0.0
    if of == "-of-gain":
        if majority is None:
            return None
        base = majority
    elif of != "-of-converged":
        raise ValueError(f"target {target}: expected an accuracy, %-of-converged or %-of-gain")
    gain = baseline - base
    return base + float(percent) / 100 * gain if gain > 0 else 2.0


# Statistics of one cell: an arm, a target and a cost


def log_ratio(baseline: float | None, arm: float | None) -> float | None:
    """log(arm / baseline); a side that misses costs infinitely much; None where both miss."""
    if baseline is None and arm is None:
        return None
    if baseline is None:
        return -math.inf
    return math.inf if arm is None else math.log(arm / baseline)


def _heads_at_most(k: int, n: int) -> float:
    """P(at most k heads in n tosses)."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def two_sided_rank(n: int) -> int | None:
    """The largest k for which [k-th smallest, k-th largest of n] covers the median with at least 95%."""
    fitting = [k for k in range(1, n // 2 + 1) if 1 - 2 * _heads_at_most(k - 1, n) >= 0.95]
    return max(fitting, default=None)


def one_sided_rank(n: int) -> int | None:
    """The largest k for which the median is below the k-th largest of n with at least 95%."""
    return max((k for k in range(1, n + 1) if 1 - _heads_at_most(k - 1, n) >= 0.95), default=None)


def ends(ratios: Sequence[float | None]) -> tuple[float, float] | None:
    """The ends of the exact 95% interval of the median; None with fewer than six pairs."""
    k = two_sided_rank(len(ratios))
    if k is None or len(ratios) < 6:
        return None
    return sorted(-math.inf if d is None else d for d in ratios)[k - 1], _largest(ratios, k)


def upper_bound(ratios: Sequence[float | None]) -> float:
    """The one-sided 95% upper bound of the median."""
    k = one_sided_rank(len(ratios))
    return math.inf if k is None else _largest(ratios, k)


def _largest(ratios: Sequence[float | None], k: int) -> float:
    return sorted((math.inf if d is None else d for d in ratios), reverse=True)[k - 1]


def median(values: Iterable[float]) -> float | None:
    """The median of numbers and infinities, the larger of two of which one is infinite; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return high if math.isinf(low) or math.isinf(high) else (low + high) / 2


def sign_test(ratios: Sequence[float | None]) -> float:
    """The two-sided p-value of as many signs as the majority has, or more."""
    below = sum(d is not None and d < 0 for d in ratios)
    above = sum(d is not None and d > 0 for d in ratios)
    both = sum(d is None for d in ratios)
    return min(1.0, 2 * _heads_at_most(min(below, above) + both, below + above + both))


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected: the i-th smallest p at level / (m - i + 1), until one is not."""
    rejected = [False] * len(p_values)
    for i, which in enumerate(sorted(range(len(p_values)), key=lambda which: p_values[which])):
        if p_values[which] > level / (len(p_values) - i):
            break
        rejected[which] = True
    return rejected


def percent(d: float | None) -> float | None:
    """Percent saved of a log-ratio: 100 where only the arm got there, None where it never did."""
    return None if d is None or d == math.inf else 100 * (1 - math.exp(d))


def compare(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """The figures of a cell from its pairs (cost of the baseline, cost of the arm; None: missed)."""
    costs = [cost for pair in pairs for cost in pair if cost is not None]
    found: dict[str, Any] = {
        "saved_percent": None,
        "ratio": None,
        "p_value": None,
        "pairs": len(pairs),
        "censored": {
            "baseline": sum(b is None and a is not None for b, a in pairs),
            "arm": sum(b is not None and a is None for b, a in pairs),
            "both": sum(b is None and a is None for b, a in pairs),
        },
    }
    if 0 in costs:
        if not any(b == 0 for b, _ in pairs):
            points = [-math.inf if a == 0 else log_ratio(b, a) for b, a in pairs if (b, a) != (None, None)]
            found["saved_percent"] = {"median": percent(median(points)), "low": None, "high": None}
        return found
    ratios = [log_ratio(b, a) for b, a in pairs]
    if len(pairs) >= 6:
        found["p_value"] = sign_test(ratios)
    known = [d for d in ratios if d is not None]
    if known:
        low, high = ends(ratios) or (None, None)
        found["saved_percent"] = {
            "median": percent(median(known)),
            "low": percent(high),
            "high": percent(low),
        }
    if known and all(d is not None and math.isfinite(d) for d in ratios):
        mean, half = statistics.fmean(known), None
        if len(known) >= 6:
            half = float(stats.t.ppf(0.975, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
        found["ratio"] = {
            "geometric_mean": math.exp(mean),
            "low": None if half is None else math.exp(mean - half),
            "high": None if half is None else math.exp(mean + half),
        }
    return found


def verdict(
    pairs: Sequence[tuple[float | None, float | None]], rejected: bool, worse_by: float | None
) -> str | None:
    """The verdict of a cell.

    Parameters
    ----------
    pairs
        Costs of the baseline and of the arm.
    rejected
        Whether Holm rejects that the arm costs as much.
    worse_by
        By how much the arm's converged accuracy is below the baseline's, on average; None when unknown.
    """
    if len(pairs) < 6 or any(0 in pair for pair in pairs):
        return None
    ratios = [log_ratio(b, a) for b, a in pairs]
    interval = ends(ratios)
    if rejected and interval is not None and interval[1] < 0:
        return "saves"
    if math.exp(upper_bound(ratios)) < 1.15 and worse_by is not None and worse_by <= 0.005 + SAME:
        return "does-not-lose"
    return "undecided"


# A run folder


class Run:
    """The curve of one arm and seed, and how it ended."""

    def __init__(self, records: list[Record], outcome: Record | None, horizon: int) -> None:
        if [record["round"] for record in records] != list(range(len(records))):
            raise ValueError(
                f"{records[0]['arm']}, seed {records[0]['seed']}: expected every round from 0 on"
            )
        self.records, self.outcome = records, outcome
        self.curve = [float(record["accuracy"]) for record in records]
        self.finished = outcome is not None and outcome["stopped"] not in ("failed", "interrupted")
        self.to_horizon = self.finished and len(records) == horizon + 1
        self.converged = converged(self.curve) if self.finished and self.to_horizon else None

    def hit(self, target: float | None) -> Record | None:
        """The record that is billed for the target."""
        index = None if target is None else hit(self.curve, target)
        return None if index is None else self.records[index]

    def first_hit(self, target: float | None) -> Record | None:
        """The record of the first evaluation that reaches the target."""
        index = None if target is None else first_hit(self.curve, target)
        return None if index is None else self.records[index]


def recount(folder: Path, majority: float | None = None, horizon: int | None = None) -> dict[str, Any]:
    """Count everything of ``summary.json`` that can be counted from the other files.

    Parameters
    ----------
    folder
        A run folder.
    majority
        The share of the largest class, for targets of the form ``95%-of-gain``.
    horizon
        The number of rounds, where the experiment file says ``auto``.
    """
    experiment = _upgraded(yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8")))
    rounds = experiment["rounds"]
    horizon = horizon if rounds["horizon"] == "auto" else rounds["horizon"]
    if horizon is None:
        raise ValueError(f"{folder}: expected a number of rounds, got horizon: auto")
    runs = _runs(folder, horizon)
    seeds, controls = experiment["seeds"], list(experiment.get("controls") or ())
    baseline = experiment.get("baseline") or next(iter(experiment["arms"]))
    arms = [name for name in (*experiment["arms"], *controls) if name != baseline]
    arms = [*(name for name in dict.fromkeys(arms) if name not in controls), *controls]
    targets = [t if isinstance(t, str) else str(float(t)) for t in experiment["targets"]]
    targets = targets if CONVERGENCE in targets else [*targets, CONVERGENCE]
    accuracies = {
        (seed, target): resolve(target, _converged(runs.get((baseline, seed))), majority)
        for seed in seeds
        for target in targets
    }
    return {
        "schema": 2,
        "experiment": experiment["name"],
        "seeds": seeds,
        "targets": targets,
        "metric": "r2" if experiment["data"].get("task") == "regression" else "accuracy",
        "horizon": {"rounds": horizon},
        "runs": [
            _run(runs[arm, seed], target, accuracies[seed, target], accuracies[seed, CONVERGENCE], rounds)
            for arm in (baseline, *arms)
            for seed in seeds
            for target in targets
            if (arm, seed) in runs
        ],
        "comparisons": [
            comparison
            for cost in (*COSTS, "rounds_to_convergence")
            for comparison in _comparisons(
                runs,
                baseline,
                arms,
                controls,
                [CONVERGENCE] if cost == "rounds_to_convergence" else targets,
                cost,
                {target: {seed: accuracies[seed, target] for seed in seeds} for target in targets},
            )
        ],
        "consolidations": [
            {"arm": outcome["arm"], "seed": outcome["seed"], **outcome["consolidation"]}
            for outcome in _outcomes(folder).values()
            if outcome.get("consolidation") is not None
        ],
        "recipes": dict(experiment.get("recipes") or {}),
        "refits": [
            {"arm": outcome["arm"], "seed": outcome["seed"], **refit}
            for outcome in _outcomes(folder).values()
            for refit in outcome.get("refits") or ()
        ],
        "controls": {
            "server_alone": _control(runs, seeds, _arm_of(experiment, "server"), alone=True),
            "server_start": _control(runs, seeds, _arm_of(experiment, "server")),
            "averaged": _control(runs, seeds, _arm_of(experiment, "averaged")),
            "longer": _control(runs, seeds, "longer" if "longer" in controls else None),
        },
    }


def _upgraded(experiment: dict[str, Any]) -> dict[str, Any]:
    """An experiment of the first version in today's words."""
    if "max" not in experiment["rounds"]:
        return experiment
    plateau = {"rounds": 20, "min-delta": 0.005}
    return {
        **experiment,
        "rounds": {"horizon": experiment["rounds"]["max"], "plateau": plateau},
        "targets": [str(target).replace("-of-best", "-of-converged") for target in experiment["targets"]],
    }


def _arm_of(experiment: Mapping[str, Any], control: str) -> str | None:
    """The arm of this name that is a control; else the first that starts like it."""
    if control in (experiment.get("controls") or ()):
        return control
    baseline = experiment.get("baseline")
    names = sorted(experiment["arms"], key=lambda name: name != baseline)
    starts = {name: experiment["arms"][name].get("start", experiment.get("start")) for name in names}
    return next((name for name in names if starts[name] == control), None)


def _lines(path: Path) -> list[Record]:
    """Lines of JSON; a last line that is half written is dropped."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _outcomes(folder: Path) -> dict[tuple[str, int], Record]:
    outcomes = {(one["arm"], one["seed"]): one for one in _lines(folder / "outcomes.jsonl")}
    for one in outcomes.values():
        one["stopped"] = "horizon" if one["stopped"] == "max-rounds" else one["stopped"]
    return outcomes


def _runs(folder: Path, horizon: int) -> Runs:
    curves: dict[tuple[str, int], list[Record]] = {}
    for record in _lines(folder / "rounds.jsonl"):
        curves.setdefault((record["arm"], record["seed"]), []).append(record)
    outcomes = _outcomes(folder)
    return {key: Run(records, outcomes.get(key), horizon) for key, records in curves.items()}


def _converged(run: Run | None) -> float | None:
    return None if run is None else run.converged


def _costs(record: Record | None) -> Record | None:
    return None if record is None else {name: record.get(name) for name in COUNTED}


def _run(
    run: Run, target: str, accuracy: float | None, convergence: float | None, rounds: Mapping[str, Any]
) -> dict[str, Any]:
    billed, at_convergence = run.hit(accuracy), run.hit(convergence)
    flat, least = rounds["plateau"]["rounds"], rounds["plateau"]["min-delta"]
    return {
        "arm": run.records[0]["arm"],
        "seed": run.records[0]["seed"],
        "target": target,
        "target_accuracy": accuracy,
        "rounds_to_target": None if billed is None else billed["round"],
        "exchanges_to_target": None if billed is None else billed["exchanges"],
        "hit": _costs(billed),
        "first_hit": _costs(run.first_hit(accuracy)),
        "rounds_to_convergence": None if at_convergence is None else at_convergence["round"],
        "plateau": plateau(run.curve, flat, least),
        "plateau_half": plateau(run.curve, flat, least / 2),
        "plateau_double": plateau(run.curve, flat, least * 2),
        "totals": _costs(run.records[-1]),
        "stopped": _OneOf("failed", "interrupted") if run.outcome is None else run.outcome["stopped"],
        "final_accuracy": run.curve[-1],
        "converged_accuracy": run.converged,
        "best_accuracy": max(run.curve),
        "weights_sha256": "" if run.outcome is None else run.outcome["weights_sha256"],
    }


class _OneOf:
    """Equal to any of these: what became of a run without an outcome is not in the files read here."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return other in self.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return " or ".join(map(repr, self.values))


def _bill(record: Record, cost: str) -> float:
    if cost in ("rounds", "rounds_to_convergence"):
        return max(1, record["round"])
    if cost == "exchanges":
        return max(1, record["exchanges"])
    return record["bytes_up"] + record["bytes_down"] if cost == "bytes" else record[cost]


def _comparisons(
    runs: Runs,
    baseline: str,
    arms: Sequence[str],
    controls: Sequence[str],
    targets: Sequence[str],
    cost: str,
    accuracies: Mapping[str, Mapping[int, float | None]],
) -> list[dict[str, Any]]:
    """Every cell of one cost, with the verdicts over all of them."""
    found, cells = [], []
    for arm in arms:
        for target in targets:
            pairs, failed, without = _pairs(runs, baseline, arm, cost, accuracies[target])
            ceiling = None
            if cost in ("rounds", "exchanges", "rounds_to_convergence"):
                ceiling = _ceiling(runs, baseline, cost, accuracies[target])
            head = {"baseline": baseline, "arm": arm, "target": target, "cost": cost}
            more = {"ceiling_percent": ceiling, "without_federation": without, "failed": failed}
            found.append({**head, **compare(pairs), **more, "verdict": None})
            cells.append(pairs)
    tested = [i for i, one in enumerate(found) if one["p_value"] is not None and one["arm"] not in controls]
    rejected = holm([found[i]["p_value"] for i in tested])
    for i, is_rejected in zip(tested, rejected, strict=True):
        worse_by = _worse_by(runs, baseline, found[i]["arm"], accuracies[found[i]["target"]])
        found[i]["verdict"] = verdict(cells[i], is_rejected, worse_by)
    return found


def _pairs(
    runs: Runs, baseline: str, arm: str, cost: str, accuracies: Mapping[int, float | None]
) -> tuple[list[tuple[float | None, float | None]], int, int]:
    """Return the pairs, how many seeds failed, and in how many the arm needed no federation."""
    pairs: list[tuple[float | None, float | None]] = []
    failed = without = 0
    for seed, accuracy in accuracies.items():
        both = [runs.get((name, seed)) for name in (baseline, arm)]
        hits = [None if run is None else run.hit(accuracy) for run in both]
        if accuracy is None or not all(
            run is not None and run.finished and (run.to_horizon or billed is not None)
            for run, billed in zip(both, hits, strict=True)
        ):
            failed += 1
        elif hits[1] is not None and hits[1]["exchanges"] == 0:
            without += 1
        else:
            theirs, ours = (None if billed is None else _bill(billed, cost) for billed in hits)
            pairs.append((theirs, ours))
    return pairs, failed, without


def _ceiling(runs: Runs, baseline: str, cost: str, accuracies: Mapping[int, float | None]) -> float | None:
    logs = []
    for seed, accuracy in accuracies.items():
        run = runs.get((baseline, seed))
        if accuracy is None or run is None or not run.finished:
            continue
        billed = run.hit(accuracy)
        if billed is not None:
            logs.append(-math.log(_bill(billed, cost)))
        elif run.to_horizon:
            logs.append(-math.inf)
    return percent(median(logs)) if any(map(math.isfinite, logs)) else None


def _worse_by(runs: Runs, baseline: str, arm: str, seeds: Iterable[int]) -> float | None:
    both = [(_converged(runs.get((baseline, seed))), _converged(runs.get((arm, seed)))) for seed in seeds]
    losses = [theirs - ours for theirs, ours in both if theirs is not None and ours is not None]
    return statistics.fmean(losses) if losses else None


def _control(runs: Runs, seeds: Sequence[int], arm: str | None, alone: bool = False) -> dict[str, Any]:
    """A control's means over seeds; that of the server alone ends where it starts."""
    ran = [runs[arm, seed] for seed in seeds if arm is not None and (arm, seed) in runs]
    last = 0 if alone else -1
    return {
        "arm": arm,
        "start_accuracy": _mean(run.curve[0] for run in ran),
        "converged_accuracy": None if alone else _mean(run.converged for run in ran),
        "test_accuracy": _mean(run.records[last]["test_accuracy"] for run in ran),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# Against the summary

KEYS = {
    "runs": ("arm", "seed", "target"),
    "comparisons": ("arm", "target", "cost"),
    "consolidations": ("arm", "seed"),
    "refits": ("arm", "seed", "at"),
}


def disagreements(summary: Mapping[str, Any], counted: Mapping[str, Any]) -> list[str]:
    """Every figure of the summary that the recount does not find, with both values."""
    found = [
        f"{name}: not recounted, got {summary[name]!r}"
        for name in sorted(set(summary) - set(counted) - NOT_RECOUNTED - {"failures"})
    ]
    for name, expected in counted.items():
        given = summary.get(name)
        if name not in KEYS:
            found += _unequal(given, expected, name)
            continue
        by_key = [
            {tuple(entry[key] for key in KEYS[name]): entry for entry in entries}
            for entries in (given or (), expected)
        ]
        if len(given or ()) != len(by_key[0]):
            found.append(f"{name}: {len(given or ())} entries of {len(by_key[0])} different ones")
        for key in dict.fromkeys([*by_key[0], *by_key[1]]):
            path = f"{name}[{', '.join(map(str, key))}]"
            found += _unequal(by_key[0].get(key), by_key[1].get(key), path)
    finished = {(run["arm"], run["seed"]) for run in counted["runs"] if run["weights_sha256"]}
    found += [
        f"failures[{failure['arm']}, {failure['seed']}]: has an outcome"
        for failure in summary.get("failures", ())
        if (failure["arm"], failure["seed"]) in finished
    ]
    return found


def _unequal(given: Any, expected: Any, path: str) -> list[str]:
    if isinstance(given, dict) and isinstance(expected, dict):
        keys = [key for key in (*expected, *given) if f"{path.split('.')[0]}.{key}" not in WORDS]
        return [
            line
            for key in dict.fromkeys(keys)
            for line in _unequal(given.get(key, MISSING), expected.get(key, MISSING), f"{path}.{key}")
        ]
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (given, expected)]
    same = math.isclose(given, expected, rel_tol=SAME, abs_tol=SAME) if all(numbers) else expected == given
    return [] if same else [f"{path}: summary {given!r}, recount {expected!r}"]


WORDS = ("horizon.why", "controls.why", "controls.labels")
"""What is said beside figures, and how many labels a control's server used."""


class _Missing:
    def __repr__(self) -> str:
        return "(no such key)"


MISSING = _Missing()


def check(folder: Path, summary: Mapping[str, Any] | None = None) -> list[str]:
    """Every disagreement between a run folder's records and its summary.

    That of a folder of the first version is none of this schema: give what kdfed makes of it.
    """
    if summary is None:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary.get("schema") != 2:
        return [f"schema: summary {summary.get('schema')!r}, recount 2"]
    counted = recount(folder, summary.get("majority"), summary["horizon"]["rounds"])
    return disagreements(summary, counted)


def main(folders: Sequence[str]) -> int:
    """Print every disagreement of every folder; return the exit code."""
    if not folders:
        print("usage: python tests/recount.py RUN_FOLDER...")
        return 2
    wrong = 0
    for folder in folders:
        lines = check(Path(folder))
        wrong += len(lines)
        print("\n".join(f"{folder}: {line}" for line in lines or ["the recount agrees"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
