"""Run the tests that touch Flower on the oldest and the newest release that pyproject.toml allows.

``make test-flower`` runs this. Each release is installed alone, without its dependencies, into a folder that
is put in front of ``.venv`` for the run: the installed Flower stays as it is, and so does torch. The folders
are kept, so a second run downloads nothing; remove ``.flower`` to look for a newer release. What ``.venv``
itself has is left to ``make test``, unless ``--all`` is given.

Dependencies are those of ``.venv``. Between 1.41 and 1.42 only uv, which nothing here starts, and certifi are
asked for in other versions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
RELEASES = ROOT / ".flower"

FAST = ["tests/strategies", "tests/clients", "tests/simulations/test_grids.py", "tests/kdfed/test_private.py"]
"""Whatever of kdfed calls Flower; without Ray some seconds."""

REAL = [
    "tests/simulations/engines/test_equivalence.py"
    "::test_flowers_runtime_gives_the_bits_of_the_in_process_engine[1]"
]
"""A run through ``flwr run`` gives the bits of the in-process engine, and its ServerApp has this Flower."""


def allowed() -> Requirement:
    """Return what pyproject.toml says of flwr."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "flwr"]
    return found


def oldest(requirement: Requirement) -> str:
    """Return the release that the lower bound names, as 1.41.0."""
    (bound,) = [one.version for one in requirement.specifier if one.operator == ">="]
    return "{}.{}.{}".format(*(*Version(bound).release, 0, 0)[:3])


def newest(requirement: Requirement) -> str:
    """Return the newest release that pip finds, or found when it was last asked for these bounds."""
    note = RELEASES / f"newest-of-{requirement.specifier}"
    if not note.exists():
        looked = RELEASES / "looked"
        install(str(requirement), looked)
        found = version_in(looked)
        shutil.rmtree(RELEASES / found, ignore_errors=True)
        looked.rename(RELEASES / found)
        note.write_text(found, encoding="utf-8")
    return note.read_text(encoding="utf-8")


def version_in(folder: Path) -> str | None:
    """Return the version of Flower that is installed in a folder; None if there is none."""
    found = [one.version for one in distributions(path=[str(folder)]) if one.metadata["Name"] == "flwr"]
    return found[0] if found else None


def install(what: str, folder: Path) -> None:
    """Install Flower alone into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {what} into {folder.relative_to(ROOT)}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--no-deps", "--target", str(folder), what]).returncode:
        sys.exit(f"expected a release of Flower from pip, got none for {what}: is the network there?")


def run_on(release: str) -> None:
    """Run the tests with this release in front; leave with their exit code where they fail."""
    folder = RELEASES / release
    if version_in(folder) != release:
        install(f"flwr=={release}", folder)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    for arguments in (
        [*FAST, "-m", "not sim and not slow and not deploy", "-n", "auto", "--maxprocesses", "4"],
        REAL,
    ):
        began = time.monotonic()
        command = [sys.executable, str(Path(__file__)), "--inside", release, "-q", *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
        print(f"flwr {release}: {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            sys.exit(done.returncode)


def inside(release: str, arguments: list[str]) -> int:
    """Run pytest in this process, if it has the release that was asked for."""
    import flwr
    import pytest

    here = f"flwr {flwr.__version__} ({version('flwr')} by its metadata) from {Path(flwr.__file__).parent}"
    if not (
        flwr.__version__ == version("flwr") == release and RELEASES / release in Path(flwr.__file__).parents
    ):
        print(f"expected flwr {release} from {RELEASES / release}, got {here}")
        return 1
    print(f"testing {here}", flush=True)
    return int(pytest.main(arguments))


def main(words: list[str]) -> int:
    """Run on each release; on the installed one with ``--all`` alone."""
    if words[:1] == ["--inside"]:
        return inside(words[1], words[2:])
    requirement, installed = allowed(), version("flwr")
    RELEASES.mkdir(exist_ok=True)
    for release in dict.fromkeys([oldest(requirement), newest(requirement)]):
        if release == installed and words != ["--all"]:
            print(f"flwr {release} is that of .venv: make test has run these tests, and more", flush=True)
        else:
            run_on(release)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
