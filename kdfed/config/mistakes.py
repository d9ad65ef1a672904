"""Putting pydantic's problems into words: key, what was expected, what arrived, a near match."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from kdfed.choosing import choices, keys_of, own_keys
from kdfed.errors import Mistake, expected_one_of, near, shown
from kdfed.family import Families
from kdfed.settings import kebab


def _raw_path(location: Sequence[int | str], values: Any) -> list[int | str]:
    """Return the part of a pydantic location that exists in the file: no union tags, no types."""
    path: list[int | str] = []
    holder, above = values, None
    for part in location:
        if not isinstance(holder, dict | list) and isinstance(above, dict) and part in above:
            path.pop()  # of what is chosen by name, the keys stand beside the name
            holder = above
        inside = isinstance(holder, dict) and part in holder
        if inside or (isinstance(holder, list) and isinstance(part, int) and part < len(holder)):
            path.append(part)
            holder, above = holder[part], holder
    return path


def _holder_path(path: list[int | str], values: Any) -> list[int | str]:
    """Return the path of the section in which the keys of what is named at a path stand; else the path."""
    holder = values
    for part in path:
        holder = holder[part]
    return path[:-1] if isinstance(holder, str) else path


def related(key: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is inside the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _harmless(families: Families, section: str) -> dict[str, Any]:
    """Return a thing that needs no keys."""
    family = families.sections[section]
    for name, kind in family.members.items():
        if not any(field.is_required() for field in kind.model_fields.values()):
            return {family.tag: name}
    return {}


def remove_all(values: dict[str, Any], problems: Sequence[Mapping[str, Any]], families: Families) -> None:
    """Remove or replace what is wrong, so that the mistakes it hides show, and none that it alone makes."""
    for path, missing in [(_raw_path(problem["loc"], values), _missing(problem)) for problem in problems]:
        own = len(path) == 1 and path[0] in families.sections
        if missing and (not path or own):
            _put(values, [*path, missing], {"arms": {"arm": {}}, "name": "unnamed"}.get(missing, 1))
            continue
        while path and isinstance(path[-1], int):
            path.pop()
        if path == ["arms"]:
            values["arms"] = {"arm": {}}
        elif len(path) == 2 and path[0] == "arms":
            _put(values, path, {})
        elif path and path[0] in families.sections and len(path) == 1:
            section = str(path[0])
            family, old = families.sections[section], values.get(section)
            shared = {kebab(name) for name in family.base.model_fields}
            belongs = {kebab(name) for one in family.members.values() for name in one.model_fields}
            # What belongs to no variant is a mistake of its own, and still to be found.
            kept = (
                {k: v for k, v in old.items() if k in shared or k not in belongs}
                if isinstance(old, dict)
                else {}
            )
            values[section] = {**kept, **_harmless(families, section)}
        elif path:
            _put(values, path, None)
    if values.get("arms") == {"arm": {}} and values.get("baseline") != "arm":
        values.pop("baseline", None)  # the arms were invented here


def _missing(problem: Mapping[str, Any]) -> str:
    return str(problem["loc"][-1]) if problem["type"] == "missing" else ""


def _put(values: Any, path: Sequence[int | str], value: Any) -> None:
    """Set, or with None remove, what is at a path; nothing where something on the way is gone already."""
    for part in path[:-1]:
        try:
            values = values[part]
        except (KeyError, IndexError):
            return
    if value is None:
        values.pop(path[-1], None)
    else:
        values[path[-1]] = value


def _models_at(location: Sequence[int | str], root: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the settings classes that the last key of a location can belong to."""
    models: list[type[BaseModel]] = [root]
    for part in location[:-1]:
        chosen = [model for model in models if str(part) in _tags(model)]
        if chosen and chosen != models:  # a name may be that of a key, too
            models = chosen
            continue
        fields = [
            field for model in models for name, field in model.model_fields.items() if kebab(name) == part
        ]
        if fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
    return models


def _tags(model: type[BaseModel]) -> Iterator[str]:
    """Yield the names by which a thing is chosen."""
    for name in ("kind", "mode", "strategy", "method", "transfer", "ensemble"):
        if name in model.model_fields:
            yield from (tag for tag in get_args(model.model_fields[name].annotation) if isinstance(tag, str))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a word",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "tuple_type": "a list",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
}


_GONE = {
    "rounds.max": "is now rounds.horizon: every arm runs so many rounds",
    "rounds.rule": "is gone: a hit is the first round that reaches the target and whose mean with the next "
    "two does; remove it",
    "rounds.evaluate-on": "is gone: curves and hits are read on the split data.splits.evaluation; remove it",
}
"""Keys of earlier releases, and what became of them."""


def describe_all(problems: Sequence[Any], values: Any, root: type[BaseModel]) -> list[Mistake]:
    """Put pydantic's problems into words; the members of a union make one mistake together.

    Where a key inside a value is wrong, nothing is said of the value itself.
    """
    grouped: dict[tuple[str, str], list[Any]] = {}
    for problem in problems:
        path = _raw_path(problem["loc"], values)
        if problem["type"] == "missing":
            path = [*_holder_path(path, values), problem["loc"][-1]]
        if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tag = problem["ctx"]["discriminator"].strip("'")
            path += [tag] if path[-1:] != [tag] else []
        kind = "value" if problem["type"] in {*_EXPECTED, "string_pattern_mismatch"} else problem["type"]
        grouped.setdefault((".".join(map(str, path)), kind), []).append(problem)
    keys = {key for key, _ in grouped}
    return [
        Mistake(key, _describe(group, values, root))
        for (key, _), group in grouped.items()
        if not any(other != key and other.startswith(f"{key}.") for other in keys)
    ]


def _describe(group: Sequence[Any], values: Any, root: type[BaseModel]) -> str:
    problem = group[0]
    kind, location, got = problem["type"], list(problem["loc"]), problem.get("input")
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        models = _models_at(location, root)
        holder = _holder(location, values)
        known = {key for model in models for key in keys_of(model, holder)}
        gone = _GONE.get(".".join(map(str, location)))
        return (
            gone or _without_effect(location[-1], holder, models) or f"unknown key{near(location[-1], known)}"
        )
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", context["expected_tags"])
        tag = context["discriminator"].strip("'")
        got = problem["input"].get(tag) if isinstance(problem.get("input"), dict) else context["tag"]
        return expected_one_of(tags, got)
    if kind == "union_tag_not_found":
        return f"is required: expected one of {', '.join(_tags_at(location, root))}"
    if kind == "missing":
        return f"is required{_meaning(location, root)}"
    if kind == "value_error":
        return f"{context['error']}, got {shown(got)}"
    if "string_pattern_mismatch" in {p["type"] for p in group}:
        return f"got {shown(got)}, which is not valid{_meaning(location, root)}"
    if kind in _EXPECTED:
        # A number is no misspelt word; a word can be meant for each of several kinds of value.
        unfit = () if isinstance(got, str) else ("_type", "literal_error")
        fitting = [p for p in group if not p["type"].endswith(unfit)] or group
        wanted = list(dict.fromkeys(_EXPECTED[p["type"]].format(**p.get("ctx", {})) for p in fitting))
        hint = ""
        if isinstance(got, str):
            choices = [word for text in wanted for word in re.findall(r"'([^']*)'", text)]
            close = difflib.get_close_matches(got, choices, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"expected {' or '.join(wanted)}, got {shown(got)}{hint}"
    return f"{problem['msg']}, got {shown(got)}"


def _holder(location: Sequence[int | str], values: Any) -> Mapping[str, Any]:
    """Return the mapping in which the last key of a location stands."""
    for part in _raw_path(location, values)[:-1]:
        values = values[part]
    return values if isinstance(values, Mapping) else {}


def _without_effect(
    key: int | str, holder: Mapping[str, Any], models: Sequence[type[BaseModel]]
) -> str | None:
    """Say that a key belongs to something that was not chosen; None where it belongs to nothing."""
    for model in models:
        for field, kinds in choices(model).items():
            owners = [name for name, kind in kinds.items() if key in own_keys(kind, field)]
            if owners:
                default = getattr(model.model_fields[field].default, field, None)
                got, others = shown(holder.get(field, default)), " or ".join(owners)
                return f"has no effect with {field} {got}; set {field}: {others} or remove it"
    return None


def _tags_at(location: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    return [tag for model in _models_at([*location, ""], root) for tag in _tags(model)]


def _meaning(location: Sequence[int | str], root: type[BaseModel]) -> str:
    """Return the sentence under the field that a location names."""
    for length in range(len(location), 0, -1):
        for model in _models_at(location[:length], root):
            for name, field in model.model_fields.items():
                if kebab(name) == location[length - 1]:
                    said = " ".join((field.description or "").replace("``", "").split())
                    return f". Expected: {said}" if said else ""
    return ""
