from __future__ import annotations

import math

import torch

from kdfed.closed_form import Linear, Refit

LAYER = torch.zeros(2, 3), torch.zeros(2)


def test_a_solved_head_says_what_was_chosen_and_its_scale() -> None:
    linear = Linear(*LAYER, 3.1623, chosen_by="penalty: gcv").scaled(2.5).scaled(2.0)
    refit = Refit.of(4, "ridge", 5, 280, linear, "sums")
    assert refit == Refit(4, "ridge", 5, 280, 3.1623, "penalty: gcv", 5.0, "calibrate: sums", features=3)
    assert str(refit) == (
        "head ridge after round 4: 280 examples of 5 participants, penalty: gcv gives 3.162, calibrate: sums "
        "multiplies logits by 5"
    )


def test_what_was_not_chosen_and_not_scaled_is_not_told() -> None:
    refit = Refit.of("before-teachers", "class-means", 2, 9, Linear(*LAYER), "no")
    assert refit == Refit("before-teachers", "class-means", 2, 9, features=3)
    assert str(refit) == "head class-means before teachers: 9 examples of 2 participants"


def test_a_number_that_no_record_can_hold_is_left_out() -> None:
    linear = Linear(*LAYER, math.inf, chosen_by="luck")
    assert Refit.of(0, "own:Head", 2, 9, linear, "no") == Refit(0, "own:Head", 2, 9, features=3)


def test_what_a_head_explains_is_told_where_it_is_known() -> None:
    refit = Refit.of(0, "ridge", 2, 9, Linear(*LAYER, explained=0.425), "no", pretrained=True)
    assert refit == Refit(0, "ridge", 2, 9, features=3, explained=0.425, pretrained=True)
    assert str(refit).endswith("of 2 participants, explains 42% of the labels' variance")


def test_a_model_that_kept_its_head_says_why() -> None:
    assert str(Refit(0, "lda", why="nobody answered")) == (
        "head lda after round 0: the model keeps its own, nobody answered"
    )
