"""The regret of `does it pay`: exchanges lost by doing as kdfed says, beside always and never starting so.

The choice is between the headline's arm and the baseline, cell by cell and seed by seed; a miss counts as the
horizon. What would have been best is known only afterwards: a policy's regret is what it costs beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any, NamedTuple

from kdfed.closed_form.features import head_of
from kdfed.data import prepare
from kdfed.models import build_model
from kdfed.paying import after_exchange, before_exchange
from kdfed.reading import shape_read
from simulations.matrix.counted import has_both
from simulations.matrix.records import RecordedCell, RecordedMatrix
from simulations.report.counted import runs_to


class Regret(NamedTuple):
    """Mean exchanges beyond the better of both starts, over cells of equal weight.

    Parameters
    ----------
    cells
        How many cells, and of which kind: ``held-out cells``, ``all cells``.
    always, never
        Of starting with the headline's arm wherever one can, and nowhere.
    before
        Of the advice that is given before the exchange.
    after
        Of always paying for the exchange, and then doing as the advice says; None where a record does not
        tell what the head explains.
    """

    cells: str
    always: float
    never: float
    before: float
    after: float | None


def regrets(matrix: RecordedMatrix, target: str) -> Iterator[Regret]:
    """Yield the regret over held-out cells and over all of them; nothing where no cell has both arms."""
    arm, baseline = matrix.headline.arm, matrix.headline.baseline
    told = {}
    for cell in matrix.cells:
        found = _of_cell(cell, arm, baseline, target) if has_both(cell, arm, baseline) else None
        if found is not None:
            told[cell.name] = found
    held = [cell.name for cell in matrix.cells if cell.held_out and cell.name in told]
    for title, names in (("held-out cells", held), ("all cells", list(told))):
        if names:
            own = [told[name] for name in names]
            after = [one.after for one in own if one.after is not None]
            yield Regret(
                f"{len(names)} {title}",
                mean(one.always for one in own),
                mean(one.never for one in own),
                mean(one.before for one in own),
                mean(after) if len(after) == len(own) else None,
            )


def _of_cell(cell: RecordedCell, arm: str, baseline: str, target: str) -> Regret | None:
    own, other = (_exchanges(cell.summary, name, target) for name in (arm, baseline))
    seeds = sorted(own.keys() & other.keys())
    refits = {
        entry["seed"]: entry
        for entry in cell.summary.get("refits", ())
        if entry["arm"] == arm and entry["at"] == 0
    }
    if not seeds or not refits:
        return None
    starts = before_exchange(
        _features(cell, arm), pretrained=cell.experiment.arm(arm).model.backbone is not None
    ).pays
    best = {seed: min(own[seed], other[seed]) for seed in seeds}
    always = mean(own[seed] - best[seed] for seed in seeds)
    never = mean(other[seed] - best[seed] for seed in seeds)
    shares = {seed: refits[seed].get("explained") for seed in seeds if seed in refits}
    after = None
    if len(shares) == len(seeds) and None not in shares.values():
        goes_on = {seed: after_exchange(share).pays for seed, share in shares.items()}
        after = mean((own[seed] if goes_on[seed] else other[seed] + 1) - best[seed] for seed in seeds)
    return Regret(cell.name, always, never, always if starts else never, after)


def _exchanges(summary: Mapping[str, Any], arm: str, target: str) -> dict[int, int]:
    """Return an arm's exchanges to a target by seed; a miss is the horizon."""
    return {
        run["seed"]: summary["horizon"]["rounds"]
        if run["exchanges_to_target"] is None
        else run["exchanges_to_target"]
        for run in runs_to(summary, arm, target)
    }


def _features(cell: RecordedCell, arm: str) -> int:
    """Return how many features the head of an arm's model reads."""
    told = [entry["features"] for entry in cell.summary["refits"] if entry.get("features")]
    if told:
        return int(told[0])
    settings = cell.experiment.arm(arm)  # of records that do not say it
    shape = prepare(settings.data).input_shape
    model = build_model(settings.model, shape, 2, seed=0)
    return head_of(model, shape_read(settings.model, shape)).dims
