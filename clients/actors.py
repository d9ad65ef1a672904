"""How a process knows that it is part of a simulation.

A message of a simulation may say whose data to use and what to build; a real device must never be told. What
decides is therefore nothing that a message says, only what runs this process.
"""

from __future__ import annotations

from flwr.app import Context

from kdfed.private.flwr import SIMULATION_ACTORS
from kdfed.private.ray import actor_class

IN_PROCESS = "kdfed-in-process"
"""Node-config key that the in-process engine sets: its nodes are objects, and no actors."""

ACTORS = SIMULATION_ACTORS | {"simulations.engines.ray.Worker"}  # ours by name: clients may not import it
"""Classes of Ray actors that handle messages of simulations. Anybody else's actor may hold a device."""

DEVICE_KEYS = ("participant", "data")
"""Node-config keys that only a device has: whose data it holds, and where they are."""


def is_simulated(context: Context) -> bool:
    """Tell whether this process is part of a simulation: one of :data:`ACTORS`, or the in-process engine.

    A node-config that names a device's own participant or data is never a simulation's.
    """
    if any(key in context.node_config for key in DEVICE_KEYS):
        return False
    return bool(context.node_config.get(IN_PROCESS)) or actor_class() in ACTORS
