"""What is due, among many: the same answer as looking at each of them."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.due_times import DueTimes

START = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 50), st.integers(0, 50)), max_size=300)


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


@given(STEPS)
def test_something_is_due_exactly_when_one_of_the_times_that_were_set_last_is_past(
    steps: list[tuple[str, int | None, int]],
) -> None:
    times, last = DueTimes(), dict[str, int]()
    for name, minute, now in steps:
        times.set(name, None if minute is None else at(minute))
        last.pop(name, None)
        if minute is not None:
            last[name] = minute
        assert times.any(at(now)) is any(minute <= now for minute in last.values())


def test_times_that_were_replaced_are_forgotten_and_not_kept_for_ever() -> None:
    times = DueTimes()
    for minute in range(10_000, 0, -1):
        times.set("k1", at(minute))
        times.set("k2", at(20_000 + minute))
    assert len(times._heap) < 200
    assert times.any(at(1))
    times.set("k1", None)
    assert not times.any(at(20_000))
    assert times.any(at(20_001))
