"""Overrides that would change nothing: keys of ``--set`` that no arm uses.

In a file such keys are no mistakes. What arms share stays there while arms come and go, and a resolved
experiment (:meth:`kdfed.config.Experiment.to_yaml`) names every key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdfed.config.experiment import ARM_KEYS, REPLACEABLE_KEYS, Experiment
from kdfed.config.merging import merge, undotted
from kdfed.errors import Mistake, shortened


def sections_without_effect(start: object) -> tuple[str, ...]:
    """Return the sections that an arm with this start does not use."""
    used = {
        "consolidated": ("teachers", "consolidation"),
        "averaged": ("teachers",),
        "server": ("server-fit",),
    }.get(str(start), ())
    return tuple(name for name in ("teachers", "consolidation", "server-fit") if name not in used)


def unused(experiment: Experiment, changes: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for every override that no arm uses.

    Parameters
    ----------
    experiment
        What came of the file and the overrides.
    changes
        The overrides, as :func:`kdfed.config.parse_set` returns them.
    """
    shared = {key: value for key, value in experiment.model_dump(mode="json").items() if key in ARM_KEYS}
    starts = {name: experiment.arm(name).start for name in experiment.arms}
    for path in _leaves(changes):
        key, mark = ".".join(path), object()
        if path[0] not in REPLACEABLE_KEYS or not _is_at(shared, path):
            continue
        marked = _with(shared, path, mark)
        own = [
            name
            for name, arm in experiment.arms.items()
            if _at(merge(marked, arm, experiment.families), path) is not mark
        ]
        idle = [
            name for name in starts if name not in own and path[0] in sections_without_effect(starts[name])
        ]
        if len(own) + len(idle) == len(starts):
            why = [f"replaced in {_list(own)}"] if own else []
            why += [f"{path[0]} not used in {_list(idle)}"] if idle else []
            yield Mistake(
                key,
                f"no arm uses it ({'; '.join(why)}); set it in an arm (arms.NAME.{shortened(key)}) or remove "
                "it",
            )


def _list(names: Sequence[str]) -> str:
    return shortened(", ".join(names))


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in undotted(values).items():
        if isinstance(value, Mapping) and value:
            yield from ((key, *rest) for rest in _leaves(value))
        else:
            yield (key,)


def _with(values: Mapping[str, Any], path: Sequence[str], value: object) -> dict[str, Any]:
    """Return a copy with another value at a path."""
    head, *rest = path
    return {**values, head: _with(values[head], rest, value) if rest else value}


def _is_at(values: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _at(values: Any, path: Sequence[str]) -> object:
    """Return what is at a path, None where nothing is."""
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
