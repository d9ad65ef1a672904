"""The study: KD methods between pre-trained models, without federation.

::

    settings    STUDY.yaml, checked
    design      what is compared with what: every condition (distributions x seeds, other factors one at a
                time), and the trials of each method in it; their cache keys
    hashes      SHA-256 of code and data, which are part of the cache keys
    jobs        one job: train the models of a condition, or run one trial; results are kept in a cache
    running     the jobs in parallel processes
    rows        results of trials -> study.json
    report      study.json -> study.html
"""

from __future__ import annotations

from simulations.study.running import run_study
from simulations.study.settings import StudySettings, load_study

__all__ = ["StudySettings", "load_study", "run_study"]
