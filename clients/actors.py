"""How a process knows that it is part of a simulation: private knowledge of Ray and Flower, in one place.

A message of a simulation may say whose data to use and what to build; a real device must never be told. What
decides is therefore nothing that a message says, only what runs this process.
"""

from __future__ import annotations

import sys

from flwr.app import Context

IN_PROCESS = "kdfed-in-process"
"""Node-config key that the in-process engine sets: its nodes are objects, and no actors."""

ACTORS = frozenset(
    {
        "simulations.engines.ray.Worker",  # ours; clients may not import it
        "flwr.simulation.ray_transport.ray_actor.ClientAppActor",  # of Flower 1.41 and 1.42
    }
)
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


def actor_class() -> str | None:
    """Return the full name of the class of the Ray actor that this process is; None if it is none.

    Ray tells an actor its id, but not its class. Its worker keeps the actor itself under the id, as an object
    of a class that Ray derives from the one it was given, with the same module and name (Ray 2.55). The
    public ``current_actor`` would make a new handle at each call, which hides the class just as well.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    worker = ray._private.worker.global_worker
    actor = getattr(worker, "actors", {}).get(worker.actor_id)
    return None if actor is None else f"{type(actor).__module__}.{type(actor).__qualname__}"
