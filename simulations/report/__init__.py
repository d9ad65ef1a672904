"""The pictures and the page of a run, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        If the folder does not hold the records of a run.
    """
    run = RunFolder(folder)
    experiment, records = run.read_experiment(), run.read_rounds()
    finished = (run.path / "summary.json").exists()
    summary = (
        run.read_summary()
        if finished
        else summarise(experiment, "unknown", records, run.read_outcomes(), unfinished="interrupted")
    )
    write_atomically(run.path / "curves.png", to_png(curves_figure(experiment, records, summary)))
    write_atomically(run.path / "report.html", render_page(experiment, records, summary, finished).encode())


def save_partition_picture(entry: dict[str, Any], path: Path) -> None:
    """Write the picture of one entry of ``partitions`` as PNG; see :func:`partition_figure`.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    write_atomically(path, to_png(partition_figure(entry)))
