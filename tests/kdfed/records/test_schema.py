"""``docs/records.md`` documents every key of ``summary.json``, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest

from kdfed.closed_form import Refit
from kdfed.records import Outcome, RoundRecord, Summary, summarise
from kdfed.records.schema import (
    Censored,
    ComparisonEntry,
    ConsolidationEntry,
    ControlEntry,
    CumulativeCosts,
    FailureEntry,
    HorizonEntry,
    PartitionEntry,
    Ratio,
    RefitEntry,
    RunEntry,
    Saved,
    StrictModel,
    SunkEntry,
)
from simulations.experiments import build_experiment

PAGE = Path(__file__).parents[3] / "docs" / "records.md"


def keys(part: type[StrictModel]) -> Iterator[str]:
    """Yield the keys of an entry, those of objects in a comparison and of the horizon dotted."""
    for name, field in ((field.alias or name, field) for name, field in part.model_fields.items()):
        inner = {Saved, Ratio, Censored, HorizonEntry} & {field.annotation, *get_args(field.annotation)}
        yield from (f"{name}.{key}" for kind in inner for key in kind.model_fields) if inner else (name,)


def documented() -> list[list[str]]:
    """Return the keys in the first column of each table of the page's section; no object beside its keys."""
    section = PAGE.read_text(encoding="utf-8").partition("### `summary.json`\n")[2].partition("\n## ")[0]
    tables = re.findall(r"^\| key \| meaning \|\n\| --- \| --- \|\n((?:\|.*\n)+)", section, re.MULTILINE)
    found = [
        [key for row in table.splitlines() for key in re.findall(r"`([^`]+)`", row.split("|")[1])]
        for table in tables
    ]
    return [[key for key in table if not any(k.startswith(f"{key}.") for k in table)] for table in found]


def test_the_page_on_records_has_the_keys_of_the_classes() -> None:
    parts = (
        Summary,
        RunEntry,
        CumulativeCosts,
        ComparisonEntry,
        ControlEntry,
        PartitionEntry,
        FailureEntry,
        ConsolidationEntry,
        RefitEntry,
        SunkEntry,
    )
    assert [sorted(table) for table in documented()] == [sorted(keys(part)) for part in parts]


@pytest.mark.parametrize("part", StrictModel.__subclasses__())
def test_every_key_says_what_it_means(part: type[StrictModel]) -> None:
    assert [name for name, field in part.model_fields.items() if not field.description] == []


def test_what_is_written_is_what_the_classes_read() -> None:
    """A consolidation keeps what its method tells; everything else has the keys of its class."""
    experiment = build_experiment({"name": "x", "targets": [0.5], "arms": {"cold": {}, "warm": {}}})
    records = [
        RoundRecord(arm, 0, r, r, "rounds" if r else "start", 0.6, None, 1.0, 0, 0, 0, 0, 0, (), 0.0)
        for arm in ("cold", "warm")
        for r in range(4)
    ]
    took: dict[str, Any] = {"method": "vanilla", "steps": 3, "trials": []}
    refit = Refit(2, "ridge", 5, 280, 3.16, "penalty: gcv")
    outcome = Outcome("warm", 0, "horizon", "", took, refits=[refit])
    summary = summarise(experiment, "ray", records, [outcome])
    assert summary["consolidations"] == [{"arm": "warm", "seed": 0, **took}]
    assert summary["refits"] == [{"arm": "warm", "seed": 0, **asdict(refit)}]
    assert Summary.model_validate(summary).model_dump(by_alias=True) == summary
