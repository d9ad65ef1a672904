"""What runs an experiment on one machine; one module each, all with the same results.

An engine is ``run(experiment, folder, *, nodes, on_event)``; ``ray`` also takes ``address`` and ``pin``. It
raises ``kdfed.errors.RunError`` when the run failed; what was recorded is in the folder either way.
"""

from __future__ import annotations

ENGINES: dict[str, str] = {
    "flower": "Flower's own runtime, as `flwr run` does: worker processes, one message a node",
    "ray": "Ray actors that share a round's cohorts: hundreds to thousands of participants, GPUs, clusters",
    "inprocess": "the same messages in this process: small runs, tests, debugging",
}
"""One line for each engine; ``simulations.engines.<name>`` is its module."""
