"""The study: KD methods between pre-trained models, without federation.

::

    settings    STUDY.yaml, checked
    cells       what is compared with what: distributions x methods x seeds, other factors one at a time
    code        digests of code and data, which the cache's keys hold
    work        one model trained, one trial distilled; each is kept in a cache by what it depends on
    running     cells in parallel processes
    report      study.json -> study.html
"""

from __future__ import annotations

from simulations.study.running import run_study
from simulations.study.settings import StudySettings, load_study

__all__ = ["StudySettings", "load_study", "run_study"]
