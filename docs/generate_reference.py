"""Write ``docs/reference.md``, the experiment-file reference, from the models of ``kdfed.config``.

Run by ``make docs``; a test fails when the page is out of date.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from kdfed import config
from kdfed.config import COMBINATIONS, Experiment
from kdfed.settings import Settings

PAGE = Path(__file__).parent / "reference.md"

HEAD = """\
<!-- Written by docs/generate_reference.py from kdfed/config. Change that, then run `make docs`. -->

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
- Where `kind`, `mode`, `strategy` or `method` is replaced, keys that belonged only to the old one are
  dropped.
- Relative paths are resolved against the directory in which the command is started.
"""

ARM_KEYS = """\
An arm can replace `start`, `model`, `local`, `teachers`, `consolidation` and `server`, or single keys of
them. Everything else is shared by all arms: data, participants, seeds, targets, rounds.

```yaml
arms:
  cold: {start: random}
  consolidated: {start: consolidated}
  consolidated-hot: {start: consolidated, consolidation.temperature: 6.0}
```
"""


def page() -> str:
    """Return the whole page."""
    top = _fields(Experiment)
    first = ("name", "seeds", "targets", "baseline", "arms")  # the others are keys of single arms too
    top = {key: top[key] for key in (*first, *(key for key in top if key not in first))}
    parts = [HEAD, "## Top level", _table(top), "### Arms", ARM_KEYS]
    for section, base in (
        ("data", config.DataSettings),
        ("partition", config.PartitionBase),
        ("model", config.ModelSettings),
        ("local", config.OptimiserSettings),
        ("teachers", config.TeacherSettings),
        ("consolidation", config.ConsolidationBase),
        ("server", config.ServerBase),
        ("rounds", config.RoundSettings),
    ):
        parts += _section(section, base)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(section: str, base: type[Settings]) -> Iterator[str]:
    yield f"## `{section}`"
    variants = (
        config.variants(section) if section in ("partition", "local", "server", "consolidation") else {}
    )
    yield _prose(base.__doc__)
    if variants:
        tag = _tag(next(iter(variants.values())))
        default = next((n for n, v in variants.items() if not v.model_fields[tag].is_required()), None)
        rule = f"`{default}` where it is left out" if default else f"required where `{section}` is given"
        yield f"`{tag}` chooses a variant below; it is {rule}."
    yield _table(_fields(base), section)
    for name, variant in variants.items():
        tag = _tag(variant)
        yield f"### `{tag}: {name}`"
        yield _prose(variant.__doc__)
        shared = _fields(base)
        own = {key: field for key, field in _fields(variant).items() if key != tag and key not in shared}
        yield _table(own, section) if own else "It has no other keys."
        yield from _nested(section, own)
    if section == "consolidation":
        yield from _combinations()
    yield from _nested(section, _fields(base))


def _nested(section: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """Yield the sections inside a section."""
    for key, field in fields.items():
        for model in _settings_in(field.annotation):
            if model not in (config.ModelSettings, config.DataSettings):  # they have sections of their own
                yield f"### `{section}.{key}`"
                yield _prose(model.__doc__)
                yield _table(_fields(model))


def _tag(model: type[Settings]) -> str:
    """Return the key that tells the variants of a section apart; empty where there is none."""
    return next((key for key in ("kind", "mode", "strategy", "method") if key in model.model_fields), "")


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
        for (method, transfer, upload, labels, augmented), refused in COMBINATIONS.items()
    ]
    yield _markdown(("method", "`transfer`", "`teachers.upload`", "`labels`", "`augmentation`", ""), rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _fields(model: type[Settings]) -> dict[str, FieldInfo]:
    return {name.replace("_", "-"): field for name, field in model.model_fields.items()}


def _table(fields: dict[str, FieldInfo], section: str = "") -> str:
    rows = [
        (
            f"`{key}`",
            _type(field.annotation, field.metadata),
            _default(field, f"{section}{key}"),
            _prose(field.description),
        )
        for key, field in fields.items()
    ]
    return _markdown(("key", "value", "default", "meaning"), rows)


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


def _default(field: FieldInfo, anchor: str) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        tag = _tag(type(value))
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
