"""``kdfed matrix``: many experiments whose savings are read together.

::

    settings    MATRIX.yaml, checked: cells, each an ordinary experiment
    jobs        a cell and a seed each; their run folders, and how a cell's are joined
    estimate    how long that takes
    running     the jobs in parallel processes, the cheapest cells first
    records     matrix.json: flat records, counted from the cells' run folders
    counted     what the cells say together
    tables      for the terminal
    report      matrix.html
"""

from simulations.matrix.counted import rivals, sentences
from simulations.matrix.records import FILE, read_matrix
from simulations.matrix.report import build_matrix_report
from simulations.matrix.running import Request, default_workers, left_words, run_matrix
from simulations.matrix.settings import chosen_cells, load_matrix
from simulations.matrix.tables import matrix_tables

__all__ = [
    "FILE",
    "Request",
    "build_matrix_report",
    "chosen_cells",
    "default_workers",
    "left_words",
    "load_matrix",
    "matrix_tables",
    "read_matrix",
    "rivals",
    "run_matrix",
    "sentences",
]
