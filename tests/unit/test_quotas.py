"""Quotas of keys: where their windows begin, with calendars or without, and how they are counted."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from apikeyrouter.domain.components.quotas import COUNTED_ONLY, due, limit_of, quota_of, told_name
from apikeyrouter.domain.models.accounting import LIMIT_NAMES, Period
from apikeyrouter.domain.models.quota_state import Quota, QuotaUnit, TimeWindow

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
PACIFIC = ZoneInfo("America/Los_Angeles")


def quota(window: str, reset_at: datetime | None, now: datetime = NOW) -> Quota:
    return quota_of(TimeWindow(window), QuotaUnit.Tokens, 100, reset_at, now)


@pytest.mark.parametrize(
    ("window", "reset_at", "zone"),
    [
        ("daily", None, "UTC"),
        ("daily", datetime(2026, 3, 6, tzinfo=PACIFIC), "America/Los_Angeles"),
        ("daily", datetime(2026, 3, 6, 8, tzinfo=UTC), "Etc/GMT+8"),
        ("daily", datetime(2026, 3, 6, tzinfo=timezone(timedelta(hours=2))), "Etc/GMT-2"),
        ("hourly", datetime(2026, 3, 5, 13, tzinfo=UTC), "UTC"),
        ("weekly", datetime(2026, 3, 9, tzinfo=UTC), "UTC"),
        ("monthly", datetime(2026, 4, 1, tzinfo=UTC), "UTC"),
        ("monthly", datetime(2026, 4, 1, 7, tzinfo=UTC), "Etc/GMT+7"),
    ],
)
def test_a_reset_at_a_calendars_boundary_is_that_calendars(window: str, reset_at: datetime | None, zone: str) -> None:
    made = quota(window, reset_at)
    assert (made.timezone, made.anchor_at, made.resets_at) == (zone, None, None)
    limit = limit_of(made)
    assert (limit.calendar, limit.timezone) == (Period(window), zone)


@pytest.mark.parametrize(
    ("window", "reset_at", "then"),
    [
        ("hourly", datetime(2026, 3, 5, 12, 20, tzinfo=UTC), datetime(2026, 3, 5, 13, 20, tzinfo=UTC)),
        ("daily", datetime(2026, 3, 6, 3, 37, tzinfo=UTC), datetime(2026, 3, 7, 3, 37, tzinfo=UTC)),
        ("weekly", datetime(2026, 3, 11, tzinfo=UTC), datetime(2026, 3, 18, tzinfo=UTC)),
        ("monthly", datetime(2026, 3, 17, 9, tzinfo=UTC), datetime(2026, 4, 17, 9, tzinfo=UTC)),
        # clocks go forward on the 8th: the same time on the wall is an hour earlier
        ("daily", datetime(2026, 3, 7, 6, 30, tzinfo=PACIFIC), datetime(2026, 3, 8, 6, 30, tzinfo=PACIFIC)),
    ],
)
def test_any_other_reset_is_a_window_of_its_own_that_is_set_back(
    window: str, reset_at: datetime, then: datetime
) -> None:
    made = quota(window, reset_at, now=reset_at - timedelta(minutes=5))
    assert made.resets_at == reset_at
    assert limit_of(made).calendar is Period.TOTAL
    assert due([made], reset_at - timedelta(seconds=1)) is None
    after = due([made], reset_at)
    assert after is not None
    assert (after[0].resets_at, after[0].resets) == (then, 1)
    assert limit_of(after[0]).name != limit_of(made).name
    assert told_name(limit_of(after[0]).name) == limit_of(made).name


def test_a_month_that_is_too_short_ends_on_its_last_day_and_the_next_on_the_31st_again() -> None:
    made = quota("monthly", datetime(2027, 1, 31, 6, 15, tzinfo=UTC), now=datetime(2027, 1, 30, tzinfo=UTC))
    moments = []
    for _ in range(3):
        assert made.resets_at is not None
        after = due([made], made.resets_at)
        assert after is not None
        made = after[0]
        moments.append(made.resets_at)
    assert [moment and (moment.month, moment.day) for moment in moments] == [(2, 28), (3, 31), (4, 30)]


def test_windows_that_passed_while_nobody_looked_are_one_reset() -> None:
    made = quota("hourly", NOW + timedelta(minutes=20))
    after = due([made], NOW + timedelta(days=10))
    assert after is not None
    assert after[0].resets == 1
    assert after[0].resets_at == NOW + timedelta(days=10, minutes=20)


def test_what_is_only_counted_refuses_nothing() -> None:
    assert limit_of(Quota(time_window=TimeWindow.Daily)).amount == COUNTED_ONLY


def test_every_quota_has_a_name_that_the_scripts_know() -> None:
    for window in TimeWindow:
        for unit in QuotaUnit:
            for resets in (0, 1):
                assert limit_of(Quota(time_window=window, unit=unit, resets=resets)).name in LIMIT_NAMES
