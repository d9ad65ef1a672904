"""The pictures and the page of a run, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdfed.errors import RunFolderError
from kdfed.records import RunFolder, summarise, write_atomically
from simulations.report.figures import curves_figure, partition_figure, to_png
from simulations.report.page import render_page

__all__ = ["build_report", "partition_figure", "save_partition_picture"]


def build_report(folder: Path) -> None:
    """Write ``curves.png`` and ``report.html`` of a run folder.

    Parameters
    ----------
    folder
        The run folder. Without a ``summary.json`` (the run was killed) the page shows what was recorded.

    Raises
    ------
    RunFolderError
        If the folder does not hold the records of a run, or records that no run can have left; what was there
        of picture and page stays.
    ConfigError
        If its experiment cannot be read.
    RunError
        If matplotlib cannot be loaded.
    """
    run = RunFolder(folder)
    experiment = run.read_experiment()
    records = run.read_rounds(experiment)
    if not records:
        raise RunFolderError(
            f"{run.path / 'rounds.jsonl'}: expected at least one evaluation, got none: there is nothing to "
            "report; run the experiment"
        )
    finished = (run.path / "summary.json").exists()
    summary = (
        run.read_summary(experiment, records)
        if finished
        else summarise(experiment, "unknown", records, run.read_outcomes(), unfinished="interrupted")
    )
    picture = to_png(curves_figure(experiment, records, summary))
    page = render_page(experiment, records, summary, finished)
    write_atomically(run.path / "curves.png", picture)
    write_atomically(run.path / "report.html", page.encode(errors="backslashreplace"))


def save_partition_picture(entry: dict[str, Any], path: Path) -> None:
    """Write the picture of one entry of ``partitions`` as PNG; see :func:`partition_figure`.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    write_atomically(path, to_png(partition_figure(entry)))
