"""Whatever is done, in whatever order and however often: the cell answers as the oracle, and its invariants hold.

Hypothesis makes up the histories and shrinks those that fail. Every reply is held against the oracle; the invariants
(`accounting.md` §3, I1–I9) are checked from what the cell itself shows and from what callers know, without the oracle.
`AKR_LONG=1` runs many more histories.
"""

import asyncio
import os
from bisect import bisect_right
from collections.abc import Coroutine
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from apikeyrouter.domain.models.accounting import (
    Admission,
    Breaker,
    Candidate,
    Charge,
    Denial,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Observation,
    Outcome,
    Period,
    ReserveRequest,
    Result,
    ScopeConfig,
    Settlement,
    SuspenseRule,
    UnpricedRule,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerProtocolError, StaleConfigError
from apikeyrouter.infrastructure.ledger.calendars import boundaries, calendar_number
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from tests.ledger.cells import VirtualRedis, Witnessed, ledger_over
from tests.ledger.support import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Clock,
    bucket,
    budget,
    calendar,
    in_flight,
    lane,
    redis_image,
    sliding,
    window,
)
from tests.servers import Server

LONG = os.environ.get("AKR_LONG") == "1"
PROFILE = settings(
    max_examples=400 if LONG else 60,
    stateful_step_count=80 if LONG else 40,
    phases=(Phase.generate, Phase.shrink) if os.environ.get("AKR_SHRINK") == "1" else (Phase.generate,),
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
ZONE = "Europe/Berlin"
STARTS = (
    1_800_000_000_000_000,  # 2027-01-15 08:00 UTC
    1_806_188_399_000_000,  # 2027-03-27 22:59:59 UTC: the last second before Berlin's day of 23 hours
    1_824_938_399_000_000,  # 2027-10-30 21:59:59 UTC: before its day of 25 hours
    1_830_294_000_000_000 - SECOND,  # the last second of 2027 in Berlin
)
STEADY_BURST, STEADY_RATE = 3, Fraction(6, MINUTE)
"""The lane whose limits never change."""
STEADY = lane("steady", bucket(6, MINUTE, burst=STEADY_BURST), in_flight(9))
KEYS = ("key/1", "key/2")
EVERYWHERE = ("all", "day")
"""Scopes that every request names and that nobody changes: they say what was booked in all, and in which day."""
ALWAYS = (
    ScopeConfig(id="all", limit_nanousd=10**9, hard=False, period=Period.TOTAL, suspense=SuspenseRule.HOLD),
    ScopeConfig(
        id="day", limit_nanousd=10**9, hard=False, period=Period.DAILY, timezone=ZONE, suspense=SuspenseRule.HOLD
    ),
)
LANES = ("steady", "org", *KEYS, "unlearned")
SCOPES = (*EVERYWHERE, "team", "client")
T = TypeVar("T")

limits_of_org = st.lists(
    st.sampled_from(
        [
            bucket(5, MINUTE), bucket(7, 10 * SECOND, burst=3), bucket(3, SECOND), window(4), window(2, 7 * SECOND),
            sliding(3), sliding(6, HOUR), calendar(4, timezone="America/New_York", name="rpm"),
            bucket(100, MINUTE, name="tpm"), bucket(1_499_977, DAY, name="tpm", burst=90), window(60, name="tpm"),
            sliding(70, name="tpm"), Limit(name="otpm", metric=Metric.OUTPUT_TOKENS, kind=LimitKind.BUCKET, amount=40,
                                           refund=False),
            calendar(3, Period.HOURLY, timezone="Asia/Kathmandu"), bucket(90, HOUR, name="spend"),
        ]
    ),
    max_size=3, unique_by=lambda limit: limit.name,
)  # fmt: skip
breakers = st.sampled_from(
    [
        None,
        Breaker(failures=1, open_us=SECOND),
        Breaker(failures=2, window_us=SECOND, open_us=SECOND, open_max_us=MINUTE),
    ]
)
teams = st.builds(
    ScopeConfig,
    id=st.sampled_from(["team", "client"]),
    limit_nanousd=st.sampled_from([0, 60, 100, 1000]),
    hard=st.booleans(),
    period=st.sampled_from(list(Period)),
    timezone=st.sampled_from(["UTC", ZONE, "America/New_York"]),
    unpriced=st.sampled_from(list(UnpricedRule)),
    flat_nanousd=st.sampled_from([0, 15]),
    suspense=st.sampled_from(list(SuspenseRule)),
    suspense_after_us=st.sampled_from([0, SECOND, HOUR]),
)
charges = st.builds(
    Charge,
    input_tokens=st.sampled_from([0, 1, 20, 60]),
    output_tokens=st.sampled_from([0, 10, 41]),
    metered_tokens=st.sampled_from([None, 0, 30]),
    expected_nanousd=st.sampled_from([-1, 0, 10, 40]),
    bound_nanousd=st.sampled_from([-1, 0, 30, 60]),
)
candidates = st.builds(
    lambda key, others, scopes, charge: Candidate(lanes=(key, *others), scopes=scopes, charge=charge),
    st.sampled_from(KEYS),
    st.sampled_from([(), ("steady",), ("org",), ("steady", "org"), ("unlearned",)]),
    st.sampled_from([(), (), ("client",)]),
    charges,
)
leases = st.sampled_from([0, 1, SECOND, 30 * SECOND, HOUR, DAY])
observations = st.lists(
    st.builds(
        Observation,
        name=st.sampled_from(["rpm", "tpm"]),
        metric=st.just(Metric.REQUESTS),
        kind=st.sampled_from([LimitKind.BUCKET, LimitKind.FIXED]),
        period_us=st.just(MINUTE),
        limit=st.sampled_from([0, 3, 50]),
        remaining=st.sampled_from([None, 0, 2]),
        reset_us=st.sampled_from([0, 5 * SECOND]),
    ),
    max_size=2,
)
steps = st.sampled_from([1, 999, 100_000, SECOND, 3 * SECOND, 20 * SECOND, MINUTE, HOUR, DAY, 31 * DAY])


@dataclass(frozen=True, slots=True)
class Wish:
    """What a reserve asks for, without its id."""

    offers: list[Candidate]
    team: tuple[str, ...]
    lease_us: int
    principal: str
    versions_behind: int | None


wishes = st.builds(
    Wish,
    offers=st.lists(candidates, min_size=1, max_size=3),
    team=st.sampled_from([(), ("team",)]),
    lease_us=leases,
    principal=st.sampled_from(["", "", "a", "b"]),
    versions_behind=st.sampled_from([None] * 8 + [0, 1]),
)


@dataclass(slots=True)
class Told:
    """What the caller of one reservation knows about it."""

    request: ReserveRequest
    admitted_us: int = 0
    candidate: Candidate | None = None
    probe: bool = False
    came_back: bool = False
    """The request was never sent: what it counted was given back."""
    settled: bool = False


class CellMachine(RuleBasedStateMachine):
    """All transitions of one cell, on a real server under a virtual clock."""

    server: ClassVar[Server]
    runner: ClassVar[asyncio.Runner]
    rids = Bundle("rids")
    unborn = Bundle("unborn")

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[bytes, Told] = {}
        self.booked: list[tuple[int, int]] = []
        """Per settlement: when its reservation was admitted, and what it booked in the scopes of `EVERYWHERE`."""
        self.clock = Clock()
        self.server.flush()
        self.redis = VirtualRedis(self.server.unix_url or self.server.url, self.clock)
        self.witness = Witnessed(self.redis, self.clock)
        self.ledger: ScriptLedger = ledger_over(self.witness)
        self.do(self.ledger.open())
        self.written_us = 0

    def teardown(self) -> None:
        """Let all leases run out: nothing may stay open; then look once more, and leave."""
        self.clock.now_us = max(self.clock.now_us, self.witness.oracle.last_now) + 2 * DAY
        while self.do(self.ledger.sweep()):
            pass
        assert self.do(self.ledger.reservations()) == [], "I5: a reservation outlived its lease and a sweep"
        self.counters_are_what_reservations_say()
        self.nothing_settled_is_lost_or_doubled()
        self.what_a_bucket_admitted_is_burst_plus_rate()
        self.do(self.ledger.close())

    def do(self, work: Coroutine[object, object, T]) -> T:
        return self.runner.run(work)

    def expect_refusal(self, work: Coroutine[object, object, T]) -> T | None:
        """The answer, or None where the ledger refuses: what it refuses is the oracle's to judge."""
        try:
            return self.do(work)
        except (LedgerConfigError, LedgerProtocolError, StaleConfigError):
            return None

    # --- configuration -----------------------------------------------------------------------------------------------

    @initialize(start=st.sampled_from(STARTS), org=limits_of_org, breaker=breakers, team=teams)
    def begin(self, start: int, org: list[Limit], breaker: Breaker | None, team: ScopeConfig) -> None:
        self.clock.now_us = start
        keys = tuple(LaneConfig(id=key, limits=(in_flight(6),), breaker=breaker, fair=True) for key in KEYS)
        scopes = (*ALWAYS, budget("team", 400), budget("client", 90, hard=False), team)
        self.do(self.ledger.put(lanes=(STEADY, lane("org", *org), *keys), scopes=scopes))

    @rule(data=st.data())
    def the_configuration_changes(self, data: st.DataObject) -> None:
        match data.draw(st.sampled_from(["limits", "keys", "budgets", "budgets", "everything"])):
            case "limits":
                self.limits_change(data.draw(limits_of_org), data.draw(st.booleans()))
            case "keys":
                self.keys_change(data.draw(st.sampled_from(KEYS)), data.draw(breakers), data.draw(st.integers(1, 9)))
            case "budgets":
                self.budgets_change(data.draw(teams))
            case _:
                behind = data.draw(st.sampled_from([0, 0, 1]))
                self.everything_is_replaced(data.draw(teams), data.draw(limits_of_org), behind)

    def limits_change(self, limits: list[Limit], fair: bool) -> None:
        self.do(self.ledger.put(lanes=[lane("org", *limits, fair=fair)]))

    def keys_change(self, key: str, breaker: Breaker | None, most: int) -> None:
        self.do(self.ledger.put(lanes=[LaneConfig(id=key, limits=(in_flight(most),), breaker=breaker)]))

    def budgets_change(self, team: ScopeConfig) -> None:
        self.do(self.ledger.put(scopes=[team]))

    def everything_is_replaced(self, team: ScopeConfig, limits: list[Limit], behind: int) -> None:
        version = self.ledger.stamp.config_version - behind
        lanes = (STEADY, lane("org", *limits))
        self.expect_refusal(self.ledger.replace(lanes=lanes, scopes=(*ALWAYS, team), expected_version=version))

    # --- requests ----------------------------------------------------------------------------------------------------

    @initialize(target=rids, asked=st.lists(wishes, min_size=2, max_size=5))
    def traffic_begins(self, asked: list[Wish]) -> object:
        return self.traffic(asked)

    @rule(target=rids, asked=st.lists(wishes, min_size=1, max_size=5))
    def traffic(self, asked: list[Wish]) -> object:
        made = [self.new_request(wish) for wish in asked]
        for rid in made:
            self.reserve_and_look(self.told[rid].request)
        return multiple(*made)

    @rule(target=rids, wish=wishes, times=st.integers(2, 4))
    def a_crowd(self, wish: Wish, times: int) -> object:
        """The same wish again and again, until something is full."""
        return self.traffic([wish] * times)

    @rule(target=rids, key=st.sampled_from(KEYS), step=st.sampled_from([0, SECOND, 2 * SECOND, MINUTE]))
    def a_key_fails(self, key: str, step: int) -> object:
        """Twice in a row; then it is asked for twice, perhaps when its breaker lets one probe through."""
        wish = Wish([Candidate(lanes=(key,))], (), 30 * SECOND, "", None)
        made = [self.new_request(wish) for _ in range(4)]
        for rid in made[:2]:
            self.reserve_and_look(self.told[rid].request)
            self.settle([rid], 1, 1, 5, Outcome.FAILURE, 1)
        self.clock.advance(step)
        for rid in made[2:]:
            self.reserve_and_look(self.told[rid].request)
        return multiple(*made)

    @rule(target=unborn, wish=wishes)
    def plan(self, wish: Wish) -> bytes:
        """A reserve that is still under way: other transitions of its id may come first."""
        return self.new_request(wish)

    @rule(target=rids, rid=consumes(unborn), settled_first=st.booleans())
    def end_before_it_begins(self, rid: bytes, settled_first: bool) -> bytes:
        if settled_first:
            self.settle([rid], 1, 1, 5, Outcome.SUCCESS, 0)
        self.cancel(rid)
        assert self.expect_refusal(self.ledger.reserve(self.told[rid].request)) is None
        return rid

    @rule(rid=rids)
    def reserve_again(self, rid: bytes) -> None:
        self.reserve_and_look(self.told[rid].request)

    @rule(rid=rids, index=st.integers(0, 2))
    def reassert(self, rid: bytes, index: int) -> None:
        told = self.told[rid]
        index = min(index, len(told.request.candidates) - 1)
        answer = self.expect_refusal(self.ledger.reassert(told.request, index=index))
        if answer is not None and answer.result is Result.OK:
            told.admitted_us, told.candidate = answer.stamp.now_us, told.request.candidates[index]
            told.came_back = True  # it was not admitted by a limit, so it is no evidence about one
            told.settled = False  # the cell has forgotten it: its tombstone is gone

    def new_request(self, wish: Wish) -> bytes:
        rid = b"%d\n\x00" % len(self.told)
        version = 0 if wish.versions_behind is None else self.ledger.stamp.config_version - wish.versions_behind
        request = ReserveRequest(
            rid=rid, candidates=tuple(wish.offers), scopes=(*EVERYWHERE, *wish.team), lease_us=wish.lease_us,
            config_version=version, principal=wish.principal, pool="pool" if wish.principal else "",
        )  # fmt: skip
        self.told[rid] = Told(request)
        return rid

    def reserve_and_look(self, request: ReserveRequest) -> None:
        nothing_due = not any(at <= self.now_us for at in self.witness.oracle.leases.values())
        before = redis_image(self.redis.client)
        answer = self.expect_refusal(self.ledger.reserve(request))
        if isinstance(answer, Admission) and not answer.replayed:
            told = self.told[request.rid]
            told.candidate = request.candidates[answer.index]
            told.admitted_us, told.probe = answer.stamp.now_us, answer.probe
            told.settled = told.came_back = False
            self.no_limit_is_exceeded(told.candidate, request)
        elif nothing_due:
            after = redis_image(self.redis.client)
            for name in ("C0", "C1"):  # calendars may have been supplied
                del before[name], after[name]
            assert before == after, f"I4: {answer} wrote"
        if isinstance(answer, Denial):
            assert len(answer.losses) == len(request.candidates)
            assert all(loss.retry_at_us > answer.stamp.now_us for loss in answer.losses), "a retry time that is past"

    def no_limit_is_exceeded(self, candidate: Candidate, request: ReserveRequest) -> None:
        for state in self.do(self.ledger.lanes(candidate.lanes)):
            for limit in state.limits:
                assert limit.used <= limit.capacity, f"I1: {state}"
        for scope in self.do(self.ledger.scopes((*request.scopes, *candidate.scopes))):
            if scope.hard:
                assert scope.settled + scope.held + scope.suspense <= scope.limit, f"I1: {scope}"

    # --- ends --------------------------------------------------------------------------------------------------------

    @rule(rid=rids, cost=st.sampled_from([0, 25, 40]), twice=st.booleans())
    def settle_one(self, rid: bytes, cost: int, twice: bool) -> None:
        for _ in range(1 + twice):
            self.settle([rid], 20, 10, cost, Outcome.SUCCESS, 0)

    @rule(
        rids=st.lists(rids, min_size=1, max_size=3),
        tokens=st.sampled_from([0, 20, 60]),
        output=st.sampled_from([0, 10, 90]),
        cost=st.sampled_from([-1, 0, 25, 40, 80]),
        outcome=st.sampled_from(list(Outcome)),
        failed=st.integers(0, 3),
    )
    def settle(self, rids: list[bytes], tokens: int, output: int, cost: int, outcome: Outcome, failed: int) -> None:
        page = [
            Settlement(
                rid=rid, input_tokens=tokens, output_tokens=output, cost_nanousd=cost, outcome=outcome,
                failed_lanes=failed, latency_us=20_000,
            )
            for rid in rids
        ]  # fmt: skip
        for rid, answer in zip(rids, self.do(self.ledger.settle_many(page)), strict=True):
            told = self.told[rid]
            if answer.result is Result.OK:
                assert not told.settled, "I6: a settlement was booked twice"
                assert told.candidate is not None
                expected = told.candidate.charge.expected_nanousd
                told.settled = True
                self.booked.append((told.admitted_us, 0 if expected < 0 else expected if cost < 0 else cost))

    @rule(rid=rids, sent=st.booleans(), failed=st.integers(0, 3))
    def release(self, rid: bytes, sent: bool, failed: int) -> None:
        answer = self.do(self.ledger.release(rid, sent=sent, failed_lanes=failed, latency_us=500))
        if answer.result is Result.OK and not sent:
            self.told[rid].came_back = True

    @rule(rid=rids)
    def cancel(self, rid: bytes) -> None:
        if self.do(self.ledger.cancel(rid)).result is Result.OK:
            self.told[rid].came_back = True

    @rule(rids=st.lists(rids, min_size=1, max_size=3), lease_us=leases)
    def renew(self, rids: list[bytes], lease_us: int) -> None:
        lost = self.do(self.ledger.renew(rids, lease_us=lease_us))
        still_open = {record.rid for record in self.do(self.ledger.reservations())}
        assert set(lost) == set(rids) - still_open

    @rule(rids=st.lists(rids, min_size=1, max_size=3))
    def acknowledge(self, rids: list[bytes]) -> None:
        self.do(self.ledger.acknowledge(rids))

    # --- the world ---------------------------------------------------------------------------------------------------

    @rule(step=steps, back=st.sampled_from([False, False, False, True]))
    def the_clock_moves(self, step: int, back: bool) -> None:
        self.clock.advance(-step if back else step)

    @rule(delta=st.sampled_from([-1, 0, 1]), which=st.integers(0, 5))
    def time_comes_to_an_edge(self, delta: int, which: int) -> None:
        oracle = self.witness.oracle
        edges = sorted({*oracle.leases.values(), *oracle.suspended.values(), *oracle.graves.values()})
        edges = [edge for edge in edges if edge < 2**52]
        zoned = ((Period.DAILY, ZONE), (Period.HOURLY, "Asia/Kathmandu"), (Period.MONTHLY, "America/New_York"))
        if which < len(zoned):
            self.clock.now_us = boundaries(calendar_number(*zoned[which]), self.now_us)[1] + delta
        elif edges:
            self.clock.now_us = edges[bisect_right(edges, self.now_us) % len(edges)] + delta

    @rule(data=st.data())
    def something_else_happens(self, data: st.DataObject) -> None:
        match data.draw(st.sampled_from(["headers", "clocks", "scripts", "sweep", "sweep"])):
            case "headers":
                cool = data.draw(st.sampled_from([0, 0, 2 * SECOND]))
                name, seen = data.draw(st.sampled_from(["org", "key/1", "unlearned"])), data.draw(observations)
                self.do(self.ledger.record(name, observations=seen, blocked_for_us=cool))
            case "clocks":
                self.do(self.ledger.suspect_clock(data.draw(st.sampled_from([False, False, True]))))
            case "scripts":
                self.redis.client.function_flush()
            case _:
                self.do(self.ledger.sweep())

    # --- what always holds -------------------------------------------------------------------------------------------

    @property
    def now_us(self) -> int:
        """The cell's time: it does not go back to before its last write."""
        return max(self.clock.now_us, self.witness.oracle.last_now)

    @invariant()
    def counters_are_what_reservations_say(self) -> None:
        """I2, and I3 with it: what a transition did twice would show."""
        assert self.do(self.ledger.audit(lanes=LANES, scopes=SCOPES)) == []

    @invariant()
    def time_never_runs_backwards(self) -> None:
        assert self.ledger.forgotten == 0
        assert self.witness.oracle.last_now >= self.written_us
        self.written_us = self.witness.oracle.last_now

    @invariant()
    def nothing_settled_is_lost_or_doubled(self) -> None:
        """I6 in the total scope; I9 in the daily one: each cost is in the day that admitted it, and in no other."""
        states = {state.id: state for state in self.do(self.ledger.scopes(EVERYWHERE))}
        if "all" in states:
            assert states["all"].settled == sum(amount for _, amount in self.booked), "I6"
        if "day" in states:
            day = states["day"]
            today = [amount for at, amount in self.booked if day.starts_at_us <= at < day.resets_at_us]
            assert day.settled == sum(today), "I9"

    @invariant()
    def at_most_one_probe_is_out(self) -> None:
        """I7. A candidate has one lane with a breaker."""
        open_ones = {record.rid for record in self.do(self.ledger.reservations())}
        probing = [told.candidate.lanes[0] for rid, told in self.told.items()
                   if told.probe and told.candidate and rid in open_ones]  # fmt: skip
        assert len(probing) == len(set(probing)), f"I7: {probing}"

    def what_a_bucket_admitted_is_burst_plus_rate(self) -> None:
        """I8, for all intervals that begin and end with an admission; what came back unsent does not count."""
        times = sorted(
            told.admitted_us for told in self.told.values()
            if told.candidate and "steady" in told.candidate.lanes and not told.came_back
        )  # fmt: skip
        for first, begin in enumerate(times):
            for last, end in enumerate(times[first:], first):
                assert last - first + 1 <= STEADY_BURST + STEADY_RATE * (end - begin), "I8"


def test_any_order_of_transitions_keeps_every_invariant_on_a_real_server(valkey_server: Server) -> None:
    with asyncio.Runner() as runner:
        machine = type("Machine", (CellMachine,), {"server": valkey_server, "runner": runner})
        run_state_machine_as_test(machine, settings=PROFILE)
