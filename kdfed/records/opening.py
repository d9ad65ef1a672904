"""What lies in a run folder already, and what may become of it: decided before anything is touched.

=============================== ===================================== ==============================
in the folder                   without ``overwrite``                 with it
=============================== ===================================== ==============================
files that kdfed did not write  refused where a record would replace  the same
                                them
nothing of kdfed's              begin                                 begin
another experiment              refused, the differing keys named     replaced
the same, every run finished    refused                               replaced
the same, some runs finished    those are kept, the others are run    replaced
the same, by other versions     refused                               replaced
=============================== ===================================== ==============================

Files of the user's that the experiment names, of code and of models, have versions, too: their hashes. A file
of a model may lie in another folder than when the run was made.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from kdfed.config import Experiment, dotted, model_paths, moved_models, read_recorded, with_horizon, written
from kdfed.errors import ConfigError, KdfedError, RunFolderError
from kdfed.outside import code_of, models_of
from kdfed.records.reading import RecordedRun
from kdfed.records.rounds import Outcome
from kdfed.records.versions import models_sha256, versions
from kdfed.records.weights import load_model, weights_sha256

ELSEWHERE = "choose another output folder (--out)"
_OVERWRITE = f"{ELSEWHERE}, or replace what is there with --overwrite"

SAME_VERSIONS = ("kdfed", "torch")
"""Packages of which another version may give other bits."""


@dataclass(frozen=True)
class Opening:
    """What will become of a folder.

    Parameters
    ----------
    finished
        The runs (arm, seed) that are kept.
    obsolete
        Files that kdfed wrote and that will be removed.
    """

    finished: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    obsolete: tuple[Path, ...] = ()


def examine(
    folder: RecordedRun, experiment: Experiment, overwrite: bool = False, source: Path | None = None
) -> Opening:
    """Decide what becomes of a folder; nothing is changed.

    Parameters
    ----------
    folder
        Locked already.
    experiment, overwrite, source
        See :meth:`kdfed.records.RunFolder.open_for`.

    Raises
    ------
    RunFolderError
        If the run must not write here.
    """
    file, resolved = folder.experiment_file, experiment.to_yaml().encode()
    _refuse_source(file, resolved, source)
    written = folder.written()
    wanted = folder.files_of(experiment)
    _refuse_obstacles(folder)
    _refuse_starts(folder, experiment, {*wanted, *written})
    foreign = [name for name in wanted if os.path.lexists(folder.path / name) and name not in written]
    if foreign and not (foreign == [file.name] and file.is_file() and file.read_bytes() == resolved):
        raise RunFolderError(
            f"{folder.path} holds {', '.join(foreign[:5])}, which kdfed did not write there and this run "
            f"would replace; {ELSEWHERE}, or move them away"
        )
    present = [name for name in written if os.path.lexists(folder.path / name)]
    if overwrite:
        return Opening(obsolete=tuple(folder.path / name for name in present if name != file.name))
    if not [name for name in present if name != file.name]:
        return Opening()
    return _go_on(folder, experiment, _refuse_other(folder, experiment, present))


def _refuse_obstacles(folder: RecordedRun) -> None:
    """Refuse what stands where a run needs a folder of its own."""
    for path, wanted in ((folder.models, "a folder"), (folder.stores, "a folder, and no link to one")):
        if os.path.lexists(path) and (not path.is_dir() or (path == folder.stores and path.is_symlink())):
            raise RunFolderError(f"{path}: expected {wanted}, or nothing; {ELSEWHERE}, or move it away")


def _refuse_source(file: Path, resolved: bytes, source: Path | None) -> None:
    own = source is not None and source.exists() and file.exists() and file.samefile(source)
    if own and file.read_bytes() != resolved:
        raise RunFolderError(
            f"{file}: this run would replace the file that it was started from by the resolved "
            f"experiment; {ELSEWHERE}, or rename the file"
        )


def _refuse_starts(folder: RecordedRun, experiment: Experiment, names: Iterable[str]) -> None:
    ours = {(folder.path / name).resolve() for name in names}
    for name in experiment.arms:
        arm = experiment.arm(name)
        for read in (arm.start.removeprefix("file:"), *arm.teachers.files):
            if Path(read).resolve() in ours or folder.models.resolve() == Path(read).resolve():
                raise RunFolderError(
                    f"{folder.path}: arm {name!r} starts from {read}, which this run would replace; "
                    f"{ELSEWHERE}"
                )


def _refuse_other(folder: RecordedRun, experiment: Experiment, present: list[str]) -> Experiment:
    """Refuse records of another experiment, or of an unknown one; return what is recorded."""
    file = folder.experiment_file
    if not file.exists():
        raise RunFolderError(
            f"{folder.path} holds {', '.join(present[:5])}, but no {file.name} that says of which "
            f"experiment; {_OVERWRITE}"
        )
    try:
        old = read_recorded(file)
    except ConfigError as error:
        raise RunFolderError(
            f"{folder.path} holds an {file.name} that cannot be read; {_OVERWRITE}\n{error}"
        ) from error
    differing = _differences(old, with_horizon_of(old, experiment))
    if differing:
        raise RunFolderError(
            f"{folder.path} holds another experiment; {_OVERWRITE}. It differs in:\n" + "\n".join(differing)
        )
    return old


def _go_on(folder: RecordedRun, experiment: Experiment, old: Experiment) -> Opening:
    """Keep what is finished of the same experiment."""
    if not folder.has_outcomes:
        raise RunFolderError(
            f"{folder.path} holds records of an earlier release of kdfed, which cannot be gone on with; "
            f"{_OVERWRITE}"
        )
    try:
        counts = Counter((record.arm, record.seed) for record in folder.read_rounds())
    except RunFolderError as error:
        raise RunFolderError(f"{error}; or {_OVERWRITE}") from error
    finished = {
        (outcome.arm, outcome.seed): outcome
        for outcome in folder.read_outcomes()
        if outcome.arm in experiment.arms and outcome.seed in experiment.seeds
        if outcome.evaluations == counts[outcome.arm, outcome.seed] and _has_model(folder, outcome)
    }
    if len(finished) == len(experiment.arms) * len(experiment.seeds) and folder.has_summary:
        raise RunFolderError(
            f"{folder.path} holds a complete run of this experiment, which is left as it is (`kdfed report` "
            f"draws it anew); {_OVERWRITE}"
        )
    problem = next(changed_models(finished.values(), old, experiment), None)
    if problem is not None:
        raise RunFolderError(f"{folder.path} {problem}; put it back as it was to go on, or {_OVERWRITE}")
    code = {arm: code_of(experiment.arm(arm)) for arm in {one.arm for one in finished.values()}}
    now = versions({name for names in code.values() for name in names})
    for outcome in finished.values():
        for name in code[outcome.arm]:
            if outcome.versions.get(name) != now[name]:
                raise RunFolderError(
                    f"{folder.path} holds runs made with other code of {name!r}, which may give other "
                    f"results; put its file back as it was to go on, or {_OVERWRITE}"
                )
        for package in SAME_VERSIONS:
            made_by = outcome.versions.get(package)
            if made_by != now[package]:
                raise RunFolderError(
                    f"{folder.path} holds runs made with {package} {made_by}, and this is {package} "
                    f"{now[package]}, which may give other bits; install {package} {made_by} to go on, or "
                    f"{_OVERWRITE}"
                )
    return Opening(finished, folder.derived())


def changed_models(outcomes: Iterable[Outcome], old: Experiment, new: Experiment) -> Iterator[str]:
    """Say which files of models are not those that finished runs were made with.

    Parameters
    ----------
    outcomes
        Of the runs; they hold the hashes.
    old, new
        The experiment as it is recorded, and as it is asked for: files may have been moved in between.
    """
    places = model_paths(new)
    if not places:
        return
    before = moved_models(old, new)
    moved: dict[str, list[str]] = {}
    for place, was in before.items():
        moved.setdefault(places[place], []).append(was)
    models = {name: models_of(new.arm(name)) for name in new.arms}
    now = {path: models_sha256(path) for path in {path for paths in models.values() for path in paths}}
    for outcome in outcomes:
        for path in models.get(outcome.arm, ()):
            known = _recorded_sha256(outcome.versions, path, moved.get(path, ()))
            if now[path] in known or (not known and path not in moved):  # earlier releases did not say it
                continue
            was = " or ".join(sorted(one[:12] for one in known)) or "unknown"
            yield (
                f"holds runs made with another {path}, SHA-256 {was}, now "
                f"{now[path][:12] or 'nothing that can be read'}"
            )


def _recorded_sha256(found: Mapping[str, str], path: str, was: Iterable[str]) -> set[str]:
    """Return what is recorded for a file: by its path, by where it was, or by a path that ends alike."""
    if path in found:
        return {found[path]}
    exact = {found[one] for one in was if one in found}
    if exact:
        return exact
    alike = {key: _common_end(key, path) for key in found if os.sep in key}  # moved before this was recorded
    longest = max(alike.values(), default=0)
    return {found[key] for key, length in alike.items() if length == longest > 0}


def _common_end(one: str, other: str) -> int:
    pairs = zip(reversed(Path(one).parts), reversed(Path(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _has_model(folder: RecordedRun, outcome: Outcome) -> bool:
    """Tell whether the model that a finished run left is there, with its hash."""
    try:
        state = load_model(folder.model_path(outcome.arm, outcome.seed))
    except KdfedError:
        return False
    return weights_sha256(state) == outcome.weights_sha256


def with_horizon_of(old: Experiment, new: Experiment) -> Experiment:
    """Return an experiment whose horizon is to be found with the one that was found already."""
    if new.rounds.horizon == "auto" and old.rounds.horizon != "auto" and old.rounds.why:
        return with_horizon(new, old.rounds.horizon, old.rounds.why)
    return new


def _differences(old: Experiment, new: Experiment) -> list[str]:
    values = (old.model_dump(mode="json"), written(new, moved_models(old, new)))
    before, after = (dict(dotted(value)) for value in values)
    keys = [key for key in {**before, **after} if before.get(key, "nothing") != after.get(key, "nothing")]
    lines = [
        f"  {key}: {before.get(key, 'nothing')!r} there, {after.get(key, 'nothing')!r} here" for key in keys
    ]
    if not lines and list(old.arms) != list(new.arms):
        lines.append(f"  arms: in the order {', '.join(old.arms)} there, {', '.join(new.arms)} here")
    return lines
