"""Defects that the proofs found in our own accounting, each kept as a test."""

from dataclasses import replace
from typing import Any

import pytest

from apikeyrouter.domain.models.accounting import (
    Admission,
    Breaker,
    Candidate,
    Denial,
    LaneConfig,
    LimitKind,
    Metric,
    Observation,
    Outcome,
    Period,
    Reason,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    SuspenseRule,
    place_words,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.encoding import lane_entry, observation_numbers
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from tests.ledger import support
from tests.ledger.histories import Offer, Wish
from tests.ledger.support import DAY, HOUR, MINUTE, SECOND, Clock, bucket, in_flight, lane, window


async def admitted(ledger: ScriptLedger, asked: ReserveRequest) -> Admission:
    return support.admitted(await ledger.reserve(asked))


async def denied(ledger: ScriptLedger, asked: ReserveRequest) -> Denial:
    return support.denied(await ledger.reserve(asked))


def rid_of(number: int) -> bytes:
    return b"rid %d" % number


def request(number: int, *lanes: str, cost: int = 0, tokens: int = 0, **more: Any) -> ReserveRequest:
    return support.wish(*lanes, rid=rid_of(number), charge=support.cost(cost, tokens=tokens), **more)


def settled(number: int, **more: Any) -> Settlement:
    return support.used(rid_of(number), **more)


def budget(limit: int, **more: Any) -> ScopeConfig:
    return ScopeConfig(**{"id": "budget", "limit_nanousd": limit, "hard": True, "period": Period.DAILY, **more})


def fragile() -> LaneConfig:
    return LaneConfig(id="lane", breaker=Breaker(failures=1, open_us=SECOND))


async def used(ledger: ScriptLedger, lane_id: str = "lane") -> int:
    return (await ledger.lanes([lane_id]))[0].limits[0].used


async def test_a_replayed_reserve_tells_again_that_it_holds_the_probe(ledger: ScriptLedger, clock: Clock) -> None:
    await ledger.put(lanes=[fragile()])
    await admitted(ledger, request(1))
    await ledger.settle(settled(1, outcome=Outcome.FAILURE, failed_lanes=1))
    clock.now_us += SECOND
    first = await admitted(ledger, request(2))
    again = await admitted(ledger, request(2))
    assert (first.probe, again.probe, again.replayed) == (True, True, True)


async def test_a_day_that_has_ended_does_not_count_in_the_month_that_replaces_it(
    ledger: ScriptLedger, clock: Clock
) -> None:
    await ledger.put(lanes=[lane()], scopes=[budget(100)])
    await admitted(ledger, request(1, scopes=("budget",), cost=100))
    await ledger.settle(settled(1, cost=100))
    clock.now_us += 60 * DAY
    await ledger.put(scopes=[budget(100, period=Period.MONTHLY)])
    await admitted(ledger, request(2, scopes=("budget",), cost=100))


async def test_an_hour_that_has_ended_still_counts_in_the_day_that_replaces_it(
    ledger: ScriptLedger, clock: Clock
) -> None:
    await ledger.put(lanes=[lane()], scopes=[budget(100, period=Period.HOURLY)])
    await admitted(ledger, request(1, scopes=("budget",), cost=100))
    await ledger.settle(settled(1, cost=100))
    clock.now_us += 2 * HOUR
    await ledger.put(scopes=[budget(100)])
    await denied(ledger, request(2, scopes=("budget",), cost=1))


async def test_suspense_whose_rule_becomes_hold_is_held_and_not_refunded(ledger: ScriptLedger, clock: Clock) -> None:
    scope = budget(100, period=Period.TOTAL, suspense_after_us=HOUR)
    await ledger.put(lanes=[lane()], scopes=[scope])
    await admitted(ledger, request(1, scopes=("budget",), cost=100, lease_us=SECOND))
    clock.now_us += MINUTE
    assert await ledger.sweep() == 1
    await ledger.put(scopes=[replace(scope, suspense=SuspenseRule.HOLD)])
    clock.now_us += 2 * HOUR
    assert await ledger.sweep() == 1
    assert (await ledger.scopes(["budget"]))[0].suspense == 100
    await denied(ledger, request(2, scopes=("budget",), cost=1))


async def test_a_slower_bucket_gives_nothing_back_for_what_drained_from_the_faster_one(
    ledger: ScriptLedger, clock: Clock
) -> None:
    fast = bucket(11, burst=100, name="tpm")
    await ledger.put(lanes=[lane("lane", fast)])
    await admitted(ledger, request(1, tokens=100))
    clock.now_us += 5 * MINUTE
    await admitted(ledger, request(2, tokens=55))
    slow = replace(fast, amount=7)
    await ledger.put(lanes=[lane("lane", slow)])
    await admitted(ledger, request(3, tokens=0))
    await ledger.settle(settled(1, tokens=0))
    assert await used(ledger) == 100


async def test_a_limit_learned_low_never_grows_beyond_what_was_configured(ledger: ScriptLedger) -> None:
    await ledger.put(lanes=[lane("lane", bucket(100))])
    said = Observation(name="rpm", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, period_us=MINUTE)
    capacities = []
    for told in (50, 1000):
        await ledger.record("lane", observations=[replace(said, limit=told)])
        capacities.append((await ledger.lanes(["lane"]))[0].limits[0].capacity)
    assert capacities == [50, 100]


async def test_what_a_configured_lane_has_learned_survives_a_change_of_something_else(ledger: ScriptLedger) -> None:
    await ledger.put(lanes=[lane(), lane("half", window(5))])
    said = Observation(
        name="tpm", metric=Metric.TOKENS, kind=LimitKind.BUCKET, period_us=MINUTE, limit=10, remaining=10
    )
    for name in ("lane", "half"):
        await ledger.record(name, observations=[said])
    await ledger.put(lanes=[lane("other")])
    for number, name in enumerate(("lane", "half")):
        answer = await denied(ledger, request(number, name, tokens=11))
        assert (answer.binding.reason, answer.binding.limit) == (Reason.NEVER_FITS, "tpm")


def test_a_bucket_that_never_drains_is_refused() -> None:
    with pytest.raises(LedgerConfigError, match="never drain"):
        lane_entry(lane("lane", bucket(0, burst=5)))


@pytest.mark.parametrize("kind", [LimitKind.BUCKET, LimitKind.FIXED])
def test_an_observation_without_a_period_is_left_out(kind: LimitKind) -> None:
    seen = Observation(name="rpm", metric=Metric.REQUESTS, kind=kind, period_us=0, limit=10)
    assert observation_numbers(seen) is None


def test_an_observation_that_cannot_be_counted_exactly_is_left_out() -> None:
    seen = Observation(
        name="rpd", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, period_us=86_399_999_999, limit=2**40 - 1
    )
    assert observation_numbers(seen) is None


async def test_a_fair_lane_with_an_empty_limit_admits_what_needs_nothing_of_it(ledger: ScriptLedger) -> None:
    await ledger.put(lanes=[lane("lane", window(0, name="tpm"), fair=True)])
    await admitted(ledger, request(1, principal="someone", pool="pool"))


async def test_settling_an_unknown_reservation_twice_moves_the_cell_once(ledger: ScriptLedger) -> None:
    first = await ledger.settle(settled(1, cost=5))
    again = await ledger.settle(settled(1, cost=5))
    assert again.stamp.seq == first.stamp.seq == 1


@pytest.mark.parametrize(
    ("lanes", "shared", "own"),
    [(("lane", "lane"), (), ()), (("lane",), ("budget",), ("budget",)), (("lane",), ("budget", "budget"), ())],
)
async def test_nothing_is_held_twice_for_one_request(
    ledger: ScriptLedger, lanes: tuple[str, ...], shared: tuple[str, ...], own: tuple[str, ...]
) -> None:
    await ledger.put(lanes=[lane("lane", in_flight(1))], scopes=[budget(100)])
    offer = Candidate(lanes=lanes, scopes=own)
    with pytest.raises(LedgerConfigError, match="twice"):
        await ledger.reserve(ReserveRequest(rid=b"r", candidates=(offer,), scopes=shared))


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 201])
async def test_an_id_that_no_record_can_hold_is_refused_before_it_is_sent(ledger: ScriptLedger, name: str) -> None:
    for asked in (request(1, name), request(1, scopes=(name,))):
        with pytest.raises(LedgerConfigError, match="one line"):
            await ledger.reserve(asked)


async def test_a_request_without_a_price_is_counted_in_the_period_that_it_was_charged_to(
    ledger: ScriptLedger, clock: Clock
) -> None:
    await ledger.put(lanes=[lane()], scopes=[budget(100, hard=False)])
    await admitted(ledger, request(1, scopes=("budget",), cost=-1, lease_us=DAY))
    clock.now_us += DAY
    await admitted(ledger, request(2, scopes=("budget",), cost=1))
    await ledger.settle(settled(1, cost=-1))
    assert (await ledger.scopes(["budget"]))[0].unpriced_requests == 0


def test_a_script_refuses_more_work_than_its_header_allows(engine: LocalEngine) -> None:
    engine.run_now("open", [1])
    engine.run_now("record", ["l:cools", MINUTE])
    cools = Offer(("cools",))
    too_many = [
        Wish(offers=(cools,) * 65), Wish(shared=tuple("abcdefghi")), Wish(offers=(Offer(tuple("abcdefg")),)),
        Wish(offers=(Offer(own=tuple("abcde")),)), Wish(offers=(cools, Offer(tuple("abcdefg")))),
        Wish(offers=(cools, Offer(own=tuple("abcde")))),
    ]  # fmt: skip
    assert [engine.run_now("reserve", wish.reserve().args)[0] for wish in too_many] == [Code.BAD_ARGUMENT] * 6
    as_many = Wish(offers=(cools,) * 63 + (Offer(tuple("abcdef")),)).reserve()
    assert engine.run_now("reserve", as_many.args)[0] == Code.ADMITTED


async def test_staging_nothing_is_refused_and_is_no_failure(engine: LocalEngine) -> None:
    engine.run_now("open", [1])
    engine.run_now("configure", ["begin", 7])
    assert engine.run_now("configure", ["stage", 7])[0] == Code.BAD_ARGUMENT


async def test_a_lane_that_cools_still_says_that_a_request_never_fits_or_waits_longer(
    ledger: ScriptLedger, clock: Clock
) -> None:
    await ledger.put(lanes=[lane("lane", window(1, HOUR), window(10, name="tpm"))])
    first = await admitted(ledger, request(1))
    await ledger.record("lane", blocked_for_us=SECOND)
    waits = await denied(ledger, request(2))
    window_ends = first.stamp.now_us - first.stamp.now_us % HOUR + HOUR
    assert (waits.binding.reason, waits.binding.retry_at_us) == (Reason.LIMIT, window_ends)
    assert (await denied(ledger, request(3, tokens=11))).binding.reason is Reason.NEVER_FITS
    clock.now_us = window_ends
    await admitted(ledger, request(4))


async def test_failures_after_a_success_are_a_row_of_their_own(ledger: ScriptLedger, clock: Clock) -> None:
    await ledger.put(lanes=[LaneConfig(id="lane", breaker=Breaker(failures=2, window_us=10 * SECOND))])
    ends = [(0, Outcome.FAILURE), (1, Outcome.SUCCESS), (8, Outcome.FAILURE), (2, Outcome.FAILURE)]
    for number, (seconds, outcome) in enumerate(ends):
        clock.advance(seconds * SECOND)
        await admitted(ledger, request(number))
        await ledger.settle(settled(number, outcome=outcome, failed_lanes=1))
    assert (await denied(ledger, request(9))).binding.reason is Reason.BREAKER_OPEN


@pytest.mark.parametrize(("remaining", "counted"), [(900, 0), (100, 0), (30, 70), (0, 100)])
async def test_what_others_use_of_a_larger_limit_leaves_room_in_a_smaller_one(
    ledger: ScriptLedger, remaining: int, counted: int
) -> None:
    await ledger.put(lanes=[lane("lane", window(100))])
    said = Observation(
        name="rpm", metric=Metric.REQUESTS, kind=LimitKind.FIXED, period_us=MINUTE, limit=1000, remaining=remaining
    )
    await ledger.record("lane", observations=[said])
    assert await used(ledger) == counted


async def test_a_calendar_that_ended_is_asked_for_when_a_header_brings_its_limit_back() -> None:
    cell = await support.local_cell(lane("lane", support.calendar(1000)))
    lower = Observation(
        name="rpd", metric=Metric.REQUESTS, kind=LimitKind.FIXED, period_us=DAY, limit=500, remaining=100
    )
    await cell.record("lane", observations=[lower])
    cell.time.advance(60 * DAY)
    await cell.record("lane", observations=[replace(lower, limit=1000, remaining=0)])
    assert (await cell.deny(support.wish())).binding.reason is Reason.LIMIT


async def test_words_made_for_other_lanes_are_not_those_of_a_candidate(ledger: ScriptLedger) -> None:
    await ledger.put(lanes=[lane("mine", window(5)), lane("others", window(5))])
    words = place_words(("others",), ())
    candidate = Candidate(lanes=("mine",), words=words)
    await ledger.reserve(ReserveRequest(rid=b"1", candidates=(candidate,)))
    assert [state.in_flight for state in await ledger.lanes(["mine", "others"])] == [1]


@pytest.mark.parametrize("lanes", [(), ("a", "a"), ("two\nlines",), ("",), tuple("abcdefg")])
def test_words_of_lanes_that_no_script_takes_are_not_made(lanes: tuple[str, ...]) -> None:
    with pytest.raises(LedgerConfigError):
        place_words(lanes, ())
