"""Calendar periods: boundaries in any time zone, and that only the cell's own clock chooses among them."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.models.accounting import Period
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger import calendars
from apikeyrouter.infrastructure.ledger.calendars import BOUNDARIES_AHEAD, boundaries, calendar_number
from tests.ledger.support import DAY, HOUR, START_US, Clock, LocalCell, budget, calendar, cost, lane, local_cell, wish

REPEATING = (Period.HOURLY, Period.DAILY, Period.WEEKLY, Period.MONTHLY)
ZONES = ("UTC", "America/Los_Angeles", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia")


def to_us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def at(zone: str, *parts: int) -> int:
    return to_us(datetime(*parts, tzinfo=ZoneInfo(zone)))  # type: ignore[arg-type, misc]


def bounds(period: Period, zone: str, now_us: int) -> list[int]:
    return boundaries(calendar_number(period, zone), now_us)


@pytest.mark.parametrize(
    ("day", "hours"), [((2027, 3, 14), 23), ((2027, 11, 7), 25), ((2027, 7, 1), 24)], ids=["spring", "autumn", "summer"]
)
def test_a_pacific_day_has_23_24_or_25_hours(day: tuple[int, int, int], hours: int) -> None:
    start, end = bounds(Period.DAILY, "America/Los_Angeles", at("America/Los_Angeles", *day, 12))[:2]
    assert start == at("America/Los_Angeles", *day)
    assert end - start == hours * HOUR


@pytest.mark.parametrize(("month", "days"), [((2027, 2), 28), ((2028, 2), 29), ((2027, 4), 30), ((2027, 12), 31)])
def test_a_month_ends_where_the_next_one_begins(month: tuple[int, int], days: int) -> None:
    start, end = bounds(Period.MONTHLY, "UTC", at("UTC", *month, 28, 23, 59))[:2]
    assert (start, end - start) == (at("UTC", *month, 1), days * DAY)


def test_a_week_begins_on_monday() -> None:
    assert bounds(Period.WEEKLY, "Europe/Berlin", at("Europe/Berlin", 2027, 1, 17, 23))[0] == at(
        "Europe/Berlin", 2027, 1, 11
    )


def test_the_hour_that_happens_twice_is_two_periods() -> None:
    first = at("America/Los_Angeles", 2027, 11, 7, 0, 59)
    found = bounds(Period.HOURLY, "America/Los_Angeles", first)[:5]
    assert [later - earlier for earlier, later in pairwise(found)] == [HOUR] * 4


@pytest.mark.parametrize(
    ("day", "short"), [((2027, 4, 4), 1), ((2027, 10, 3), 1), ((2027, 7, 1), 0)], ids=["autumn", "spring", "winter"]
)
def test_where_clocks_change_by_half_an_hour_one_period_is_short_and_none_overlap(
    day: tuple[int, int, int], short: int
) -> None:
    zone, start = "Australia/Lord_Howe", at("Australia/Lord_Howe", *day)
    found = [bounds(Period.HOURLY, zone, now)[:2] for now in range(start, start + 12 * HOUR, HOUR // 12)]
    periods = sorted({(begin, end) for begin, end in found})
    assert all(end == begin for (_, end), (begin, _) in pairwise(periods)), "no gap, no overlap"
    assert [end - begin for begin, end in periods if end - begin != HOUR] == [HOUR // 2] * short


def test_the_instant_of_a_boundary_belongs_to_the_period_that_begins() -> None:
    start, end = bounds(Period.DAILY, "UTC", START_US)[:2]
    assert bounds(Period.DAILY, "UTC", end)[0] == end
    assert bounds(Period.DAILY, "UTC", end - 1)[0] == start


@given(
    period=st.sampled_from(REPEATING),
    zone=st.sampled_from(ZONES),
    now_us=st.integers(min_value=at("UTC", 2024, 1, 1), max_value=at("UTC", 2040, 1, 1)),
)
def test_boundaries_ascend_and_the_first_two_hold_now(period: Period, zone: str, now_us: int) -> None:
    found = bounds(period, zone, now_us)
    assert len(found) == BOUNDARIES_AHEAD
    assert found == sorted(set(found))
    assert found[0] <= now_us < found[1]


@given(
    period=st.sampled_from(REPEATING),
    zone=st.sampled_from(ZONES),
    now_us=st.integers(min_value=at("UTC", 2024, 1, 1), max_value=at("UTC", 2040, 1, 1)),
    step=st.integers(min_value=1, max_value=BOUNDARIES_AHEAD - 2),
)
def test_boundaries_asked_for_later_are_the_same_boundaries(period: Period, zone: str, now_us: int, step: int) -> None:
    found = bounds(period, zone, now_us)
    later = bounds(period, zone, found[step])
    assert later[: BOUNDARIES_AHEAD - step] == found[step:]


def test_a_calendar_has_the_same_number_in_every_process() -> None:
    assert calendar_number(Period.DAILY, "America/Los_Angeles") == 85_166_049_383_356
    assert calendar_number(Period.TOTAL, "UTC") == 0


def test_every_calendar_has_a_number_of_its_own_that_a_counter_holds() -> None:
    numbers = {calendar_number(period, zone) for period in REPEATING for zone in ZONES}
    assert len(numbers) == len(REPEATING) * len(ZONES)
    assert max(numbers) < 2**53


def test_a_calendar_that_another_process_named_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    number = calendar_number(Period.MONTHLY, "Asia/Tokyo")
    monkeypatch.setattr(calendars, "_known", {})
    assert boundaries(number, START_US)[0] == at("Asia/Tokyo", 2027, 1, 1)


def test_a_time_zone_that_does_not_exist_is_refused() -> None:
    for name in ("Europe/Atlantis", "../../etc/passwd", ""):
        with pytest.raises(LedgerConfigError, match="unknown time zone"):
            calendar_number(Period.DAILY, name)


async def test_a_client_whose_clock_is_a_day_ahead_opens_nothing() -> None:
    cell = await local_cell(lane("lane", calendar(1)), budget("day", 1, period=Period.DAILY))
    await cell.admit(wish(scopes=("day",), charge=cost(1)))
    number = calendar_number(Period.DAILY, "UTC")
    ahead = boundaries(number, cell.time.now_us + DAY)
    await cell.engine.run("configure", ["calendar", 0, f"c:{number}", len(ahead), *ahead])

    denial = await cell.deny(wish(scopes=("day",), charge=cost(1)))

    assert denial.binding.retry_at_us == at("UTC", 2027, 1, 16)
    cell.time.now_us = at("UTC", 2027, 1, 16) - 1
    await cell.deny(wish(scopes=("day",), charge=cost(1)))
    cell.time.advance(1)
    await cell.admit(wish(scopes=("day",), charge=cost(1)))


async def test_a_calendar_that_was_supplied_a_day_ahead_is_not_used_before_its_time() -> None:
    cell = await local_cell(lane("lane", calendar(1)))
    number = calendar_number(Period.DAILY, "UTC")
    ahead = boundaries(number, cell.time.now_us + DAY)
    await cell.engine.run("configure", ["calendar", 0, f"c:{number}", len(ahead), *ahead])
    await cell.admit(wish())
    assert (await cell.deny(wish())).binding.retry_at_us == at("UTC", 2027, 1, 16)


async def test_a_days_quota_comes_back_at_midnight_of_its_time_zone() -> None:
    clock = Clock(at("America/Los_Angeles", 2027, 3, 14, 0, 30))
    cell = await local_cell(lane("lane", calendar(2, timezone="America/Los_Angeles")), clock=clock)
    await cell.admit(wish())
    await cell.admit(wish())
    denial = await cell.deny(wish())
    midnight = at("America/Los_Angeles", 2027, 3, 15)
    assert denial.binding.retry_at_us == midnight == clock.now_us + 22 * HOUR + HOUR // 2
    assert await _admitted_at(cell, midnight - 1) is False
    assert await _admitted_at(cell, midnight) is True


async def test_a_cell_that_slept_past_every_known_boundary_asks_for_new_ones() -> None:
    cell = await local_cell(lane("lane", calendar(1, Period.HOURLY)))
    await cell.admit(wish())
    cell.time.advance(400 * DAY)
    await cell.admit(wish())


async def _admitted_at(cell: LocalCell, now_us: int) -> bool:
    cell.time.now_us = now_us
    return not hasattr(await cell.reserve(wish()), "binding")
