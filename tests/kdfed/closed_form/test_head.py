from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdfed.closed_form import HEADS, ClassMeans, ClosedFormHead, Lda, Linear, Ridge
from kdfed.closed_form.projections import projection_matrix
from kdfed.data import Examples
from kdfed.task import CLASSIFICATION, REGRESSION
from tests.kdfed.closed_form.examples import CLASSES, numbers_for, solved, some_examples, summed


def test_the_registry_names_each_head_as_its_settings_do() -> None:
    assert {name: kind().head for name, kind in HEADS.members.items()} == {name: name for name in HEADS}
    assert list(HEADS) == ["ridge", "lda", "class-means"]


def test_only_ridge_can_learn_numbers() -> None:
    assert [name for name, kind in HEADS.members.items() if not kind.needs_classes] == ["ridge"]


def test_a_head_is_read_from_its_keys() -> None:
    head = HEADS.parse(
        '{"head": "ridge", "penalty": 3.5, "dims": 128, "projection": "pool", "upload": "float16"}'
    )
    assert isinstance(head, Ridge)
    assert (head.penalty, head.dims, head.projection, head.upload) == (3.5, 128, "pool", "float16")
    assert HEADS.parse("{}") == Ridge()


@pytest.mark.parametrize("name", list(HEADS))
def test_the_layer_is_the_solution_in_float32(name: str) -> None:
    head = HEADS.find(name)()
    features, labels = some_examples()
    layer = head.solve(summed(head, features, labels), features.shape[1], 7)
    exact = solved(head, features, labels)
    assert layer.weight_CD.dtype == layer.bias_C.dtype == torch.float32
    assert exact.weight_CD.dtype == torch.float64
    assert torch.equal(layer.weight_CD, exact.weight_CD.float())
    module = torch.nn.Linear(features.shape[1], CLASSES)
    module.load_state_dict({"weight": layer.weight_CD, "bias": layer.bias_C})
    torch.testing.assert_close(module(features).double(), layer(features), rtol=1e-4, atol=1e-4)


def test_numbers_get_one_output() -> None:
    features, labels = some_examples()[0], numbers_for(some_examples()[0])
    head = Ridge(calibrate="sums")
    layer = head.solve(summed(head, features, labels, task=REGRESSION, classes=1), features.shape[1], 7)
    assert layer.weight_CD.shape == (1, features.shape[1])
    assert layer.bias_C.shape == (1,)
    assert REGRESSION.score(layer(features), labels) > 0.8


# ----------------------------------------------------------------------------- fewer features


@pytest.mark.parametrize("head", [Ridge(dims=8), Lda(dims=8), ClassMeans(dims=8)], ids=lambda head: head.head)
@pytest.mark.parametrize("projection", ["random", "pool"])
def test_a_head_on_fewer_features_is_one_on_all(head: ClosedFormHead, projection: str) -> None:
    """Fitted by hand on P f, it answers the same as the layer that comes out."""
    head = head.model_copy(update={"projection": projection})
    features, labels = some_examples(dims=30)
    layer = head.solve(summed(head, features, labels), 30, 7)
    assert layer.weight_CD.shape == (CLASSES, 30)
    fewer = features.double() @ projection_matrix(30, 8, projection, 7).T  # type: ignore[arg-type]
    by_hand = solved(head.model_copy(update={"dims": None}), fewer, labels)
    torch.testing.assert_close(layer(features), by_hand(fewer), rtol=1e-3, atol=1e-3)
    assert CLASSIFICATION.score(layer(features), labels) > 0.8


def test_the_bound_counts_only_where_there_are_more_features() -> None:
    features, labels = some_examples()
    for dims in (6, 7):
        arrays = Ridge(dims=dims).statistics(features, labels, CLASSES, CLASSIFICATION, 1)
        plain = Ridge().statistics(features, labels, CLASSES, CLASSIFICATION, 2)
        assert all(np.array_equal(arrays[key], plain[key]) for key in plain)
    assert Ridge(dims=5).spec(6, CLASSES, CLASSIFICATION)["gram"] == ((15,), "float32")


def test_another_seed_projects_otherwise() -> None:
    features, labels = some_examples()
    one, two = (Ridge(dims=3).statistics(features, labels, CLASSES, CLASSIFICATION, seed) for seed in (1, 2))
    assert not np.array_equal(one["gram"], two["gram"])


def test_validation_examples_are_projected_like_the_others() -> None:
    """A penalty that is chosen by them is that which serves the layer that comes out."""
    features, labels = some_examples(40, dims=30)
    unseen = Examples(*some_examples(300, dims=30, seed=1))
    head = Ridge(dims=8, penalty="validation", calibrate="validation")
    sums = summed(head, features, labels)
    layer = head.solve(sums, 30, 7, unseen)
    best = max(
        CLASSIFICATION.score(Ridge(dims=8, penalty=10.0**k).solve(sums, 30, 7)(unseen.inputs), unseen.labels)
        for k in range(-5, 6)
    )
    assert CLASSIFICATION.score(layer(unseen.inputs), unseen.labels) >= best > 0.8


def test_validation_labels_that_are_not_counted_are_not_looked_at() -> None:
    features, labels = some_examples()
    poisoned = Examples(features, (labels + 1) % CLASSES)
    for name in HEADS:
        head = HEADS.find(name)()
        sums = summed(head, features, labels)
        with_labels, without = head.solve(sums, 6, 7, poisoned), head.solve(sums, 6, 7)
        assert torch.equal(with_labels.weight_CD, without.weight_CD)
        assert head.server_labels() == frozenset()


def arm(task: str) -> Any:
    return SimpleNamespace(data=SimpleNamespace(task=task))


def test_keys_without_an_effect_are_refused() -> None:
    assert list(Ridge(dims=8, projection="pool", calibrate="sums").refusals(arm("classification"))) == []
    (projection,) = Ridge(projection="pool").refusals(arm("classification"))
    assert (projection.key, projection.message[:27]) == (".projection", "has no effect without dims;")
    (calibrate,) = Ridge(calibrate="sums").refusals(arm("regression"))
    assert calibrate.key == ".calibrate"
    assert "'regression', which has no softmax, got 'sums'" in calibrate.message
    assert list(Ridge().refusals(arm("regression"))) == []


def test_a_whole_number_is_a_penalty_too() -> None:
    features, labels = some_examples()
    assert solved(Ridge(penalty=3), features, labels).chosen == 3.0


def test_scaled_is_the_same_head_with_other_logits() -> None:
    linear = Linear(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), 5.0, 6.0).scaled(2.0)
    assert linear.weight_CD.tolist() == [[2, 4]]
    assert linear.bias_C.tolist() == [6]
    assert (linear.chosen, linear.fitted, linear.scale) == (5.0, 6.0, 2.0)
    assert linear.scaled(1.5).scale == 3.0
