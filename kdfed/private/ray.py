"""What kdfed uses of Ray beyond its documented interface. See :mod:`kdfed.private` for the rule.

Every entry was seen in Ray 2.55.1, which ``flwr[simulation]`` 1.41 and 1.42 pin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = [
    "GPU_WARNING",
    "INLINE_LIMIT",
    "TEMPORARY_FOLDER",
    "TEMPORARY_OPTION",
    "WORKER_NICENESS",
    "actor_class",
    "around_last_stop",
    "find_cluster",
]

# ----------------------------------------------------------------------------- settings that no page lists

WORKER_NICENESS = "RAY_worker_niceness"
"""Variable: the workers' niceness. Ray's 15 lets whatever else the machine does come first.

A name that moves is ignored in silence, and a busy machine slows rounds down. See ``ray_config_def.h``."""

INLINE_LIMIT = "RAY_max_direct_call_object_size"
"""Variable: bytes up to which arguments and results travel in messages (Ray's own: 100 KiB).

A trip to the object store and back takes as long as a small model's arithmetic for dozens of participants. A
name that moves is ignored in silence; see ``ray_config_def.h``."""

GPU_WARNING = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Variable: 0 keeps CUDA_VISIBLE_DEVICES of actors without a share of a GPU, which is to be Ray's default.

So with ``device: cuda:N`` they find that GPU. Unset, every process warns once. When it moves: the warning
goes with it, and so can this, once it is the default."""

TEMPORARY_FOLDER = "RAY_TMPDIR"
"""Variable: where a cluster keeps its session, for a Ray that somebody else starts (Flower's simulation).

What a run starts must leave nothing behind, and sessions are large. When it moves: set ``TMPDIR``, from which
Ray makes its own default."""

TEMPORARY_OPTION = "_temp_dir"
"""Option of ``ray.init``: the same for a Ray that we start. When it moves: :data:`TEMPORARY_FOLDER`."""


# ----------------------------------------------------------------------------- this process


def actor_class() -> str | None:
    """Return the full name of the class of the Ray actor that this process is; None if it is none.

    Ray tells an actor its id, but not its class. Its worker keeps the actor itself under the id, as an object
    of a class that Ray derives from the one it was given, with the same module and name. The public
    ``current_actor`` would make a new handle at each call, which hides the class just as well. When it moves:
    None, so a simulated client answers as a device would; look at what ``ray.get_runtime_context()`` has by
    then.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    worker = ray._private.worker.global_worker
    actor = getattr(worker, "actors", {}).get(worker.actor_id)
    return None if actor is None else f"{type(actor).__module__}.{type(actor).__qualname__}"


def around_last_stop(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap what ``ray.shutdown`` runs last: the end of the processes that this driver started, if it did.

    Ray's driver, when it disconnects, lays SIGTERM back to "end the process" behind Python, so a signal that
    came between that and the end of Ray's processes would leave them running. When it moves: the method that
    ``ray.shutdown`` calls on the node after ``disconnect``.
    """
    import ray

    node: Any = ray._private.worker._global_node
    if node is not None:
        node.kill_all_processes = wrap(node.kill_all_processes)


def find_cluster() -> str:
    """Return the address, ``host:port``, that ``ray.init("auto")`` would connect to, without connecting.

    ``ray.init`` tries for half a minute where nothing listens. When it moves: read what ``ray start`` wrote,
    or leave the question to ``ray.init``.

    Raises
    ------
    ConnectionError, ValueError
        If there is none.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return str(canonicalize_bootstrap_address_or_die("auto"))
