"""Knowledge distillation: one file per method, named here."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "vanilla": "cross entropy plus T^2 times KL from the teachers' target, with fixed T and weight",
    "tuned": "vanilla, with temperature and weight searched on the validation split",
    "mutual": "deep mutual learning: teachers and student train each other",
    "partitioned": "each example from whichever of the teachers and the initial student is surest of it",
}
"""What can stand in ``consolidation.method``."""
