"""The run folder as it is read: what lies where, and the records back from there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdfed.config import Experiment, read_recorded
from kdfed.errors import KdfedError, RunFolderError
from kdfed.records.checking import (
    check_rounds,
    check_summary,
    is_of_schema_1,
    parse_rounds,
    parse_schema_1,
    parse_summary,
)
from kdfed.records.parsing import problems_of
from kdfed.records.recounting import check_recount
from kdfed.records.rounds import Failure, Outcome, RoundRecord
from kdfed.records.schema import FirstSummary
from kdfed.records.summary import summarise

EXPERIMENT, ROUNDS, OUTCOMES, PARTIAL = (
    *("experiment.yaml", "rounds.jsonl"),
    *("outcomes.jsonl", "rounds.partial.jsonl"),
)
SUMMARY, CURVES, REPORT, MODELS = "summary.json", "curves.png", "report.html", "models"
_RECORDS = (EXPERIMENT, ROUNDS, OUTCOMES, PARTIAL, SUMMARY, CURVES, REPORT)
_MODEL = re.compile(rf"{MODELS}/[A-Za-z0-9_-]+-[0-9]+\.safetensors")
PRIVATE = ".kdfed"
"""Lock, log, store, and the list of what kdfed wrote: nothing that a reader needs."""


SCHEMA_1 = (
    "Recorded by the first version of kdfed, and counted anew by today's rules from rounds.jsonl. Curves "
    "were read on the validation split, and arms stopped at their targets, so their misses are unknown."
)
"""What a reader must know about records of schema 1."""


class RecordedRun:
    """What lies in a run folder; nothing here changes it.

    Parameters
    ----------
    path
        The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # ------------------------------------------------------------------ what lies where

    @property
    def experiment_file(self) -> Path:
        """Where the resolved experiment lies."""
        return self.path / EXPERIMENT

    @property
    def log_path(self) -> Path:
        """Where warnings and tracebacks of a run go."""
        return self.path / PRIVATE / "log"

    @property
    def models(self) -> Path:
        """Where the final models lie."""
        return self.path / MODELS

    @property
    def stores(self) -> Path:
        """Where participants keep what lasts between rounds."""
        return self.path / PRIVATE / "store"

    def model_path(self, arm: str, seed: int) -> Path:
        """Return where the final model of a run lies."""
        return self.models / f"{arm}-{seed}.safetensors"

    def store_path(self, arm: str, seed: int) -> Path:
        """Return where the participants of a run keep what lasts between rounds."""
        return self.stores.absolute() / f"{arm}-{seed}"

    def derived(self) -> tuple[Path, ...]:
        """Return what is made from the records, and made again."""
        return tuple(self.path / name for name in (SUMMARY, CURVES, REPORT))

    def files_of(self, experiment: Experiment) -> list[str]:
        """Return the files that a run of an experiment writes, relative to the folder."""
        models = [self.model_path(arm, seed) for arm in experiment.arms for seed in experiment.seeds]
        return [
            *_RECORDS,
            *(str(model.relative_to(self.path)) for model in models),
        ]

    def written(self) -> list[str]:
        """Return the files that kdfed wrote here, or was about to, relative to the folder.

        Of what the list says only names that a run can write are believed.
        """
        with suppress(OSError, UnicodeDecodeError):
            lines = (self.path / PRIVATE / "written").read_text(encoding="utf-8").split("\n")
            names = [line for line in lines if line in _RECORDS or _MODEL.fullmatch(line)]
            if names:
                return names
        try:  # an earlier release kept no list: its records are those of its experiment
            experiment = read_recorded(self.experiment_file)
            self.read_rounds()
        except KdfedError:
            return []
        return self.files_of(experiment)

    @property
    def has_outcomes(self) -> bool:
        """Whether the folder tells which runs finished."""
        return (self.path / OUTCOMES).exists()

    @property
    def has_summary(self) -> bool:
        """Whether a run was summed up here."""
        return (self.path / SUMMARY).exists()

    # ------------------------------------------------------------------ reading

    def read_rounds(self, experiment: Experiment | None = None) -> list[RoundRecord]:
        """Return the records in the order they were written.

        A last line that a killed run left half written is dropped. A run that has just begun has none.

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
        if self.has_outcomes and not (self.path / ROUNDS).exists():
            return []
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

    def read_outcomes(self) -> list[Outcome]:
        """Return how finished runs ended, in the order they finished; broken lines are skipped."""
        outcomes = []
        for line in (self._read(OUTCOMES) if self.has_outcomes else b"").split(b"\n"):
            with suppress(ValueError):
                outcomes.append(Outcome.from_json(line.decode()))
        return outcomes

    def read_summary(
        self, experiment: Experiment | None = None, records: Sequence[RoundRecord] = ()
    ) -> dict[str, Any]:
        """Return what ``summary.json`` holds.

        One of the first version is left as it is, and its ``rounds.jsonl`` is counted by today's rules.

        Parameters
        ----------
        experiment, records
            What it must be the summary of. Default: it is checked by itself.

        Raises
        ------
        RunFolderError
            If it is missing, or not what a run writes (:func:`kdfed.records.checking.parse_summary`), or of
            something else (:func:`kdfed.records.checking.check_summary`), or other than what is counted from
            its records (:func:`kdfed.records.recounting.check_recount`).
        """
        content = self._read(SUMMARY)
        try:
            if is_of_schema_1(content):
                return self._counted_anew(parse_schema_1(content))
            summary = parse_summary(content)
            if experiment is not None:
                check_summary(summary, experiment, records)
                check_recount(summary, experiment, records, self.read_outcomes())
        except ValueError as error:
            why = problems_of(error) if isinstance(error, ValidationError) else str(error)
            raise RunFolderError(
                f"{self.path / SUMMARY}: {why}; remove the file to see what was recorded, or run the "
                "experiment again"
            ) from error
        return summary

    def _counted_anew(self, old: FirstSummary) -> dict[str, Any]:
        """Count the records of the first version by today's rules."""
        experiment = self.read_experiment()
        return summarise(
            experiment,
            old.engine,
            self.read_rounds(experiment),
            self.read_outcomes(),
            [partition.model_dump() for partition in old.partitions],
            [Failure(**dict(failure)) for failure in old.failures],
            note=SCHEMA_1,
        )

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
        return read_recorded(self.path / EXPERIMENT)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFolderError(
                f"{self.path}: expected a run folder with a readable {name}: {reason}; name the folder that "
                "`kdfed run --out` wrote"
            ) from error
