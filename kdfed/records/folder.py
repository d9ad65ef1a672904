"""The run folder as it is written: opened, filled line by line, and never half."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch

from kdfed.config import Experiment
from kdfed.errors import RecordError, RunFolderError, shortened
from kdfed.records.lock import FolderLock
from kdfed.records.opening import Opening, examine, with_horizon_of
from kdfed.records.reading import OUTCOMES, PARTIAL, PRIVATE, ROUNDS, SUMMARY, RecordedRun
from kdfed.records.rounds import Outcome, RoundRecord
from kdfed.records.weights import serialised


class RunFolder(RecordedRun):
    """The records of one experiment.

    Parameters
    ----------
    path
        The folder. To write records, open it with :meth:`open_for`.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.finished: dict[tuple[str, int], Outcome] = {}
        self.overwrites = False
        self._lock = FolderLock(self.path / PRIVATE / "lock")
        self._experiment: Experiment | None = None
        self._opening = Opening()
        self._made: list[Path] = []  # folders that opening made, innermost first

    # ------------------------------------------------------------------ opening

    @classmethod
    def open_for(
        cls,
        path: str | Path,
        experiment: Experiment,
        overwrite: bool = False,
        source: Path | None = None,
    ) -> RunFolder:
        """Take hold of a folder for a run of an experiment; no record is touched before :meth:`begin`.

        Files that kdfed did not write are never touched.

        Parameters
        ----------
        path
            The folder; it may hold other files.
        experiment
            What will be run.
        overwrite
            Replace the records that are there: of another experiment, or of a complete run of this one.
        source
            The file that the experiment was read from. It is refused as the folder's ``experiment.yaml``
            where writing the resolved experiment would change it.

        Returns
        -------
        RunFolder
            Locked for this process; its ``finished`` runs (arm, seed) are kept, and need not be run.

        Raises
        ------
        RunFolderError
            If another process writes to the folder, it holds what this run must not replace (see
            :mod:`kdfed.records.opening`), or it cannot be written to.
        """
        folder = cls(path)
        folder._experiment, folder.overwrites = experiment, overwrite
        try:
            folder.hold()
            folder._opening = examine(folder, experiment, overwrite, source)
        except OSError as error:
            folder.close()
            reason = error.strerror or str(error)
            raise RunFolderError(
                f"{folder.path}: expected a folder that can be written to: {reason}; choose another (--out)"
            ) from error
        except BaseException:
            folder.close()
            raise
        folder.finished = folder._opening.finished
        if folder.finished:
            folder._experiment = with_horizon_of(folder.read_experiment(), experiment)
        return folder

    @property
    def experiment(self) -> Experiment:
        """What will be run: as it was given, with the horizon that an earlier start found."""
        assert self._experiment is not None, "open the folder with open_for"
        return self._experiment

    def hold(self, patience: float = 0.0) -> None:
        """Take hold of the folder for this process, within ``patience`` seconds.

        Raises
        ------
        RunFolderError
            If another one writes to it.
        """
        missing = [part for part in (self.path / PRIVATE, self.path, *self.path.parents) if not part.exists()]
        self._lock.take(patience)
        self._made += missing

    def begin(self, experiment: Experiment | None = None) -> Self:
        """Make the folder ready for the runs that are not finished: the first change of what is there.

        Records of runs that are not kept go to ``rounds.partial.jsonl``; what is obsolete, and the store of
        runs that begin anew, is removed.

        Parameters
        ----------
        experiment
            With the horizon that was found. Default: as it was opened for.

        Raises
        ------
        RunFolderError
            If another process took hold of the folder, or it cannot be written to; then nothing was removed.
        RecordError
            If the disk gives up in between.
        """
        self._experiment = experiment = self.experiment if experiment is None else experiment
        self._made = []
        self._lock.take()
        names = [*self.written(), *self.files_of(experiment)]
        try:
            self.models.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.models}: expected a folder: {error.strerror or error}") from error
        write_atomically(self.path / PRIVATE / "written", "\n".join(dict.fromkeys(names)).encode(), sync=True)
        with self._recording():
            for file in self._opening.obsolete:
                file.unlink(missing_ok=True)
            self.keep(self.finished)
            write_atomically(self.experiment_file, experiment.to_yaml().encode())
            (self.path / OUTCOMES).touch()
        return self

    def hand_over(self) -> None:
        """Let another process write: it opens the folder itself."""
        self._lock.release()

    def close(self) -> None:
        """Let go of the folder. What opening it made is removed, where nothing was begun."""
        private = self.path / PRIVATE
        with suppress(OSError, RunFolderError):
            if self._made and [file.name for file in private.iterdir()] == ["lock"]:
                self._lock.take()
                self._lock.release(remove=True)
        self._lock.release()
        with suppress(OSError):  # somebody uses it by now
            for part in self._made:
                part.rmdir()
        self._made = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------ writing

    def append(self, record: RoundRecord) -> None:
        """Write one line to ``rounds.jsonl``; it is on its way to the disk when this returns.

        Raises
        ------
        RecordError
            If it cannot be written; then no part of it is.
        """
        self._append(ROUNDS, record.to_json())

    def finish(
        self,
        outcome: Outcome,
        state: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Record that a run finished: its model, then its line of ``outcomes.jsonl``; both are on the disk.

        Parameters
        ----------
        outcome
            How it ended.
        state
            The final weights.
        metadata
            What the model file says beside them, see :mod:`kdfed.saved`.

        Raises
        ------
        RecordError
            If they cannot be written.
        """
        with self._recording():
            self.save_model(outcome.arm, outcome.seed, state, metadata)
            if (self.path / ROUNDS).exists():
                _sync(self.path / ROUNDS)
        self._append(OUTCOMES, outcome.to_json(), sync=True)
        self.finished[outcome.arm, outcome.seed] = outcome

    def join(self, records: Iterable[RoundRecord], outcomes: Iterable[Outcome]) -> None:
        """Write the records of runs that lie in other folders in place of those that are here; no models.

        Parameters
        ----------
        records, outcomes
            Of this folder's experiment, in the order in which it would have written them.

        Raises
        ------
        RecordError
            If they cannot be written.
        """
        with self._recording():
            for name, lines in ((ROUNDS, records), (OUTCOMES, outcomes)):
                text = "".join(f"{line.to_json()}\n" for line in lines)
                write_atomically(self.path / name, text.encode(errors="backslashreplace"), sync=True)

    def drop(self, arm: str, seed: int) -> None:
        """Move the lines of a run to ``rounds.partial.jsonl``, so that it can be run again."""
        recorded = {(record.arm, record.seed) for record in self.read_rounds()} | set(self.finished)
        self.keep(recorded - {(arm, seed)})

    def keep(self, runs: Collection[tuple[str, int]]) -> None:
        """Keep the records of these runs; move the lines of others to ``rounds.partial.jsonl``.

        The stores of others are removed, so that their participants begin afresh.
        """
        rounds, outcomes = self.path / ROUNDS, self.path / OUTCOMES
        if rounds.exists():
            kept, others = _sorted_lines(rounds, RoundRecord.from_json, runs)
            if others:
                with (self.path / PARTIAL).open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in others)
                _sync(self.path / PARTIAL)
                write_atomically(rounds, "".join(f"{line}\n" for line in kept).encode(), sync=True)
        if outcomes.exists():
            kept, others = _sorted_lines(outcomes, Outcome.from_json, runs)
            if others:
                write_atomically(outcomes, "".join(f"{line}\n" for line in kept).encode(), sync=True)
        names = {f"{arm}-{seed}" for arm, seed in runs}
        for store in self.stores.iterdir() if self.stores.is_dir() else ():
            if store.name not in names:
                shutil.rmtree(store, ignore_errors=True)
        self.finished = {key: outcome for key, outcome in self.finished.items() if key in runs}

    def save_model(
        self,
        arm: str,
        seed: int,
        state: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a run's final weights; :func:`load_model` reads them."""
        write_atomically(self.model_path(arm, seed), serialised(state, metadata), sync=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``.

        Raises
        ------
        RecordError
            If it cannot be written.
        """
        text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
        with self._recording():
            write_atomically(self.path / SUMMARY, f"{text}\n".encode(errors="backslashreplace"))

    def _append(self, name: str, line: str, *, sync: bool = False) -> None:
        with self._recording(), (self.path / name).open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                content = f"{line}\n".encode(errors="backslashreplace")
                while content:
                    content = content[file.write(content) :]
                if sync:
                    os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Let what goes wrong with the disk in mid-run end the run, not look like a wrong command line."""
        try:
            yield
        except (OSError, RunFolderError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RecordError(
                f"{self.path}: the records cannot be written: {reason}. Make room, then run the same command "
                "again: what is finished is kept"
            ) from error


def write_atomically(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file so that no reader ever sees half of it; with ``sync`` it is on the disk, too.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")  # of this writer alone
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            if sync:
                _sync(part)
            os.replace(part, path)
            if sync:
                _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(
            f"{path}: expected a file that can be written: {reason}; choose another place, or make room"
        ) from error


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Check that a file can be written, before the work is done that it will hold; nothing is left there.

    Parameters
    ----------
    path
        The file; folders that are missing above it are made when it is written.
    overwrite
        Whether a file that is there may be replaced.

    Raises
    ------
    RunFolderError
        If it cannot be written, or is there already.
    """
    try:
        if path.is_dir():
            raise RunFolderError(f"expected a file, {path} is a folder; choose another place")
        if os.path.lexists(path) and not overwrite:
            raise RunFolderError(
                f"{path} exists already; choose another place, or replace it with --overwrite"
            )
        above = path.parent
        while not os.path.lexists(above):
            above = above.parent
        part = above / f".{path.name}.{uuid4().hex}.part"  # a name as long as that which will be written
        part.touch()
        part.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunFolderError(
            f"expected a file that can be written, got {shortened(str(path))}: {reason}; choose another place"
        ) from error


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sorted_lines(
    file: Path, read: Callable[[str], RoundRecord | Outcome], runs: Collection[tuple[str, int]]
) -> tuple[list[str], list[str]]:
    """Return the lines of a file that belong to these runs, and all others, broken ones included."""
    kept: list[str] = []
    others: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = read(line)
            (kept if (record.arm, record.seed) in runs else others).append(line)
        except ValueError:
            others += [line] if line else []
    return kept, others
