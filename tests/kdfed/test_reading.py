from __future__ import annotations

import numpy as np
import pytest
import torch

from kdfed.backbones import BackboneSettings, FeatureCache, compute, split
from kdfed.data import prepare
from kdfed.errors import DataError
from kdfed.reading import cut_of, examples_for, inputs_for
from kdfed.settings import DataSettings, ModelSettings
from tests.small_backbones import TINY

DATA = prepare(DataSettings(source="digits", limit=100))
TAIL = ModelSettings(backbone=TINY, trainable="last:1")
SOME = np.array([5, 3, 90])


@pytest.mark.parametrize("model", [None, ModelSettings(name="mlp")])
def test_a_model_without_a_backbone_reads_normalised_inputs(model: ModelSettings | None) -> None:
    found, expected = examples_for(model, DATA, SOME), DATA.examples(SOME)
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(inputs_for(model, DATA.dataset.inputs[SOME], DATA.normalisation), expected.inputs)


def test_a_model_with_one_reads_what_is_frozen_of_it_makes_of_stored_images() -> None:
    found, stored = examples_for(TAIL, DATA, SOME), DATA.dataset.inputs[SOME]
    cut = split(BackboneSettings.of(TAIL))
    assert cut_of(TAIL) is cut
    assert torch.equal(found.inputs, compute(cut, stored))
    assert torch.equal(found.inputs, cut.frozen(torch.from_numpy(stored))), "the slow twin"
    assert torch.equal(found.labels, DATA.examples(SOME).labels)


def test_the_same_images_are_computed_once(fresh_features: FeatureCache) -> None:
    first, again = (examples_for(TAIL, DATA, SOME).inputs for _ in range(2))
    assert first is again
    assert fresh_features.runs == 1
    examples_for(TAIL, DATA, SOME[:2])
    assert fresh_features.runs == 2


def test_features_are_no_images() -> None:
    with pytest.raises(DataError, match="expected images of 1 or 3 channels as they are stored"):
        inputs_for(TAIL, np.zeros((3, 4), np.float32), DATA.normalisation)
