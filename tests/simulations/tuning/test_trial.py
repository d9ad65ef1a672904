"""One trial: what it looks at, and what becomes of an arm that cannot go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdfed.data import PreparedData, prepare
from simulations.tuning import trial
from simulations.tuning.cache import trial_key
from simulations.tuning.trial import UntilFlat, run_trial, tuning_data, tuning_majority, tuning_settings
from tests.shelf_files import UNTRAINED

SHARE = 0.2


def test_tuning_examples_are_the_participants_and_nobody_elses(tiny):
    experiment = tiny()
    data = experiment.data
    mine, theirs = prepare(data).splits, prepare(tuning_settings(data, SHARE)).splits
    assert np.array_equal(mine.test, theirs.test)
    assert np.array_equal(mine.evaluation, theirs.evaluation)
    assert set(mine.validation) < set(theirs.validation)
    shared, examples = tuning_data(data, SHARE, experiment.arm("cold"))
    assert len(examples) == round(SHARE * 400)
    assert 0.1 <= tuning_majority(data, SHARE) < 0.2
    assert np.array_equal(shared.validation.inputs, prepare(data).examples(mine.validation).inputs)
    everybody = np.concatenate([theirs.train, theirs.transfer, mine.validation])
    assert not set(np.setdiff1d(theirs.validation, mine.validation)) & set(everybody)


@pytest.mark.parametrize("arm", ["cold", "consolidated"])
def test_neither_held_out_split_is_looked_at(tiny, monkeypatch, arm):
    """Inputs inverted, labels -1, and asking for one of them an error: the trial is what it was.

    Splits are cut by all labels, so they are cut before.
    """
    experiment = tiny()
    before = run_trial(experiment, arm, 100, 2, SHARE)
    prepared = prepare(tuning_settings(experiment.data, SHARE))
    held = np.concatenate([prepared.splits.test, prepared.splits.evaluation])
    given = PreparedData.examples

    def examples(self: PreparedData, indices: np.ndarray) -> object:
        assert not np.isin(indices, held).any(), "a held-out example was asked for"
        return given(self, indices)

    dataset = prepared.dataset
    inputs, labels = dataset.inputs.copy(), dataset.labels.copy()
    inputs[held], labels[held] = 255 - inputs[held], -1
    monkeypatch.setattr(PreparedData, "examples", examples)
    trial._tuning_data.cache_clear()
    monkeypatch.setattr("simulations.tuning.trial.split", lambda dataset, settings: prepare(settings).splits)
    object.__setattr__(prepared, "dataset", replace(dataset, inputs=inputs, labels=labels))
    try:
        again = run_trial(experiment, arm, 100, 2, SHARE)
    finally:
        object.__setattr__(prepared, "dataset", dataset)
        trial._tuning_data.cache_clear()
    assert before.curve is not None
    assert again.curve == before.curve


def test_a_curve_has_every_round_and_the_exchanges_so_far(tiny):
    curve = run_trial(tiny(), "consolidated", 100, 2, SHARE).curve
    assert curve is not None
    assert len(curve.accuracies) == 3
    assert curve.exchanges == (1, 2, 3)


def test_fewer_rounds_are_the_first_of_more(tiny):
    short, long = (run_trial(tiny(), "cold", 100, rounds, SHARE).curve for rounds in (2, 4))
    assert short is not None
    assert long is not None
    assert long.until(2) == short


def test_a_trial_can_end_where_its_curve_is_flat(tiny):
    flat = run_trial(tiny(), "cold", 100, 30, SHARE, UntilFlat(2, 0.9)).curve
    assert flat is not None
    assert len(flat.accuracies) == 8, (
        "rounds 0 to 4 make the first mean, of which half of round 7 is behind it"
    )


def test_training_that_diverges_is_a_result_with_its_reason(tiny):
    result = run_trial(tiny(**{"local.lr": 1000.0}), "cold", 100, 3, SHARE)
    assert result.curve is None
    assert result.reason.startswith("rounds: round ")
    assert result.lasting


def test_a_trial_with_other_teachers_in_the_same_files_is_another(tiny, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"first")
    experiment = tiny(only="consolidated", teachers={"from": [str(file)], **UNTRAINED})
    keys = []
    for content in (b"first", b"second", b"first"):
        file.write_bytes(content)
        keys.append(trial_key(experiment, "consolidated", 100, 2, SHARE, None))
    assert keys[0] == keys[2] != keys[1]
