"""``kdfed consolidate``: teachers that exist already into one student, without any federation.

Reading order: :mod:`simulations.consolidating.words` (what is written on the command line),
:mod:`simulations.consolidating.plan` (all that is checked before anything is trained),
:mod:`simulations.consolidating.running`, :mod:`simulations.consolidating.report`.
"""

from simulations.consolidating.plan import Plan, Request, plan_of
from simulations.consolidating.report import comparison_tables, render, settings_rows
from simulations.consolidating.running import Compared, Outcome, run_plan

__all__ = [
    "Compared",
    "Outcome",
    "Plan",
    "Request",
    "comparison_tables",
    "plan_of",
    "render",
    "run_plan",
    "settings_rows",
]
