"""Write ``docs/reference.md``, the experiment-file reference, from the families of things and the settings.

Run by ``make docs``; a test fails when the page is out of date.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from kdfed.closed_form import ClosedFormSettings
from kdfed.config import combinations, experiment_type
from kdfed.config.tuning import TuningSettings
from kdfed.family import Family
from kdfed.settings import (
    DataSettings,
    ListenerSettings,
    ModelSettings,
    RoundSettings,
    ServerDataSettings,
    ServerFitSettings,
    Settings,
    TeacherSettings,
    kebab,
)
from kdfed.thing import Thing
from simulations.experiments import FAMILIES

PAGE = Path(__file__).parent / "reference.md"

INNER = {family.tag: family for family in FAMILIES if family.inner}
"""The families whose things are chosen inside the section of another, by the key that names one."""

SECTIONS: dict[str, type[Settings] | None] = {
    "data": DataSettings,
    "server-data": ServerDataSettings,
    "partition": None,
    "model": ModelSettings,
    "local": None,
    "teachers": TeacherSettings,
    "consolidation": None,
    "server-fit": ServerFitSettings,
    "closed-form": ClosedFormSettings,
    "server": None,
    "rounds": RoundSettings,
    "listeners": ListenerSettings,
    "tuning": TuningSettings,
}
"""The sections in their order; None where a family's things are whole sections."""

HEAD = """\
<!-- Written by docs/generate_reference.py from the code. Change that, then run `make docs`. -->

# Experiment file

An experiment is a YAML file. Keys are written in kebab-case. A key that does not exist, a value of the wrong
type or out of range, and an option that would have no effect are mistakes; all of them are reported at once,
before anything starts.

- `--set key=value` on the command line (and the run-config key `set` of `flwr run`) takes the dotted names of
  this page: `--set partition.alpha=0.5`. A list is written `--set 'targets=[0.8, 0.9]'`. A key that no arm
  uses, because all of them replace it or none needs it, is a mistake there.
- Values are plain YAML. What YAML 1.1 would read as something else is a mistake that says what to write:
  `020` (16), `1:30` (90), `yes`, `no`, `on`, `off`, and tags (`!!int`). `1_000`, `0x1F`, `1e-3` are numbers,
  dates are words. Anchors and merge keys work; in `{<<: *base, max: 4}` the explicit key wins.
- An **arm** is the experiment with some keys replaced. Dotted names work there too.
- Where `kind`, `mode`, `strategy`, `method`, `transfer` or `ensemble` is replaced, keys that belonged only to
  the old one are dropped. So are all keys of a model where its `name` or `backbone` is.
- What `transfer` and `ensemble` choose has its keys beside the name, in the section that chooses it.
- `package.module:name` is [a thing of yours](own/index.md), in one file beside the experiment.
- Relative paths are resolved against the directory in which the command is started.
"""

ARM_KEYS = """\
An arm can replace `start`, `model`, `local`, `teachers`, `consolidation`, `server-fit`, `server` and
`listeners`, or single keys of them. Everything else is shared by all arms: data, participants, seeds,
targets, rounds.

```yaml
arms:
  cold: {start: random}
  consolidated: {start: consolidated}
  consolidated-hot: {start: consolidated, consolidation.temperature: 6.0}
```
"""


def page() -> str:
    """Return the whole page."""
    top = _fields(experiment_type(FAMILIES))
    first = ("name", "seeds", "targets", "baseline", "arms")  # the others are keys of single arms too
    top = {key: top[key] for key in (*first, *(key for key in top if key not in first))}
    parts = [HEAD, "## Top level", _table(top), "### Arms", ARM_KEYS]
    for section, model in SECTIONS.items():
        parts += _section(section, model)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(section: str, model: type[Settings] | None) -> Iterator[str]:
    """Yield a section: a model's keys, or those that all things of a family have, and those of each."""
    yield f"## `{section}`"
    if model is not None:
        yield _prose(model.__doc__)
        yield _table(_fields(model), section)
        yield from _nested(section, _fields(model))
        yield from _inner(section)
        return
    family = FAMILIES.sections[section]
    shared = {key: field for key, field in _fields(family.base).items() if key != family.tag}
    yield _prose(family.base.__doc__)
    default = f"`{family.default}` where it is left out" if family.default else ""
    yield (
        f"`{family.tag}` chooses one of those below, or {_own(family)}; it is "
        f"{default or f'required where `{section}` is given'}."
    )
    yield _table(shared, section)
    for name, kind in family.members.items():
        yield from _thing(family, name, kind, shared)
    inner = list(_inner(section))
    yield from inner
    if inner:
        yield from _combinations()
    yield from _nested(section, shared)


def _inner(section: str) -> Iterator[str]:
    """Yield the things that are chosen inside a section."""
    for one in INNER.values():
        if one.section == section:
            for name, kind in _of_a_run(one).items():
                yield from _thing(one, name, kind, {})


def _thing(
    family: Family[Thing], name: str, kind: type[Settings], shared: Mapping[str, FieldInfo]
) -> Iterator[str]:
    """Yield the keys that one thing of a family has of its own, or gives another meaning."""
    yield f"### `{family.tag}: {name}`"
    yield _prose(kind.__doc__)
    own = {
        key: field
        for key, field in _fields(kind).items()
        if key != family.tag and (key not in shared or field.description != shared[key].description)
    }
    if own or not family.inner:
        yield _table(own, family.section) if own else "It has no other keys."
    yield from _nested(family.section, own)


def _of_a_run(family: Family[Thing]) -> dict[str, type[Thing]]:
    """Return what a federated run can choose: some transfer sets are for studies only."""
    return {
        name: kind for name, kind in family.members.items() if not getattr(kind, "in_studies_only", False)
    }


def _own(family: Family[Thing]) -> str:
    """Say that a family takes a user's things too."""
    return f"`package.module:name`, [a class of yours](own/{family.noun.lower().replace(' ', '-')}.md)"


def _nested(section: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """Yield the sections inside a section."""
    for key, field in fields.items():
        for model in [] if _chosen(key, field) else _settings_in(field.annotation):
            if model not in (ModelSettings, DataSettings):  # they have sections of their own
                yield f"### `{section}.{key}`"
                yield _prose(model.__doc__)
                yield _table(_fields(model))


def _combinations() -> Iterator[str]:
    yield "### What goes together"
    yield (
        "An arm with `start: consolidated` must be one of these combinations; the others are refused before "
        "anything starts."
    )
    rows = [
        (
            f"`{method}`",
            f"`{transfer}`",
            f"`{upload}`",
            _yes(labels),
            _yes(augmented),
            f"refused: {refused}" if refused else "valid",
        )
        for (method, transfer, upload, labels, augmented), refused in combinations(FAMILIES).items()
    ]
    yield _markdown(("method", "`transfer`", "`teachers.upload`", "`labels`", "`augmentation`", ""), rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _fields(model: type[Settings]) -> dict[str, FieldInfo]:
    return {kebab(name): field for name, field in model.model_fields.items()}


def _table(fields: dict[str, FieldInfo], section: str = "") -> str:
    rows = [
        (
            f"`{key}`",
            _chosen(key, field) or _type(field.annotation, field.metadata),
            _default(field, f"{section}{key}"),
            _prose(field.description),
        )
        for key, field in fields.items()
    ]
    return _markdown(("key", "value", "default", "meaning"), rows)


def _chosen(key: str, field: FieldInfo) -> str:
    """Return the names that a key takes where it chooses a thing inside a section; else an empty text."""
    family = INNER.get(key)
    if family is None or not any(issubclass(kind, family.base) for kind in _settings_in(field.annotation)):
        return ""  # `data.splits.transfer` is a share
    return f"{', '.join(f'`{name}`' for name in _of_a_run(family))} or {_own(family)}"


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *(list(row) for row in rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def _prose(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`")


# ----------------------------------------------------------------------------- values in words


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Put a type and its constraints into words."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        found = [m for item in extra for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _type(inner, found)
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        members = [argument for argument in arguments if argument is not types.NoneType]
        return " or ".join(dict.fromkeys(_type(member) for member in members))
    if get_origin(annotation) is tuple:
        return f"list of {_type(arguments[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    return f"{names[annotation]}{_limits(metadata)}"


def _limits(metadata: Iterable[Any]) -> str:
    words = {
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("≤", "le"),
        annotated_types.Lt: ("<", "lt"),
    }
    found = [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for kind, (sign, name) in words.items()
        if isinstance(item, kind)
    ]
    return f" {', '.join(found)}" if found else ""


def _tag(model: type[Settings]) -> str:
    """Return the key that tells the things of a family apart; empty where a model is no such thing."""
    return next((family.tag for family in FAMILIES if issubclass(model, family.base)), "")


def _default(field: FieldInfo, anchor: str) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Settings):
        tag = _tag(type(value))
        if tag in INNER:
            return f"`{getattr(value, tag)}`"
        words = f"`{tag}: {getattr(value, tag)}`" if tag else "its own defaults"
        return f"[{words}](#{anchor})"
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _settings_in(argument)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
