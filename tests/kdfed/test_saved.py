from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdfed.backbones import BackboneSettings, compute, split
from kdfed.data import PreparedData, prepare
from kdfed.errors import DataError, KdfedError
from kdfed.models import State, build_model, state_of
from kdfed.records import load_model, weights_sha256
from kdfed.saved import KEY, Card, Predictor, load, read_card, save
from kdfed.settings import DataSettings, ModelSettings
from kdfed.train import predict
from tests.kdfed.data.written import write
from tests.small_backbones import TINY
from tests.small_backbones import saved as saved_weights

DIGITS = DataSettings(source="digits", limit=300)
MLP = ModelSettings(name="mlp", options={"hidden": (8,)})


def saved(
    path: Path, settings: DataSettings = DIGITS, model: ModelSettings = MLP
) -> tuple[Path, PreparedData, State]:
    """Save a model with random weights, fitted to data."""
    data = prepare(settings)
    state = state_of(build_model(model, data.input_shape, data.classes, seed=1))
    file = path / "m.safetensors"
    save(file, state, Card.of(model, settings, data))
    return file, data, state


def stored(data: PreparedData) -> np.ndarray:
    return np.asarray(data.dataset.inputs[data.splits.test])


def rewritten(file: Path, card: Any, state: State | None = None) -> Path:
    """Write a model file again, with another card: a text, or keys that are replaced."""
    weights = load_model(file) if state is None else state
    if isinstance(card, dict):
        card = json.dumps({**json.loads(read_card(file).model_dump_json()), **card})
    save_file(weights, file, metadata={KEY: card} if card is not None else None)
    return file


# ----------------------------------------------------------------------------- use


def test_raw_inputs_give_to_the_bit_what_the_trained_model_gives_on_prepared_ones(tmp_path: Path) -> None:
    file, data, state = saved(tmp_path)
    model = build_model(MLP, data.input_shape, data.classes, seed=0)
    model.load_state_dict(state)
    examples = data.examples(data.splits.test)
    expected = predict(model, examples.inputs)
    used = load(file, device="cpu")
    assert torch.equal(used.outputs(stored(data)), expected)
    assert torch.equal(used.outputs(torch.tensor(stored(data))), expected)
    assert used.predict(stored(data)).tolist() == [str(digit) for digit in expected.argmax(1).tolist()]
    assert used.probabilities(stored(data)).sum(1) == pytest.approx(1)
    assert used.score(expected, data.dataset.labels[data.splits.test]) == data.task.score(
        expected, examples.labels
    )


def test_statistics_of_the_transfer_split_are_what_is_stored_to_the_bit(tmp_path: Path) -> None:
    """A table with ``normalise: auto``: the slow twin takes mean and std of the transfer rows itself."""
    draw = np.random.default_rng(0)
    columns = {"a": draw.normal(3, 2, 200), "b": draw.normal(size=200), "label": np.arange(200) % 2}
    path = write(tmp_path / "t.parquet", columns)
    file, data, _ = saved(tmp_path, DataSettings(source=f"parquet:{path}", classes=("no", "yes")))
    transfer = np.asarray(data.dataset.inputs[data.splits.transfer]).astype(np.float64)
    card = read_card(file)
    assert (card.mean, card.std) == (tuple(transfer.mean(0).tolist()), tuple(transfer.std(0).tolist()))
    assert card.classes == ("no", "yes")
    assert card.columns is not None
    assert (card.columns.inputs, card.columns.label) == (("a", "b"), "label")
    examples = data.examples(data.splits.test)
    used = load(file, device="cpu")
    assert torch.equal(used.outputs(stored(data)), predict(used.model, examples.inputs))


def test_a_regression_gives_numbers_in_the_units_of_its_labels(tmp_path: Path) -> None:
    settings = DataSettings(source="diabetes", task="regression")
    file, data, _ = saved(tmp_path, settings)
    used = load(file, device="cpu")
    outputs, labels = used.outputs(stored(data)), data.dataset.labels[data.splits.test]
    expected = outputs[:, 0].double().numpy() * data.label_std + data.label_mean
    assert used.predict(stored(data)).tolist() == expected.tolist()
    r2 = 1 - ((expected - labels) ** 2).sum() / ((labels - labels.mean(dtype=np.float64)) ** 2).sum()
    assert used.score(outputs, labels) == pytest.approx(r2, rel=1e-5)
    with pytest.raises(KdfedError, match="one of a regression; use predict"):
        used.probabilities(stored(data))


def test_what_a_file_says_changes_neither_its_weights_nor_their_hash(tmp_path: Path) -> None:
    file, _, state = saved(tmp_path)
    assert weights_sha256(load_model(file)) == weights_sha256(state)
    assert {key: values.tolist() for key, values in load_model(file).items()} == {
        key: values.tolist() for key, values in state.items()
    }


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    one, _, _ = saved(tmp_path)
    first = one.read_bytes()
    assert saved(tmp_path)[0].read_bytes() == first


def test_no_examples_give_no_outputs(tmp_path: Path) -> None:
    used = load(saved(tmp_path)[0])
    assert used.outputs(np.empty((0, 1, 8, 8), np.uint8)).shape == (0, 10)
    assert used.predict(np.empty((0, 1, 8, 8), np.uint8)).tolist() == []


def test_inputs_of_another_shape_or_kind_are_refused_with_both(tmp_path: Path) -> None:
    used = load(saved(tmp_path)[0])
    for inputs, got in (
        (np.zeros((2, 1, 9, 9), np.uint8), r"got uint8 \[2, 1, 9, 9\]"),
        (np.zeros((2, 1, 8, 8), np.float32), r"got float32 \[2, 1, 8, 8\]; they are normalised here"),
        (np.zeros((1, 8, 8), np.uint8), r"got uint8 \[1, 8, 8\]"),
        (np.uint8(3), r"got uint8 \[\]"),
    ):
        with pytest.raises(DataError, match=rf"uint8 images \[N, 1, 8, 8\], {got}"):
            used.outputs(inputs)


def test_features_that_are_not_finite_are_refused_with_their_place(tmp_path: Path) -> None:
    used = load(saved(tmp_path, DataSettings(source="diabetes", task="regression"))[0])
    inputs = np.zeros((3, 10))
    inputs[1, 4] = 1e300
    with pytest.raises(DataError, match="feature 4 of row 1 is not"):
        used.outputs(inputs)


def test_outputs_that_are_not_finite_are_refused_with_their_row(tmp_path: Path) -> None:
    file, data, state = saved(tmp_path)
    used = load(rewritten(file, {}, {key: values * 1e30 for key, values in state.items()}))
    with pytest.raises(DataError, match="the model gives infinity or NaN for row 0"):
        used.predict(stored(data))


# ----------------------------------------------------------------------------- files that cannot be used


def refused(file: Path, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        load(file, **options)
    return str(caught.value)


def test_an_old_file_without_metadata_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file, _, _ = saved(tmp_path)
    said = refused(rewritten(file, None))
    assert "expected a model that says how it is used" in said
    assert "kdfed.records.load_model" in said


def test_no_file_a_folder_and_a_damaged_file_are_one_error_each(tmp_path: Path) -> None:
    file, _, _ = saved(tmp_path)
    half = tmp_path / "half.safetensors"
    half.write_bytes(file.read_bytes()[:-100])
    for broken in (tmp_path / "gone.safetensors", tmp_path, half):
        assert "expected a readable .safetensors file, got" in refused(broken)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("", "the whole is wrong"),
        ("[" * 5000, "the whole is wrong"),
        ("[]", "the whole is wrong"),
        ({"format": 2}, "in format 1, format is wrong: Input should be 1; upgrade kdfed"),
        ({"mean": [0.5, 0.5]}, "expected a mean and a std for each channel or feature"),
        ({"std": [0.0]}, "std.0 is wrong: Input should be greater than 0"),
        ({"classes": []}, "expected classes in a classification"),
        ({"task": "regression"}, "expected classes in a classification, and there alone"),
        ({"input-shape": [1, -8, 8]}, "input-shape.1 is wrong"),
        ({"input-shape": [8, 8]}, "expected a mean and a std"),
        ({"input-shape": [1, 10**4, 10**4]}, "expected inputs of at most 67108864 numbers"),
        ({"model": {"name": "mlp", "options": {"hidden": [1] * 300_000}}}, "model.options.hidden"),
        ({"extra": 1}, "extra is wrong"),
        ({"model": {"name": 3}}, "model.name is wrong"),
    ],
)
def test_a_card_that_kdfed_did_not_write_is_refused_with_the_key(
    tmp_path: Path, card: Any, said: str
) -> None:
    assert said in refused(rewritten(saved(tmp_path)[0], card))


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path: Path) -> None:
    file, _, state = saved(tmp_path)
    key = next(iter(state))
    more = {key: torch.zeros(9, *state[key].shape[1:])}
    assert f"wrong shape of {key}: expected (8, 64), got (9, 64)" in refused(
        rewritten(file, {}, {**state, **more})
    )
    assert "not finite" in refused(
        rewritten(file, {}, {**state, key: torch.full_like(state[key], torch.nan)})
    )
    assert "unexpected ['extra']" in refused(rewritten(file, {}, {**state, "extra": torch.ones(1)}))


def test_options_that_ask_for_more_memory_than_the_file_holds_are_refused_before_it_is_taken(
    tmp_path: Path,
) -> None:
    file = rewritten(saved(tmp_path)[0], {"model": {"name": "mlp", "options": {"hidden": [10**8, 10**8]}}})
    assert "weights and buffers, the file holds 610" in refused(file)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "mlpp", "options": {}}, "unknown model 'mlpp'; did you mean 'mlp'?"),
        ({"name": "mlp", "options": {"hiden": [8]}}, "has no option 'hiden'; did you mean 'hidden'?"),
    ],
)
def test_a_model_that_is_not_here_is_refused_by_name(tmp_path: Path, model: Any, said: str) -> None:
    assert said in refused(rewritten(saved(tmp_path)[0], {"model": model}))


# ----------------------------------------------------------------------------- models that are code

CALLS: list[str] = []


def own(input_shape: tuple[int, ...], classes: int, width: int = 4) -> nn.Module:
    CALLS.append("own")
    features = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))


OWN = ModelSettings(name=f"{__name__}:own", options={"width": 6})


def test_a_model_of_ones_own_is_used_by_whoever_says_its_name(tmp_path: Path) -> None:
    file, data, _ = saved(tmp_path, model=OWN)
    used = load(file, model=OWN.name)
    assert isinstance(used, Predictor)
    assert used.outputs(stored(data)).shape == (30, 10)


def test_code_that_a_file_names_is_not_run_unless_its_reader_names_it_too(tmp_path: Path) -> None:
    file, _, _ = saved(tmp_path, model=OWN)
    CALLS.clear()
    assert "names somebody's code as its model" in refused(file)
    evil = tmp_path / "evil"
    command = {"name": "os:system", "options": {"command": f"touch {evil}"}}
    assert "'os:system'" in refused(rewritten(file, {"model": command}))
    assert f"expected a model '{OWN.name}'" in refused(file, model=OWN.name)
    assert not evil.exists()
    assert CALLS == []


def test_a_module_that_is_not_here_is_refused_with_where_it_is_looked_for(tmp_path: Path) -> None:
    file = rewritten(saved(tmp_path)[0], {"model": {"name": "nowhere_at_all:net", "options": {}}})
    said = refused(file, model="nowhere_at_all:net")
    assert "No module named 'nowhere_at_all'" in said
    assert "put its folder on PYTHONPATH" in said


# ----------------------------------------------------------------------------- on a backbone

TAIL = ModelSettings(backbone=TINY, trainable="last:1")


def test_a_file_holds_what_was_trained_and_the_hash_of_what_was_not(tmp_path: Path) -> None:
    file, data, state = saved(tmp_path, model=TAIL)
    cut = split(BackboneSettings.of(TAIL))
    assert set(load_model(file)) == set(state) == {f"{part}.{what}" for part in ("body.1.0", "head")
                                                   for what in ("weight", "bias")}  # fmt: skip
    assert read_card(file).backbone_sha256 == cut.weights_sha256
    tail = cut.tail(data.classes)
    tail.load_state_dict(state)
    used = load(file, model=TINY, device="cpu")
    assert torch.equal(used.outputs(stored(data)), predict(tail, compute(cut, stored(data))))


def test_a_file_from_before_batch_norm_was_a_key_is_read_as_what_it_was(tmp_path: Path) -> None:
    file, _, _ = saved(tmp_path, model=TAIL.model_copy(update={"batch_norm": "train"}))
    card = json.loads(read_card(file).model_dump_json())
    assert card["model"].pop("batch-norm") == "train"
    assert read_card(rewritten(file, json.dumps(card))).model.batch_norm == "train"


def test_a_backbone_with_other_weights_is_refused_with_both_hashes(tmp_path: Path) -> None:
    file = rewritten(saved(tmp_path, model=TAIL)[0], {"backbone-sha256": "f" * 64})
    assert "on which the model of" in (said := refused(file, model=TINY))
    assert "SHA-256 ffffffffffff, got others here" in said


def test_a_backbone_that_is_code_is_not_run_unless_its_reader_names_it_too(tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    command = {"backbone": "os:system", "options": {"command": f"touch {evil}"}}
    file = rewritten(saved(tmp_path, model=TAIL)[0], {"model": command})
    assert "names somebody's code as its model, 'os:system'" in refused(file)
    assert not evil.exists()


def test_a_file_of_weights_that_is_not_here_is_missed_by_name(tmp_path: Path) -> None:
    gone = {"backbone": TINY, "weights": f"file:{tmp_path / 'gone.safetensors'}"}
    file = rewritten(saved(tmp_path, model=TAIL)[0], {"model": gone})
    assert "gone.safetensors, which is no file" in refused(file, model=TINY)


def test_weights_that_are_elsewhere_by_now_are_named_and_must_be_the_same(tmp_path: Path) -> None:
    there = saved_weights(tmp_path)
    file, data, _ = saved(tmp_path, model=ModelSettings(backbone=TINY, weights=there))
    expected = load(file, model=TINY, device="cpu").outputs(stored(data))
    (tmp_path / "tiny.safetensors").rename(tmp_path / "moved.safetensors")
    assert "tiny.safetensors, which is no file" in refused(file, model=TINY)
    here = f"file:{tmp_path / 'moved.safetensors'}"
    used = load(file, model=TINY, weights=here, device="cpu")
    assert torch.equal(used.outputs(stored(data)), expected)
    assert "got others here" in refused(file, model=TINY, weights="installed")
    assert "expected installed, download or file:PATH" in refused(file, model=TINY, weights="moved")
    assert "for mlp" in refused(saved(tmp_path)[0], weights=here)
