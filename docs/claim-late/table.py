"""Print the table of docs/methods/late.md: every mean against the cold start without any of them.

In a cell's own summary targets are shares of what that cell's cold arm converges to, which a mean changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdfed.convergence import hit
from kdfed.records import RunFolder

HERE = Path(__file__).parent
SHARES = (0.90, 0.95, 0.99)
CELLS = ("nothing", "refit", "average", "fading", "shrink", "flat-logits", "fixed-head", "scaffold")


def lines() -> Iterator[str]:
    """Yield a row a cell and arm: exchanges to each share, in rising order of the seeds; – is never."""
    converged = _converged("nothing", "cold")
    for cell in CELLS:
        records = list(RunFolder(HERE / "cells" / cell).read_rounds())
        for arm in dict.fromkeys(record.arm for record in records):
            if (cell, arm) in (("shrink", "cold"), ("flat-logits", "cold")):
                continue  # that of `nothing`, to the bit
            row = [f"| {cell} | {arm}"]
            for share in SHARES:
                found = []
                for seed, accuracy in converged.items():
                    own = [record for record in records if (record.arm, record.seed) == (arm, seed)]
                    place = hit([record.accuracy for record in own], share * accuracy)
                    found.append(None if place is None else own[place].exchanges)
                found.sort(key=lambda count: (count is None, count))
                row.append(", ".join("–" if count is None else str(count) for count in found))
            ends = _converged(cell, arm).values()
            row.append(f"{100 * sum(ends) / len(ends):.1f}% |")
            yield " | ".join(row)


def _converged(cell: str, arm: str) -> dict[int, float]:
    runs = RunFolder(HERE / "cells" / cell).read_summary()["runs"]
    return {run["seed"]: run["converged_accuracy"] for run in runs if run["arm"] == arm}


if __name__ == "__main__":
    print("\n".join(lines()))
