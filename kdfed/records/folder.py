"""The run folder: what a run writes, and what it must not lose."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save

from kdfed.config import Experiment, load_experiment
from kdfed.errors import ConfigError, RunFolderError
from kdfed.records.checking import check_rounds, check_summary, parse_rounds, parse_summary
from kdfed.records.rounds import RoundRecord

EXPERIMENT, ROUNDS, SUMMARY = "experiment.yaml", "rounds.jsonl", "summary.json"
MODELS, STORE, CURVES, REPORT = "models", "store", "curves.png", "report.html"


class RunFolder:
    """The records of one experiment.

    Parameters
    ----------
    path
        The folder. To write records, open it with :meth:`open_for`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open_for(
        cls,
        path: str | Path,
        experiment: Experiment,
        overwrite: bool = False,
        source: Path | None = None,
    ) -> RunFolder:
        """Create the folder, or clear it of an earlier run of the same experiment.

        Files that a run does not write are never touched.

        Parameters
        ----------
        path
            The folder; it may hold other files.
        experiment
            What will be run; ``experiment.yaml`` is written.
        overwrite
            Also clear the records of another experiment.
        source
            The file that the experiment was read from. It is refused as the folder's ``experiment.yaml``
            where writing the resolved experiment would change it.

        Returns
        -------
        RunFolder
            Without records.

        Raises
        ------
        RunFolderError
            If the folder holds the records of another experiment, or cannot be written to.
        """
        folder = cls(path)
        try:
            old = folder._old_experiment(experiment, overwrite)
            file = folder.path / EXPERIMENT
            resolved = experiment.to_yaml().encode()
            own = source is not None and source.exists() and file.exists() and file.samefile(source)
            if own and file.read_bytes() != resolved:
                raise RunFolderError(
                    f"{file}: this run would replace the file that it was started from by the resolved "
                    "experiment; choose another output folder (--out), or rename the file"
                )
            ours = folder._files_of(old) + folder._files_of(experiment)
            for name in experiment.arms:
                start = experiment.arm(name).start.removeprefix("file:")
                if Path(start).absolute() in [file.absolute() for file in ours]:
                    raise RunFolderError(
                        f"{folder.path}: arm {name!r} starts from {start}, which this run would remove; "
                        "choose another output folder (--out)"
                    )
            (folder.path / MODELS).mkdir(parents=True, exist_ok=True)
            for record in ours:
                record.unlink(missing_ok=True)
            shutil.rmtree(folder.path / STORE, ignore_errors=True)
            write_atomically(file, resolved)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFolderError(
                f"{folder.path}: expected a folder that can be written to: {reason}; choose another (--out)"
            ) from error
        return folder

    def _files_of(self, experiment: Experiment) -> list[Path]:
        """Return where an experiment's records lie, without experiment.yaml."""
        models = [self.model_path(arm, seed) for arm in experiment.arms for seed in experiment.seeds]
        return [*(self.path / name for name in (ROUNDS, SUMMARY, CURVES, REPORT)), *models]

    def _old_experiment(self, new: Experiment, overwrite: bool) -> Experiment:
        """Return the experiment whose records lie here, the new one if there are none."""
        advice = "choose another output folder (--out), or clear this one with --overwrite"
        if not (self.path / EXPERIMENT).exists():
            found = [str(file.relative_to(self.path)) for file in self._files_of(new) if file.exists()]
            if found and not overwrite:
                raise RunFolderError(
                    f"{self.path} holds {', '.join(found)}, but no {EXPERIMENT} that says of which "
                    f"experiment; {advice}"
                )
            return new
        try:
            old = load_experiment(self.path / EXPERIMENT)
        except ConfigError as error:
            if overwrite:
                return new
            raise RunFolderError(
                f"{self.path} holds an {EXPERIMENT} that cannot be read; {advice}\n{error}"
            ) from error
        differing = _differences(old, new)
        if differing and not overwrite:
            raise RunFolderError(
                f"{self.path} holds another experiment; {advice}. It differs in:\n" + "\n".join(differing)
            )
        return old

    def model_path(self, arm: str, seed: int) -> Path:
        """Return where the final model of a run lies."""
        return self.path / MODELS / f"{arm}-{seed}.safetensors"

    def store_path(self, arm: str, seed: int) -> Path:
        """Return where the participants of a run keep what lasts between rounds."""
        return self.path.absolute() / STORE / f"{arm}-{seed}"

    def append(self, record: RoundRecord) -> None:
        """Write one line to ``rounds.jsonl``; it is on its way to the disk when this returns."""
        with open(self.path / ROUNDS, "a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")

    def read_rounds(self, experiment: Experiment | None = None) -> list[RoundRecord]:
        """Return the records in the order they were written.

        A last line that a killed run left half written is dropped.

        Parameters
        ----------
        experiment
            Whose records they must be. Default: every line is checked by itself.

        Raises
        ------
        RunFolderError
            If there is no ``rounds.jsonl``, or a line of it is no record, or none that this experiment can
            have left (:func:`kdfed.records.checking.check_rounds`).
        """
        content = self._read(ROUNDS)
        try:
            records = parse_rounds(content)
            if experiment is not None:
                check_rounds(records, experiment)
        except ValueError as error:
            raise RunFolderError(
                f"{self.path / ROUNDS}, {error}; mend or remove the line, or run the experiment again"
            ) from error
        return records

    def save_model(self, arm: str, seed: int, state: Mapping[str, torch.Tensor]) -> None:
        """Write a run's final weights; :func:`load_model` reads them."""
        tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
        write_atomically(self.model_path(arm, seed), save(tensors))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(self.path / SUMMARY, f"{text}\n".encode())

    def read_summary(
        self, experiment: Experiment | None = None, records: Sequence[RoundRecord] = ()
    ) -> dict[str, Any]:
        """Return what ``summary.json`` holds.

        Parameters
        ----------
        experiment, records
            What it must be the summary of. Default: it is checked by itself.

        Raises
        ------
        RunFolderError
            If it is missing, or not what a run writes (:func:`kdfed.records.checking.parse_summary`), or of
            something else (:func:`kdfed.records.checking.check_summary`).
        """
        content = self._read(SUMMARY)
        try:
            summary = parse_summary(content)
            if experiment is not None:
                check_summary(summary, experiment, records)
        except ValueError as error:
            raise RunFolderError(
                f"{self.path / SUMMARY}: {error}; remove the file to see what was recorded, or run the "
                "experiment again"
            ) from error
        return summary

    def read_experiment(self) -> Experiment:
        """Return the experiment.

        Raises
        ------
        RunFolderError
            If there is none.
        ConfigError
            If it cannot be read.
        """
        self._read(EXPERIMENT)
        return load_experiment(self.path / EXPERIMENT)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFolderError(
                f"{self.path}: expected a run folder with a readable {name}: {reason}; name the folder that "
                "`kdfed run --out` wrote"
            ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it.

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
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(
            f"{path}: expected a file that can be written: {reason}; choose another place, or make room"
        ) from error


def _differences(old: Experiment, new: Experiment) -> list[str]:
    before, after = (dict(_flat(e.model_dump(mode="json"))) for e in (old, new))
    keys = [key for key in {**before, **after} if before.get(key, "nothing") != after.get(key, "nothing")]
    lines = [
        f"  {key}: {before.get(key, 'nothing')!r} there, {after.get(key, 'nothing')!r} here" for key in keys
    ]
    if not lines and list(old.arms) != list(new.arms):
        lines.append(f"  arms: in the order {', '.join(old.arms)} there, {', '.join(new.arms)} here")
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
