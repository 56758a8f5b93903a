"""Estimates: learned, clamped, shared, and bounded in memory."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.text_kinds import Kind, Shape
from apikeyrouter.domain.components.token_estimator import RATIO_MAX, TokenEstimator
from apikeyrouter.domain.components.token_weights import MOMENTS, TokenWeights
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.usage import Usage

KNOWN = [[0, 1, *[1] * MOMENTS]]
SHAPE = Shape(Kind.PROSE, (7.0, 4000.0, 80.0, 40.0, 200.0, 10.0, 600.0))


def request(text: int = 4000, *, cap: int | None = None, choices: int = 1, unbounded: bool = False) -> ParsedRequest:
    return ParsedRequest(
        model="m", stream=False, choices=choices, max_output_tokens=cap, input_bytes=text + 50, messages=1,
        extra_tokens=0, unbounded=unbounded, include_usage=False, fields={}, text_bytes=text,
    )  # fmt: skip


def used(read: int, written: int = 100, *, estimated: bool = False) -> Usage:
    return Usage(input_tokens=read, output_tokens=written, estimated=estimated)


def test_a_new_model_starts_at_about_four_bytes_a_token() -> None:
    estimate = TokenEstimator().estimate("p", "m", request(4000))
    assert 900 <= estimate.input_tokens <= 1100


def test_the_ratio_is_learned_within_a_few_answers() -> None:
    estimator = TokenEstimator()
    for _ in range(20):
        estimate = estimator.estimate("p", "m", request(4000))
        estimator.learn("p", "m", shape=estimate.shape, choices=1, usage=used(1900, 70))
    learned = estimator.estimate("p", "m", request(8000))
    assert 3600 <= learned.input_tokens <= 4000
    assert 65 <= learned.output_tokens <= 75
    assert estimator.estimate("p", "other", request(4000)).input_tokens < 1100


def test_one_absurd_answer_moves_the_ratio_no_further_than_its_range() -> None:
    estimator = TokenEstimator()
    estimator.learn("p", "m", shape=SHAPE, choices=1, usage=used(10**9))
    assert estimator.estimate("p", "m", request(4000)).input_tokens <= 1008 * RATIO_MAX


@pytest.mark.parametrize("usage", [used(500, estimated=True), used(0)])
def test_estimates_and_empty_counts_teach_nothing(usage: Usage) -> None:
    estimator = TokenEstimator()
    estimator.learn("p", "m", shape=SHAPE, choices=1, usage=usage)
    assert estimator.export()["models"] == []


def test_expected_output_is_capped_and_multiplied_by_choices() -> None:
    estimate = TokenEstimator().estimate("p", "m", request(cap=16, choices=3))
    assert (estimate.output_tokens, estimate.bound_output) == (48, 48)


def test_a_cap_that_is_sent_replaces_the_clients() -> None:
    assert TokenEstimator().estimate("p", "m", request(cap=500), token_cap=7).bound_output == 7


def test_without_cap_or_with_a_file_there_is_no_bound() -> None:
    estimate = TokenEstimator().estimate("p", "m", request(unbounded=True))
    assert (estimate.bound_input, estimate.bound_output) == (None, None)


@given(st.integers(0, 10**7))
def test_the_input_bound_is_above_the_bytes(size: int) -> None:
    bound = TokenEstimator().estimate("p", "m", request(size)).bound_input
    assert bound is not None
    assert bound >= size


def test_what_one_worker_learned_another_knows_and_repeating_it_changes_little() -> None:
    first, second = TokenEstimator(), TokenEstimator()
    for _ in range(30):
        first.learn("p", "m", shape=SHAPE, choices=1, usage=used(2000, 50))
    state = json.loads(json.dumps(first.export()))
    second.merge(state)
    assert second.export() == first.export()
    second.merge(state)
    assert second.export() == first.export()


def test_models_remembered_are_bounded() -> None:
    estimator = TokenEstimator(models_max=5)
    for number in range(50):
        estimator.learn("p", f"m{number}", shape=SHAPE, choices=1, usage=used(10))
    assert len(estimator.export()["models"]) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [{}, {"version": 2, "models": [["p", "m", 1, 1, KNOWN]]}, {"version": 3, "models": 5},
     {"version": 3, "models": [[]]}, {"version": 3, "models": [["p", "m", "x", 1, KNOWN]]},
     {"version": 3, "models": [["p", 5, 1, 1, KNOWN]]}, {"version": 3, "models": [["p", "m", -1, 1, KNOWN]]},
     {"version": 3, "models": [["p", "m", 1, 1, [KNOWN[0][:-1]]]]}, {"version": 3, "models": [["p", "m", 1, 1, 5]]},
     {"version": 3, "models": [["p", "m", 1, float("nan"), KNOWN]]},
     {"version": 3, "models": [["p", "m", 1, 1, [[99, *KNOWN[0][1:]]]]]}, {"version": 3, "costs": [["p", "m", 0]]}],
)  # fmt: skip
def test_a_state_that_is_not_ours_is_skipped(state: dict[str, object]) -> None:
    estimator = TokenEstimator()
    estimator.merge(state)
    assert estimator.export()["models"] == []


def test_weights_come_to_be_those_that_the_answers_have() -> None:
    true, chance = (1.2, 0.4, 0.3, 1.5, 0.2, -0.5, 0.1), random.Random(1)
    known = TokenWeights(Kind.CODE)
    for _ in range(300):
        size = chance.uniform(300, 9000)
        parts = (7.0, size, *(size * chance.uniform(0, most) for most in (0.1, 0.1, 0.3, 0.1, 0.3)))
        known.learn(parts, sum(weight * part for weight, part in zip(true, parts, strict=True)))
    assert known.weights[1:] == pytest.approx(true[1:], abs=0.05)  # framing is lost in texts that long


SHARES = st.tuples(*[st.floats(0, 1)] * 5)
TEXTS = st.tuples(st.integers(3, 10**6), st.integers(0, 10**7), SHARES, st.integers(1, 10**9))


@given(st.lists(TEXTS, max_size=30))
def test_whatever_is_learned_an_estimate_is_a_number_in_its_range(
    seen: list[tuple[int, int, tuple[float, ...], int]],
) -> None:
    estimator = TokenEstimator()
    for framing, size, shares, tokens in seen:
        shape = Shape(Kind.PROSE, (framing, size, *(share * size for share in shares)))
        estimator.learn("p", "m", shape=shape, choices=1, usage=used(tokens))
    assert 0 < estimator.estimate("p", "m", request(4000)).input_tokens <= 1008 * RATIO_MAX
    assert json.loads(json.dumps(estimator.export(), allow_nan=False))["version"] == 3
