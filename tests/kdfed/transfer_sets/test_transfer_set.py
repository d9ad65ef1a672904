"""What all transfer sets have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.models import build_model
from kdfed.settings import DataSettings, ModelSettings
from kdfed.transfer_sets import (
    TRANSFER_SETS,
    DrawnSet,
    GeneratedSet,
    HeldSet,
    NoiseSet,
    ProxySet,
    PublicSet,
    TransferSet,
)
from kdfed.transfer_sets.generated import GeneratorSettings

PUBLIC = Examples(torch.zeros(30, 1, 8, 8), torch.arange(30))
STUDIES_ONLY = ("own", "teacher", "union")
DRAWN: dict[str, dict[str, Any]] = {
    "noise": {},
    "proxy": {"proxy": DataSettings(source="mnist5k", limit=100)},
    "generated": {"generator": GeneratorSettings(steps=2, width=2)},
}


def teacher() -> nn.Module:
    return build_model(ModelSettings(name="mlp"), (1, 8, 8), 10, 0)


def test_the_registry_names_each_set_as_its_settings_do() -> None:
    names = {name: kind.model_fields["transfer"].default for name, kind in TRANSFER_SETS.members.items()}
    assert names == {name: name for name in ("public", *DRAWN, *STUDIES_ONLY)}


def test_studies_alone_have_participants_examples() -> None:
    assert tuple(name for name, kind in TRANSFER_SETS.members.items() if kind.in_studies_only) == STUDIES_ONLY


@pytest.mark.parametrize("images", [None, 12])
@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_set_has_the_shape_and_size_that_is_asked_for_and_repeats_with_the_seed(
    name: str, images: int | None
) -> None:
    chosen = TRANSFER_SETS.find(name)(images=images, **DRAWN[name])
    examples = chosen.examples(PUBLIC, [teacher()], 5)
    assert examples.inputs.shape == (images or 30, 1, 8, 8)
    assert examples.inputs.dtype == torch.float32
    assert torch.equal(chosen.examples(PUBLIC, [teacher()], 5).inputs, examples.inputs)
    assert not torch.equal(chosen.examples(PUBLIC, [teacher()], 6).inputs, examples.inputs)


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_set_has_no_labels(name: str) -> None:
    kind = TRANSFER_SETS.find(name)
    assert not kind.labelled
    assert not kind(images=20, **DRAWN[name]).examples(PUBLIC, [teacher()], 1).labels.any()


@pytest.mark.parametrize(
    ("kind", "upload", "labels", "why"),
    [
        (PublicSet, "weights", True, None),
        (PublicSet, "logits", True, None),
        (NoiseSet, "weights", False, None),
        (NoiseSet, "weights", True, "only the public transfer set has labels"),
        (NoiseSet, "logits", False, "uploaded logits belong to the public transfer set"),
        (GeneratedSet, "logits", False, "uploaded logits belong to the public transfer set"),
        (ProxySet, "weights", True, "only the public transfer set has labels"),
    ],
)
def test_labels_and_uploaded_logits_belong_to_the_public_set(
    kind: type[TransferSet], upload: str, labels: bool, why: str | None
) -> None:
    refused = kind.refuses(upload, labels)
    assert (refused is None) == (why is None)
    assert why is None or (refused is not None and why in refused)


def test_a_generator_without_teachers_and_a_proxy_without_a_source_are_refused() -> None:
    with pytest.raises(KdfedError, match="at least one teacher"):
        GeneratedSet().examples(PUBLIC, [], 0)
    with pytest.raises(ValueError, match=r"(?s)proxy.*Field required"):
        ProxySet()


@pytest.mark.parametrize("name", STUDIES_ONLY)
def test_the_server_of_a_federated_run_has_no_participants_examples(name: str) -> None:
    with pytest.raises(KdfedError, match=rf"transfer '{name}' holds participants' examples.*use another, or"):
        TRANSFER_SETS.find(name)().examples(PUBLIC, [], 0)


def test_an_unknown_transfer_set_is_refused_and_never_generated() -> None:
    with pytest.raises(KdfedError, match=r"expected one of public, .*, got 'own-kind'"):
        TRANSFER_SETS.find("own-kind")


def test_a_set_of_ones_own_that_does_not_say_how_it_is_drawn_is_none() -> None:
    class Undrawn(DrawnSet):
        transfer: str = "undrawn"

    class Unheld(HeldSet):
        transfer: str = "unheld"

    for kind, owed in ((Undrawn, "draw"), (Unheld, "indices")):
        with pytest.raises(TypeError, match=rf"abstract method '?{owed}"):
            kind()


def test_a_set_of_ones_own_is_drawn_as_it_says() -> None:
    class Constant(DrawnSet):
        transfer: str = "constant"
        level: float = 2.0

        def draw(
            self, input_shape: tuple[int, ...], count: int, teachers: Sequence[nn.Module], seed: int
        ) -> torch.Tensor:
            return torch.full((count, *input_shape), self.level)

    examples = Constant(images=3).examples(PUBLIC, [], 0)
    assert torch.equal(examples.inputs, torch.full((3, 1, 8, 8), 2.0))
    assert examples.labels.tolist() == [0, 0, 0]
