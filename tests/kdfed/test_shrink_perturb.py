"""Shrink and perturb: a worked number, what changes nothing, and a student that a distillation leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdfed.consolidate import consolidate
from kdfed.data import Examples
from kdfed.distill import VanillaConsolidation
from kdfed.errors import ConfigError, KdfedError
from kdfed.models import State, build_model, state_of
from kdfed.settings import ModelSettings
from kdfed.shrink_perturb import shrunk
from tests.setups import CPU

NORMED = ModelSettings(name="cnn", options={"width": 4, "norm": "batch"})


def some_model(seed: int) -> nn.Module:
    return build_model(NORMED, (1, 8, 8), 3, seed)


def distilled(fresh: State | None = None, **changes: float) -> State:
    draw = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(24, 1, 8, 8, generator=draw), torch.randint(3, (24,), generator=draw))
    student = some_model(1)
    settings = VanillaConsolidation(**{"epochs": 2, "batch_size": 8, **changes})
    consolidate(student, [some_model(2)], examples, examples, settings, 0, setup=CPU, fresh=fresh)
    return state_of(student)


def test_a_worked_number_and_what_is_no_weight_stays() -> None:
    """0.5 x 4 + 0.1 x 10 = 3; a statistic and a counter are left alone."""
    state = {"w": torch.tensor([4.0]), "var": torch.tensor([4.0]), "n": torch.tensor(4)}
    fresh = {"w": torch.tensor([10.0]), "var": torch.tensor([10.0]), "n": torch.tensor(10)}
    found = shrunk(state, fresh, ["var"], 0.5, 0.1)
    assert {key: float(value) for key, value in found.items()} == {"w": 3.0, "var": 4.0, "n": 4.0}
    assert found["n"].dtype == torch.int64
    assert state["w"].item() == 4.0


def test_a_distilled_student_is_shrunk_and_perturbed_but_for_its_statistics() -> None:
    fresh, plain = state_of(some_model(3)), distilled()
    found = distilled(fresh, shrink=0.5, perturb=0.25)
    for key, value in found.items():
        is_weight = "running" not in key and "num_batches" not in key
        wanted = 0.5 * plain[key] + 0.25 * fresh[key] if is_weight else plain[key]
        assert torch.equal(value, wanted), key


def test_neither_is_the_student_itself_and_all_of_the_other_a_fresh_start() -> None:
    plain, fresh = distilled(), state_of(some_model(3))
    same, new = distilled(fresh, shrink=1.0, perturb=0.0), distilled(fresh, shrink=0.0, perturb=1.0)
    assert all(torch.equal(same[key], plain[key]) for key in plain)
    assert all(torch.equal(new[key], fresh[key]) for key in fresh if "weight" in key or "bias" in key)


def test_it_needs_fresh_weights() -> None:
    with pytest.raises(KdfedError, match="needs fresh initial weights"):
        distilled(perturb=0.1)


def test_a_student_of_nothing_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match=r"consolidation.shrink: expected above 0 without perturb"):
        tiny(**{"consolidation.shrink": 0.0}).arm("consolidated")


def test_an_arm_starts_from_the_shrunk_student_with_weights_of_its_seed(tiny, run_arm) -> None:
    def start(**changes: float) -> State:
        experiment = tiny(**{"rounds.horizon": 0}, **{f"consolidation.{k}": v for k, v in changes.items()})
        return dict(run_arm(experiment, "consolidated").arrays.to_torch_state_dict())

    plain, half, moved, again = (
        start(),
        start(shrink=0.5),
        start(shrink=0.5, perturb=0.1),
        start(shrink=0.5, perturb=0.1),
    )
    assert all(torch.equal(half[key], 0.5 * plain[key]) for key in plain)
    assert all(torch.equal(moved[key], again[key]) for key in moved)
    assert not any(torch.equal(moved[key], half[key]) for key in moved if "weight" in key)
