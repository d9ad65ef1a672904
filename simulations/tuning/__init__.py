"""``kdfed tune``: successive halving over a search space, on seeds and examples that are never reported.

::

    space       what is tried: candidates of an arm, drawn from the product of its values
    trial       one candidate, one tuning seed: an arm is run, and read on examples that nothing else sees
    objective   which candidate is better, and which go on
    running     the rungs, in parallel processes, with a cache
    horizon     how long arms must run: 1.5 times the baseline's plateau
    output      ``trials.csv``, ``tuned.yaml``, the table
"""

from simulations.tuning.checks import Plan, load_tuning
from simulations.tuning.horizon import baseline_curves, horizon_of
from simulations.tuning.running import run_tuning
from simulations.tuning.trial import run_trial

__all__ = ["Plan", "baseline_curves", "horizon_of", "load_tuning", "run_trial", "run_tuning"]
