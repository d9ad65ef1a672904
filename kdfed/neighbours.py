"""kdfed's packages ``clients``, ``strategies`` and ``simulations`` beside an app's own of the same names.

Flower puts an app's folder at the front of ``sys.path``. If there is a package called ``strategies`` in it,
``from strategies.pre_consolidation import PreConsolidation`` looks there alone. Once kdfed is imported, what
the app's package lacks is found in kdfed's, so such an app begins with ``import kdfed``. Nothing changes for
any other app.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

NAMES = ("clients", "strategies", "simulations")

_ROOT = Path(__file__).parents[1]


class Neighbours(MetaPathFinder):
    """Finds modules of kdfed's packages that nobody else finds.

    Parameters
    ----------
    root
        The folder that holds those packages.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module of ours is; None for any other.

        Raises
        ------
        ImportError
            If the app's package and ours have modules of one name: ours would then import the app's.
        """
        package, _, rest = fullname.partition(".")
        if package not in NAMES or not rest:
            return None
        place = self._root.joinpath(*fullname.split("."))
        file, folder = place.with_suffix(".py"), place / "__init__.py"
        if not file.is_file() and not folder.is_file():
            return None
        self._check(package)
        if folder.is_file():
            return spec_from_file_location(fullname, folder, submodule_search_locations=[str(place)])
        return spec_from_file_location(fullname, file)

    def _check(self, package: str) -> None:
        ours = self._root / package
        others = [Path(place) for place in sys.modules[package].__path__]
        both = sorted(_modules([ours]) & _modules(place for place in others if place != ours))
        if both:
            raise ImportError(
                f"expected an app's package {package!r} to have no module of a name that kdfed's package "
                f"{package!r} has too, got {', '.join(both)} in {others[0]}: rename the package, or these"
            )


def _modules(places: Iterable[Path]) -> set[str]:
    """Return the names of the modules and packages in folders."""
    found = set[str]()
    for place in places:
        found |= {path.stem for path in place.glob("*.py")}
        found |= {path.parent.name for path in place.glob("*/__init__.py")}
    return found - {"__init__"}


def find_neighbours() -> None:
    """Have Python find what an app's packages of our names lack in ours, after everywhere else."""
    if not any(isinstance(finder, Neighbours) for finder in sys.meta_path):
        sys.meta_path.append(Neighbours(_ROOT))
