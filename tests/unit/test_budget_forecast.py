"""What a budget's history says of its end."""

import random
from datetime import UTC, datetime, timedelta

from apikeyrouter.domain.components.budget_forecast import SpendHistory
from apikeyrouter.domain.models.accounting import Period

MIDNIGHT = datetime(2026, 11, 21, tzinfo=UTC)
US = 1_000_000


def us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return int(moment.timestamp() * US)


def spent_evenly(hours: float, dollars_per_hour: float) -> SpendHistory:
    """A daily budget's history, seen every ten seconds."""
    history = SpendHistory(Period.DAILY)
    for second in range(10, int(hours * 3600) + 1, 10):
        amount = int(second / 3600 * dollars_per_hour * 10**9)
        history.see(us(MIDNIGHT + timedelta(seconds=second)), amount, start_us=us(MIDNIGHT))
    return history


def test_even_spending_is_foreseen() -> None:
    history, now = spent_evenly(6, 2.0), MIDNIGHT + timedelta(hours=6)
    tomorrow = MIDNIGHT + timedelta(days=1)
    for free, expected in ((10, now + timedelta(hours=5)), (100, None)):
        forecast = history.forecast(now, free * 10**9, tomorrow)
        assert forecast is not None
        assert abs(float(forecast.burn_per_hour) - 2.0) < 0.1
        assert forecast.lasts is (expected is None)
        assert forecast.confidence > 0.7  # the rest of the day is not known yet
        if expected is not None:
            assert forecast.used_up_at is not None
            assert abs(forecast.used_up_at - expected) < timedelta(minutes=20)
        else:
            assert forecast.used_up_at is None


def test_what_is_uneven_is_uncertain() -> None:
    chance = random.Random(5)
    even, uneven = spent_evenly(30, 2.0), SpendHistory(Period.DAILY)
    total = 0
    for second in range(10, 30 * 3600, 10):
        total += 8 * 10**9 * (chance.random() < 1 / 1440)  # a dear request now and then
        uneven.see(us(MIDNIGHT + timedelta(seconds=second)), total, start_us=us(MIDNIGHT))
    now = MIDNIGHT + timedelta(hours=30)
    spans = []
    for history in (even, uneven):
        forecast = history.forecast(now, 12 * 10**9, None)
        assert forecast is not None
        assert forecast.earliest is not None
        assert forecast.latest is not None
        spans.append(forecast.latest - forecast.earliest)
    assert spans[1] > 2 * spans[0]


def test_the_rate_outlives_the_period_and_what_was_spent_does_not() -> None:
    history = spent_evenly(24, 2.0)
    later = MIDNIGHT + timedelta(days=1, minutes=20)
    history.see(us(later), int(2 / 3 * 10**9), start_us=us(MIDNIGHT + timedelta(days=1)))
    forecast = history.forecast(later, 10**9, MIDNIGHT + timedelta(days=2))
    assert forecast is not None
    assert abs(float(forecast.burn_per_hour) - 2.0) < 0.5
    assert not forecast.lasts


def test_nothing_free_is_used_up_now_and_nothing_seen_is_no_forecast() -> None:
    forecast = spent_evenly(1, 2.0).forecast(MIDNIGHT, 0, None)
    assert forecast is not None
    assert (forecast.used_up_at, forecast.lasts) == (MIDNIGHT, False)
    assert SpendHistory(Period.TOTAL).forecast(MIDNIGHT, 1, None) is None


def test_a_budget_of_this_minute_is_forecast_from_its_first_spending_and_not_from_the_periods_beginning() -> None:
    """99 % of a month's budget in 40 s, ten days into the month: it is used up at once."""
    month, made = MIDNIGHT - timedelta(days=10), MIDNIGHT
    for first_seen in (0, 5):
        history = SpendHistory(Period.MONTHLY, unspent_us=us(made) if first_seen else 0)
        for second in range(first_seen, 41, 5):
            spent = int(0.99 * 10**9 * second / 40)
            history.see(us(made + timedelta(seconds=second)), spent, start_us=us(month))
        now = made + timedelta(seconds=40)
        forecast = history.forecast(now, 10**7, month + timedelta(days=30))
        assert forecast is not None
        assert forecast.used_up_at is not None
        assert forecast.used_up_at - now < timedelta(seconds=30)
        assert not forecast.lasts
        assert 45 < float(forecast.burn_per_hour) < 180  # 89 an hour
        assert forecast.observed_seconds == 40


def test_what_is_unspent_has_no_rate_until_it_is_spent() -> None:
    history = SpendHistory(Period.MONTHLY)
    for hour in range(48):
        history.see(us(MIDNIGHT + timedelta(hours=hour)), 0, start_us=us(MIDNIGHT))
    now = MIDNIGHT + timedelta(hours=48)
    assert history.forecast(now, 10**9, None) is None
    for second in range(0, 60, 5):
        history.see(us(now + timedelta(seconds=second)), 10**7 * second, start_us=us(MIDNIGHT))
    forecast = history.forecast(now + timedelta(minutes=1), 10**9, None)
    assert forecast is not None
    assert forecast.observed_seconds < 120


def test_a_budget_that_was_spent_before_this_process_began_is_forecast_from_its_period() -> None:
    history = SpendHistory(Period.MONTHLY)
    history.see(us(MIDNIGHT + timedelta(hours=100)), 100 * 10**9, start_us=us(MIDNIGHT))
    forecast = history.forecast(MIDNIGHT + timedelta(hours=100), 50 * 10**9, None)
    assert forecast is not None
    assert abs(float(forecast.burn_per_hour) - 1.0) < 0.1
