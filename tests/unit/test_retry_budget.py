"""The retry budget: a share of requests over a sliding window, never below its floor."""

from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.retry_budget import RETRIES_FLOOR, WINDOW_SECONDS, RetryBudget


def spent(budget: RetryBudget, requests: int, now: float) -> int:
    """Retry as often as it is allowed, at one moment."""
    before = budget.retries
    while budget.allows(requests, now) and budget.retries - before <= 10_000:
        budget.spend()
    return budget.retries - before


def test_little_traffic_may_retry_as_often_as_the_floor() -> None:
    assert spent(RetryBudget(floor=7), requests=1, now=5.0) == 7
    assert spent(RetryBudget(), requests=1, now=5.0) == RETRIES_FLOOR


def test_much_traffic_may_retry_its_share() -> None:
    assert spent(RetryBudget(share=0.2, floor=10), requests=1000, now=5.0) == 200


def test_what_was_spent_comes_back_when_the_window_has_passed() -> None:
    budget = RetryBudget(share=0.0, floor=5)
    assert spent(budget, 100, now=1.0) == 5
    budget.note(100, 1.25)
    assert spent(budget, 100, now=1.0 + WINDOW_SECONDS / 2) == 0
    assert spent(budget, 100, now=1.5 + WINDOW_SECONDS) == 5


def test_requests_of_long_ago_allow_nothing() -> None:
    budget = RetryBudget(share=0.5, floor=0)
    for quarter in range(200):  # fifty seconds without a request, after a thousand of them
        budget.note(1000, quarter * 0.25)
    assert not budget.allows(1000, 50.0)
    assert budget.allows(1004, 50.0)


@given(
    share=st.floats(0, 1),
    floor=st.integers(0, 20),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(0, 50)), max_size=60),
)
def test_retries_within_a_window_never_exceed_share_and_floor(
    share: float, floor: int, steps: list[tuple[float, int, int]]
) -> None:
    budget, now, requests = RetryBudget(share=share, floor=floor), 0.0, 0
    made: list[float] = []
    asked: list[tuple[float, int]] = []
    for pause, more, wanted in steps:
        now, requests = now + pause, requests + more
        asked.append((now, more))
        budget.note(requests, now)
        for _ in range(wanted):
            if budget.allows(requests, now):
                budget.spend()
                made.append(now)
        within = sum(at > now - WINDOW_SECONDS for at in made)
        of = sum(count for at, count in asked if at > now - 2 * WINDOW_SECONDS - 3)
        assert within <= max(floor, share * of) + 1
