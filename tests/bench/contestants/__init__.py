"""Who takes part: one file each, with ``main(work, gate)``, which trains a round whenever the gate opens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One contestant.

    Parameters
    ----------
    module
        Its file here.
    needs
        Package that must be installed.
    python
        Lowest version that the package runs on.
    parallel
        False if it has one worker at most.
    largest
        Most participants, unless ``--slow`` is given.
    peer
        Another framework: the fastest one is what kdfed is measured by.
    before
        Of another checkout of kdfed, which ``--before`` names.
    """

    module: str
    needs: str = "torch"
    python: tuple[int, int] = (3, 11)
    parallel: bool = True
    largest: int | None = None
    peer: bool = False
    before: bool = False

    def absent(self, workers: int, participants: int, slow: bool, peers: Path | None) -> str | None:
        """Say why it cannot take part, or None."""
        if workers > 1 and not self.parallel:
            return "one worker only"
        if self.largest is not None and participants > self.largest and not slow:
            return f"more than {self.largest} participants only with --slow"
        if sys.version_info < self.python:
            return f"{self.needs} needs Python {'.'.join(map(str, self.python))} or newer"
        path = [*sys.path, *([str(peers)] if peers else [])]
        if PathFinder.find_spec(self.needs, path) is None:
            return f"{self.needs} is not installed (pip install 'kdfed[bench]')"
        return None


CONTESTANTS: dict[str, Entry] = {
    "bare-loop": Entry("bare_loop", parallel=False),
    "kdfed-ray": Entry("kdfed_ray", needs="ray"),
    "kdfed-inprocess": Entry("kdfed_inprocess", parallel=False),
    "before-ray": Entry("kdfed_ray", needs="ray", before=True),
    "before-inprocess": Entry("kdfed_inprocess", parallel=False, before=True),
    "flower": Entry("flower", needs="ray", largest=500, peer=True),
    "pfl": Entry("pfl", needs="pfl", peer=True),
    "fluke": Entry("fluke", needs="fluke", parallel=False, peer=True),
    "blazefl": Entry("blazefl", needs="blazefl", python=(3, 12), peer=True),
}
"""By name, in the order of tables."""
