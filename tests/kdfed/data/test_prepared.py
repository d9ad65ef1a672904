from __future__ import annotations

import numpy as np
import pytest
import torch

from kdfed.data import Normalisation, prepare
from kdfed.errors import DataError
from kdfed.settings import DataSettings, NormaliseSettings

FEATURES = "synthetic:examples=400,classes=4,shape=5"
IMAGES = "synthetic:examples=400,classes=4,shape=3x6x6"


def test_an_image_is_scaled_then_normalised() -> None:
    """(51 / 255 - 0.1) / 0.5 = (0.2 - 0.1) / 0.5 = 0.2, and (255 / 255 - 0.5) / 0.25 = 2."""
    image = np.array([51, 255], np.uint8).reshape(1, 2, 1, 1)
    result = Normalisation((0.1, 0.5), (0.5, 0.25)).apply(image)
    torch.testing.assert_close(result.flatten(), torch.tensor([0.2, 2.0]))
    assert result.dtype == torch.float32
    assert image[0, 0, 0, 0] == 51


def test_normalisation_agrees_with_a_loop() -> None:
    data = prepare(
        DataSettings(source=IMAGES, normalise=NormaliseSettings(mean=(0.1, 0.2, 0.3), std=(1, 2, 3)))
    )
    rows = data.splits.validation
    twin = np.empty((len(rows), 3, 6, 6))
    for place, row in enumerate(rows):
        for channel in range(3):
            pixels = data.dataset.inputs[row][channel] / 255
            twin[place, channel] = (pixels - (0.1, 0.2, 0.3)[channel]) / (1, 2, 3)[channel]
    np.testing.assert_allclose(data.examples(rows).inputs.numpy(), twin, atol=1e-6)


def test_known_sources_have_their_constants_and_other_images_a_half() -> None:
    assert prepare(DataSettings(source="digits")).normalisation == Normalisation((0.3053,), (0.3759,))
    assert prepare(DataSettings(source=IMAGES)).normalisation == Normalisation((0.5,) * 3, (0.5,) * 3)


def test_the_constants_are_those_of_the_images() -> None:
    for source in ("digits", "mnist5k"):
        data = prepare(DataSettings(source=source))
        inputs = data.examples(np.arange(len(data.dataset))).inputs
        assert abs(float(inputs.mean())) < 0.01
        assert abs(float(inputs.std()) - 1) < 0.01


def test_features_get_the_statistics_of_the_transfer_split_alone() -> None:
    data = prepare(DataSettings(source=FEATURES))
    inputs = data.examples(data.splits.transfer).inputs
    torch.testing.assert_close(inputs.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(5), atol=1e-5, rtol=0)


def constant_feature(settings: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    return np.stack([np.full(40, 7.0), np.arange(40.0)], axis=1), np.arange(40) % 2, ("a", "b")


def test_a_constant_feature_becomes_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("constant_source")
    module.make = constant_feature  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "constant_source", module)
    data = prepare(DataSettings(source="constant_source:make"))
    assert torch.count_nonzero(data.examples(data.splits.train).inputs[:, 0]) == 0


def test_examples_keep_the_order_of_their_indices() -> None:
    data = prepare(DataSettings(source="digits"))
    examples = data.examples(np.array([5, 2, 9]))
    assert examples.labels.tolist() == data.dataset.labels[[5, 2, 9]].tolist()
    assert examples.labels.dtype == torch.int64
    assert len(examples) == 3
    assert examples.inputs.shape == (3, *data.input_shape) == (3, 1, 8, 8)
    assert data.classes == 10
    assert examples.to("cpu").labels.tolist() == examples.labels.tolist()


def test_the_same_settings_are_prepared_once_a_process() -> None:
    text = DataSettings(source="digits", limit=100).model_dump_json()
    one, two = (prepare(DataSettings.model_validate_json(text)) for _ in range(2))
    assert one is two


def test_a_wrong_number_of_means_is_refused() -> None:
    settings = DataSettings(source=IMAGES, normalise=NormaliseSettings(mean=(0.5,), std=(0.5,)))
    with pytest.raises(DataError, match="each of the 3 channels, got 1") as caught:
        prepare(settings)
    assert caught.value.key == "data.normalise"


# ----------------------------------------------------------------------------- regression


def test_labels_of_a_regression_get_the_statistics_of_the_transfer_split_alone() -> None:
    data = prepare(DataSettings(task="regression", source="diabetes"))
    labels = data.examples(data.splits.transfer).labels
    assert labels.dtype == torch.float32
    assert float(labels.mean()) == pytest.approx(0, abs=1e-6)
    assert float(labels.std(correction=0)) == pytest.approx(1, abs=1e-6)
    one = data.splits.train[:1]
    stored = float(data.dataset.labels[one][0])
    wanted = (stored - data.label_mean) / data.label_std
    assert float(data.examples(one).labels[0]) == pytest.approx(wanted, rel=1e-6)
    assert (data.classes, data.input_shape) == (1, (10,))


def test_a_regression_is_dealt_by_ten_equally_filled_bins_of_the_train_split() -> None:
    data = prepare(DataSettings(task="regression", source="diabetes"))
    counts = np.bincount(data.strata[data.splits.train], minlength=10)
    assert len(data.strata_names) == len(counts) == 10
    assert np.ptp(counts) <= 3
    for stratum in range(9):
        low = data.dataset.labels[data.strata == stratum].max()
        assert low < data.dataset.labels[data.strata == stratum + 1].min()
    assert data.strata_names[0].startswith("< ")
    assert data.strata_names[1].startswith(data.strata_names[0].removeprefix("< "))


def test_classes_are_their_own_strata() -> None:
    data = prepare(DataSettings(source="digits"))
    assert data.strata is data.dataset.labels
    assert data.strata_names == data.dataset.class_names


def same_numbers(settings: DataSettings) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    return np.random.default_rng(0).normal(size=(40, 2)), np.full(40, 2.5), ()


def test_labels_that_are_all_the_same_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("constant_labels")
    module.make = same_numbers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "constant_labels", module)
    with pytest.raises(DataError, match=r"different labels in every split.*are 2.5"):
        prepare(DataSettings(task="regression", source="constant_labels:make"))
