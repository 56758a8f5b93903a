"""Output that nobody counted: four bytes a token until a model has taught better."""

from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.output_estimator import BYTES_MIN, MODELS_MAX, OutputEstimator

PLACE = ("p", "m")


def test_a_token_is_four_bytes_until_somebody_says_otherwise() -> None:
    assert [OutputEstimator().tokens(PLACE, produced) for produced in (0, 1, 4, 5, 400)] == [0, 1, 1, 2, 100]


def test_complete_answers_teach_tokens_per_byte_of_their_own_model() -> None:
    known = OutputEstimator()
    for _ in range(30):
        known.learn(PLACE, output_tokens=100, reasoning_tokens=0, produced=200)
    assert known.tokens(PLACE, 200) == 100
    assert known.tokens(("p", "other"), 200) == 50


def test_what_a_model_usually_thinks_is_added_because_it_thinks_first() -> None:
    known = OutputEstimator()
    known.learn(PLACE, output_tokens=500, reasoning_tokens=400, produced=400)
    assert known.tokens(PLACE, 40) == 10 + 400
    assert known.tokens(PLACE, 0) == 0


def test_short_and_absurd_answers_teach_nothing_wrong() -> None:
    known = OutputEstimator()
    known.learn(PLACE, output_tokens=50, reasoning_tokens=0, produced=BYTES_MIN - 1)
    known.learn(PLACE, output_tokens=0, reasoning_tokens=0, produced=1000)
    known.learn(PLACE, output_tokens=10, reasoning_tokens=20, produced=1000)
    assert known.tokens(PLACE, 400) == 100
    known.learn(PLACE, output_tokens=10**12, reasoning_tokens=0, produced=100)
    assert known.tokens(PLACE, 100) == 200


def test_it_remembers_a_bounded_number_of_models() -> None:
    known = OutputEstimator()
    for number in range(MODELS_MAX + 10):
        known.learn(("p", str(number)), output_tokens=100, reasoning_tokens=0, produced=100)
    assert len(known._known) <= MODELS_MAX


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))), st.integers(0, 10**9))
def test_an_estimate_is_never_negative_and_grows_with_what_was_received(
    seen: list[tuple[int, int, int]], produced: int
) -> None:
    known = OutputEstimator()
    for output, reasoning, size in seen:
        known.learn(PLACE, output_tokens=output, reasoning_tokens=reasoning, produced=size)
    assert 0 <= known.tokens(PLACE, produced) <= known.tokens(PLACE, produced + 1)
