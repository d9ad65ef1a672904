from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdfed.config import experiment_type
from kdfed.errors import ConfigError
from kdfed.settings import ModelSettings
from simulations.experiments import FAMILIES, load_experiment


def bounded(annotation: Any, metadata: list[Any]) -> bool:
    """Tell whether every number that an annotation lets in has an upper bound."""
    found = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    if annotation in (int, float):
        return any(isinstance(item, annotated_types.Le | annotated_types.Lt) for item in found)
    if hasattr(annotation, "__metadata__"):
        return bounded(annotation.__origin__, [*found, *annotation.__metadata__])
    return all(bounded(argument, []) for argument in get_args(annotation) if argument is not Ellipsis)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes that an annotation holds, and all that they hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for argument in get_args(annotation):
        yield from models_in(argument)


MODELS = list(dict.fromkeys(models_in(experiment_type(FAMILIES))))


def test_the_schema_holds_every_thing_that_can_be_chosen() -> None:
    for family in FAMILIES:
        for kind in family.members.values():
            assert any(issubclass(model, kind) for model in MODELS), kind


def test_every_field_has_a_meaning() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in MODELS
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_every_number_of_an_experiment_has_an_upper_bound() -> None:
    assert len(MODELS) > 40
    free = [
        f"{model.__name__}.{name}"
        for model in MODELS
        for name, field in model.model_fields.items()
        if not bounded(field.annotation, field.metadata)
    ]
    # arguments of somebody's own code: it says itself what it takes
    assert sorted(set(free)) == ["ListenerSettings.options", "ModelSettings.options"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("consolidation.temperature=1e300", "expected a number of at most 10000.0, got 1e+300"),
        ("consolidation.temperature=1e-300", "expected a number of at least 0.001"),
        ("local.lr=1e300", "at most 1000"),
        ("local.weight-decay=1e308", "at most 1000"),
        ("local={mode: proximal, mu: 1e308}", "at most 1000000.0, got 1e+308"),
        ("local={mode: ntd, beta: 1e308}", "at most 1000000.0"),
        ("local.epochs=1000000000000", "at most 1000000, got 1000000000000"),
        ("server={strategy: fedadam, tau: 1e-300}", "at least 1e-12"),
        ("server={strategy: ds_fl, temperature: 1e-300}", "at least 0.001"),
        ("server.deadlines.train=1e300", "at most 10000000.0"),
        ("data.normalise={mean: [1e300], std: [1]}", "at most 1e+30"),
        ("partition.participants=1000000000000", "at most 1000000000"),
        ("teachers.label-counts.epsilon=1e-300", "at least 0.001"),
    ],
)
def test_numbers_that_would_overflow_are_refused(tmp_path: Path, assignment: str, message: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("name: x\npartition: {kind: uniform}\narms: {cold: {}, warm: {start: consolidated}}\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, [assignment])
    assert len(caught.value.mistakes) == 1
    assert message in caught.value.mistakes[0].message


def test_models_that_differ_in_batch_norm_alone_read_the_same() -> None:
    models = [
        ModelSettings(backbone="b", trainable="all", batch_norm=how) for how in (None, "frozen", "train")
    ]
    assert len({model.reads for model in models}) == 1
    assert len({model.title for model in models}) == 3
    assert models[0].reads != ModelSettings(backbone="b", trainable="last:1").reads
