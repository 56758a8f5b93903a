"""Clients' weights as whole numbers, which stand to each other as the weights do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.shares import SCALE_MAX, Shares


def test_whole_weights_stay_as_they_are() -> None:
    shares = Shares([4.0, 2.0])
    assert [shares[weight] for weight in (4.0, 2.0, 1)] == [4, 2, 1]


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [([0.5], [1, 2]), ([0.25, 2], [1, 8, 4]), ([1.5], [3, 2]), ([0.1, 0.3], [1, 3, 10]), ([0.01], [1, 100])],
)
def test_weights_below_one_and_between_keep_their_ratios(weights: list[float], wanted: list[int]) -> None:
    shares = Shares(weights)
    assert [shares[weight] for weight in [*weights, 1]] == wanted


@given(st.lists(st.floats(0.01, 1e6), max_size=6))
def test_any_weights_keep_their_ratios_within_some_percent(weights: list[float]) -> None:
    shares = Shares(weights)
    assert shares.scale <= SCALE_MAX
    for weight in (1.0, *weights):
        assert shares[weight] >= 1
        assert shares[weight] / shares.scale == pytest.approx(weight, rel=0.06)
