from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfed.ledger import Costs, Ledger

COSTS = st.builds(Costs, *[st.integers(0, 9)] * 5)


def two_participants() -> Ledger:
    """Hello, teachers and one round of participants 0 and 1, of whom 1 does not answer the round."""
    ledger = Ledger()
    for _ in (0, 1):
        ledger.down("hello", 5)
        ledger.up("hello", 7, 0)
    ledger.open_exchange("teachers")
    for _ in (0, 1):
        ledger.down("teachers", 100)
        ledger.up("teachers", 110, 20)
    ledger.open_exchange("rounds")
    for _ in (0, 1):
        ledger.down("rounds", 100)
    ledger.up("rounds", 105, 3)
    return ledger


def test_costs_add_up_to_what_the_messages_carried():
    """Down 2*5 + 2*100 + 2*100 = 410; up 2*7 + 2*110 + 105 = 339; uploads 2 + 1; steps 2*20 + 3."""
    assert two_participants().totals() == Costs(
        exchanges=2, participant_uploads=3, bytes_up=339, bytes_down=410, local_steps=43
    )


def test_hello_costs_bytes_only():
    assert two_participants().by_phase()["hello"] == Costs(bytes_up=14, bytes_down=10)


def test_hello_is_no_exchange():
    with pytest.raises(ValueError, match="hello is no exchange"):
        Ledger().open_exchange("hello")


def test_client_evaluation_is_counted_apart():
    ledger = two_participants()
    before = ledger.totals()
    ledger.open_exchange("evaluate")
    ledger.down("evaluate", 100)
    ledger.up("evaluate", 9, 0)
    assert ledger.totals() == before
    assert ledger.by_phase()["evaluate"] == Costs(1, 1, 9, 100, 0)


def test_phases_sum_to_the_totals():
    ledger = two_participants()
    assert sum(ledger.by_phase().values(), Costs()) == ledger.totals()


def test_many_messages_at_once_cost_what_they_cost_one_by_one():
    together = Ledger()
    together.down("hello", 5, messages=2)
    together.up("hello", 7, 0, replies=2)
    together.open_exchange("teachers")
    together.down("teachers", 100, messages=2)
    together.up("teachers", 110, 40, replies=2)
    one_by_one = two_participants().by_phase()
    assert together.by_phase() == {phase: one_by_one[phase] for phase in ("hello", "teachers")}


def test_an_unused_ledger_costs_nothing():
    assert Ledger().totals() == Costs()


@given(COSTS, COSTS, COSTS)
def test_costs_are_a_commutative_monoid(a, b, c):
    assert a + Costs() == a
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
