"""What a guess is worth and what it costs: pure numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.draft_odds import Acceptance, FixedPrice, MeasuredPrice, Rate


def learned(drafted, accepted, times=300, length=4):
    odds, turn = Acceptance(), Rate(0.0, 0.0)
    for _ in range(times):
        odds.note(length, turn, drafted, accepted)
    return odds, turn


class TestAcceptance:
    def test_guesses_that_always_come_true_are_made_as_many_as_may_be(self):
        odds, turn = learned(8, 8)
        assert odds.count(4, turn, 0.2, 16) == 16
        assert odds.count(4, turn, 0.2, 3) == 3

    def test_guesses_that_never_come_true_are_not_made(self):
        odds, turn = learned(8, 0)
        assert odds.count(4, turn, 0.2, 16) == 0
        assert odds.count(4, Rate(0.0, 0.0), 0.2, 16) == 0

    def test_what_half_of_the_time_is_right_is_guessed_while_it_pays(self):
        odds, turn = Acceptance(), Rate(0.0, 0.0)
        for _ in range(200):
            odds.note(4, turn, 1, 1)
            odds.note(4, turn, 1, 0)
            odds.note(4, turn, 2, 2)
            odds.note(4, turn, 2, 0)
            odds.note(4, turn, 2, 1)
            odds.note(4, turn, 2, 0)
        assert odds.count(4, turn, 0.6, 16) == 0
        # A half, a quarter, an eighth: the third is worth less than 0.2.
        assert odds.count(4, turn, 0.2, 16) == 2

    def test_lengths_are_learned_apart(self):
        odds, _ = learned(8, 0, length=4)
        assert odds.count(9, Rate(0.0, 0.0), 0.2, 16) > 0

    def test_a_turn_that_repeats_nothing_is_left_alone_however_well_others_do(self):
        odds, _ = learned(8, 8)
        bad = Rate(0.0, 0.0)
        for _ in range(60):
            bad.add(0.0, 1.0, 0.9)
        assert odds.count(4, bad, 0.5, 16) == 0

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 32), st.integers(1, 16), st.integers(0, 16))),
        st.floats(0, 3),
        st.floats(0, 3),
        st.integers(0, 16),
    )
    def test_counts_stay_in_bounds_and_fall_with_the_price(self, notes, low, high, most):
        odds, turn = Acceptance(), Rate(0.0, 0.0)
        for length, drafted, accepted in notes:
            odds.note(length, turn, drafted, min(accepted, drafted))
        low, high = sorted((low, high))
        for length in (2, 7, 32):
            cheap, dear = (odds.count(length, turn, price, most) for price in (low, high))
            assert 0 <= dear <= cheap <= most


def measured(decodes, plain, extra, drafted=8, steps=40):
    price = MeasuredPrice()
    for _ in range(steps):
        price.observe(decodes, 0, plain)
        price.observe(decodes, drafted, plain + extra * drafted)
    return price


class TestPrice:
    def test_a_fixed_price_is_fixed(self):
        price = FixedPrice(0.3)
        price.observe(4, 8, 1.0)
        assert price.price(1) == price.price(64) == 0.3

    @pytest.mark.parametrize("decodes", [1, 2, 3, 8, 64])
    def test_it_is_the_share_of_a_token_that_a_guess_costs(self, decodes):
        plain = 0.010
        price = measured(decodes, plain, extra=0.003 / decodes)
        assert price.price(decodes) == pytest.approx(0.3, rel=0.01)

    def test_guesses_that_cost_nothing_still_have_a_price(self):
        assert measured(4, 0.01, 0.0).price(4) == 0.1
        assert measured(4, 0.01, -0.001).price(4) == 0.1

    def test_nothing_is_guessed_until_plain_steps_are_known(self):
        price = MeasuredPrice()
        assert price.price(2) > 1
        for _ in range(4):
            price.observe(2, 0, 0.01)
        assert price.price(2) == 0.2
        assert price.price(40) > 1

    def test_where_a_guess_costs_a_step_none_is_made_but_tried_again_at_times(self):
        price = measured(1, 0.01, 0.02)
        prices = [price.price(1) for _ in range(300)]
        assert sum(each < 1 for each in prices) == 2

    def test_it_comes_back_when_guesses_have_become_cheap(self):
        price = measured(1, 0.01, 0.02)
        assert price.price(1) > 1
        for _ in range(60):
            price.observe(1, 8, 0.0101)
        assert price.price(1) < 0.3

    def test_one_disturbed_step_does_not_decide(self):
        price = measured(1, 0.01, 0.001)
        price.observe(1, 0, 5.0)
        assert price.price(1) < 0.2
        for _ in range(20):
            price.observe(1, 0, 0.01)
            price.observe(1, 8, 0.018)
        assert price.price(1) == pytest.approx(0.1, abs=0.03)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 100), st.integers(0, 64), st.floats(0, 1e6, allow_subnormal=False)
            )
        ),
        st.integers(1, 100),
    )
    def test_it_is_a_positive_number_whatever_was_measured(self, steps, decodes):
        price = MeasuredPrice()
        for step in steps:
            price.observe(*step)
        assert price.price(decodes) >= 0.1
