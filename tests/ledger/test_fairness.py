"""Principals of one scarce pool get their max-min shares: simulated time over the real scripts, and real processes."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from random import Random

import msgspec
import pytest

from apikeyrouter.domain.models.accounting import Denial, Limit, LimitKind, Outcome, Reason, ReserveRequest
from apikeyrouter.infrastructure.ledger.arguments import reserve_args, settle_args
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.serving.claims import CLAIM_EVERY_US, claim_us
from tests.ledger.processes import PROCESSES, Share, eight_processes, ledger_at, take_turns
from tests.ledger.support import (
    SECOND,
    START_US,
    LocalCell,
    bucket,
    cell_key,
    configure,
    in_flight,
    lane,
    local_cell,
    new_rid,
    set_virtual_now,
    used,
    window,
    wish,
)
from tests.servers import Server

TENANTS = tuple(f"tenant {number}" for number in range(8))
LOADS = dict(zip(TENANTS, (1, 1, 1, 1, 1, 1, 1, 10), strict=True))
FAIR = 0.97
SECONDS = 40
SERVICE_US = 4 * SECOND
WAITING_MAX = 12
"""A tenant gives up what comes when so many of its requests wait."""


@dataclass
class Traffic:
    """Tenants that offer regular loads, and try again when they are told to: a discrete-event simulation.

    `demands` in requests a second. Every request that was denied comes back at its retry time, and a little later.
    """

    cell: LocalCell
    demands: Mapping[str, float]
    weights: Mapping[str, int] = field(default_factory=dict)
    holds: bool = False
    random: Random = field(default_factory=lambda: Random(7))
    offered: dict[str, int] = field(default_factory=dict)
    admitted: dict[str, int] = field(default_factory=dict)
    reasons: set[int] = field(default_factory=set)
    _waiting: dict[str, int] = field(default_factory=dict)
    _claimed: dict[str, int] = field(default_factory=dict)
    _events: list[tuple[int, int, str, str, bytes]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)

    def run(self, seconds: int, *, warm_up: int) -> None:
        """Let it go on; what is counted is counted after the warm-up."""
        start = self.cell.time.now_us
        for tenant, demand in self.demands.items():
            self._at(start + int(self.random.random() / demand * SECOND), "arrive", tenant)
        while self._events[0][0] < start + (warm_up + seconds) * SECOND:
            self.cell.time.now_us, _, kind, tenant, rid = heapq.heappop(self._events)
            if self.cell.time.now_us < start + warm_up * SECOND:
                self.offered, self.admitted = {}, {}
            getattr(self, f"_{kind}")(tenant, rid)

    def _at(self, when_us: int, kind: str, tenant: str, rid: bytes = b"") -> None:
        heapq.heappush(self._events, (when_us, next(self._order), kind, tenant, rid))

    def _arrive(self, tenant: str, _: bytes) -> None:
        demand, now = self.demands[tenant], self.cell.time.now_us
        self._at(now + int(self.random.uniform(0.8, 1.2) / demand * SECOND), "arrive", tenant)
        self.offered[tenant] = self.offered.get(tenant, 0) + 1
        if self._waiting.get(tenant, 0) < WAITING_MAX:
            self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
            self._ask(tenant, new_rid())

    def _ask(self, tenant: str, rid: bytes) -> None:
        now = self.cell.time.now_us
        asked = wish(rid=rid, principal=tenant, weight=self.weights.get(tenant, 1), pool="pool", lease_us=3600 * SECOND)
        reply = self.cell.engine.run_now("reserve", reserve_args(asked), pool="pool")
        if reply[0] == Code.ADMITTED:
            self._waiting[tenant] -= 1
            self.admitted[tenant] = self.admitted.get(tenant, 0) + 1
            if self.holds:
                self._at(now + int(self.random.uniform(0.5, 1.5) * SERVICE_US), "finish", tenant, rid)
            return
        reason, retry_at = reply[6], reply[9]
        assert isinstance(reason, int)
        assert isinstance(retry_at, int)
        self.reasons.add(reason)
        self._claim(tenant, retry_at - now)
        self._at(max(now, retry_at) + self.random.randrange(1_000, 100_000), "ask", tenant, rid)

    def _claim(self, tenant: str, wait_us: int) -> None:
        """As processes do: not more often than every so long."""
        now = self.cell.time.now_us
        if now >= self._claimed.get(tenant, 0) + CLAIM_EVERY_US:
            self._claimed[tenant] = now
            self.cell.engine.run_now("claim", [tenant, claim_us(wait_us)], pool="pool")

    def _finish(self, _: str, rid: bytes) -> None:
        self.cell.engine.run_now("settle", settle_args(used(rid, outcome=Outcome.NEUTRAL)))


def max_min(capacity: float, demands: Mapping[str, float], weights: Mapping[str, int]) -> dict[str, float]:
    """Nobody gets more than asked; what is left over is shared by weight among those who want more."""
    shares: dict[str, float] = {}
    open_ones = dict(demands)
    while open_ones:
        level = (capacity - sum(shares.values())) / sum(weights.get(name, 1) for name in open_ones)
        content = [name for name, demand in open_ones.items() if demand <= level * weights.get(name, 1)]
        if not content:
            return shares | {name: level * weights.get(name, 1) for name in open_ones}
        shares |= {name: open_ones.pop(name) for name in content}
    return shares


def limit_of(kind: LimitKind, per_second: int) -> Limit:
    if kind is LimitKind.BUCKET:
        return bucket(per_second, SECOND, burst=2 * per_second)
    if kind is LimitKind.FIXED:
        return window(10 * per_second, 10 * SECOND)
    return in_flight(per_second * SERVICE_US // SECOND)


async def least_share(
    kind: LimitKind, capacity: int, demands: Mapping[str, float], weights: Mapping[str, int] | None = None
) -> float:
    """The worst ratio of what a principal got to its max-min share."""
    cell = await local_cell(lane("lane", limit_of(kind, capacity), fair=True))
    traffic = Traffic(cell, demands, weights or {}, holds=kind is LimitKind.CONCURRENCY)
    traffic.run(SECONDS, warm_up=10)
    shares = max_min(capacity * SECONDS, traffic.offered, weights or {})
    return min(traffic.admitted[name] / shares[name] for name in demands)


@pytest.mark.parametrize("scarcity", [4, 8, 12], ids=["less-than-all-need", "as-much-as-seven-need", "room-for-one"])
@pytest.mark.parametrize(
    ("kind", "capacity"), [(LimitKind.BUCKET, 24), (LimitKind.FIXED, 24), (LimitKind.CONCURRENCY, 32)]
)
async def test_a_principal_with_ten_times_the_load_leaves_the_others_their_max_min_shares(
    kind: LimitKind, capacity: int, scarcity: int
) -> None:
    demands = {tenant: load * capacity / scarcity for tenant, load in LOADS.items()}
    assert await least_share(kind, capacity, demands) >= FAIR


@pytest.mark.parametrize(
    ("kind", "capacity"), [(LimitKind.BUCKET, 24), (LimitKind.FIXED, 24), (LimitKind.CONCURRENCY, 32)]
)
async def test_principals_share_by_weight(kind: LimitKind, capacity: int) -> None:
    weights = dict(zip(TENANTS[:4], (1, 2, 3, 2), strict=True))
    demands = dict.fromkeys(weights, capacity * 0.6)
    assert await least_share(kind, capacity, demands, weights) >= FAIR


@pytest.mark.parametrize(("kind", "capacity"), [(LimitKind.BUCKET, 24), (LimitKind.FIXED, 24)])
async def test_two_greedy_principals_share_alike_what_modest_ones_leave(kind: LimitKind, capacity: int) -> None:
    demands = dict.fromkeys(TENANTS[:6], capacity / 12) | {TENANTS[6]: capacity / 3, TENANTS[7]: capacity * 2.0}
    assert await least_share(kind, capacity, demands) >= FAIR


@pytest.mark.parametrize("kind", [LimitKind.BUCKET, LimitKind.FIXED, LimitKind.CONCURRENCY])
async def test_a_principal_alone_has_the_whole_lane(kind: LimitKind) -> None:
    limit = limit_of(kind, 40)
    cell = await local_cell(lane("lane", limit, fair=True))
    capacity = limit.burst or limit.amount
    for _ in range(capacity):
        await cell.admit(wish(principal="alone", pool="pool"))
    assert (await cell.deny(wish(principal="alone", pool="pool"))).binding.reason is Reason.LIMIT


async def test_a_principal_without_a_name_is_not_gated() -> None:
    cell = await local_cell(lane("lane", in_flight(16), fair=True))
    await cell.admit(wish(principal="modest", pool="pool"))
    for _ in range(15):
        await cell.admit(wish(pool="pool"))


async def test_who_is_served_while_there_is_plenty_does_not_count() -> None:
    cell = await local_cell(lane("lane", in_flight(16), fair=True))
    for _ in range(7):
        await cell.admit(greedily())
    assert fair_counters(cell) == {}
    await cell.admit(greedily())
    assert set(fair_counters(cell)) == {b"v", b"cgreedy", b"tgreedy"}


@pytest.mark.parametrize(
    ("limit", "greedily_admitted", "stay_us"),
    [(in_flight(16), 7, SECOND // 4), (bucket(16, 3600 * SECOND, burst=16), 6, 10 * SECOND)],
    ids=["in-flight", "bucket"],
)
async def test_who_is_not_present_holds_nothing_back(limit: Limit, greedily_admitted: int, stay_us: int) -> None:
    """Room that would be lost is kept for a moment, what can be used as well later for longer."""
    cell = await local_cell(lane("lane", limit, fair=True))
    for _ in range(7):
        await cell.admit(greedily())
    await cell.admit(wish(principal="modest", pool="pool", lease_us=3600 * SECOND))
    for _ in range(greedily_admitted):
        await cell.admit(greedily())
    cell.time.advance(stay_us - 1)
    assert (await cell.deny(greedily())).binding.reason is Reason.FAIR_SHARE
    cell.time.advance(1)
    await cell.admit(greedily())


async def test_who_asks_in_vain_is_next_and_its_claim_ends_when_it_is_served_or_does_not_come() -> None:
    cell = await local_cell(lane("lane", in_flight(1), fair=True))
    modest = wish(principal="modest", pool="pool", lease_us=3600 * SECOND)

    async def is_served(request: ReserveRequest) -> bool:
        answer = await cell.reserve(msgspec.structs.replace(request, rid=new_rid()))
        if isinstance(answer, Denial):
            assert answer.binding.reason is Reason.FAIR_SHARE
            return False
        await cell.settle(used(answer.rid, outcome=Outcome.NEUTRAL))
        return True

    async def turns_of_greedy() -> int:
        """How often in a row, at most ten."""
        for turn in range(10):
            if not await is_served(greedily()):
                return turn
        return 10

    held = await cell.admit(greedily())
    assert (await cell.deny(modest)).binding.reason is Reason.LIMIT
    await cell.settle(used(held.rid, outcome=Outcome.NEUTRAL))
    assert await turns_of_greedy() == 10, "nobody else says that it waits"
    await cell.claim(modest, stay_us=SECOND)
    assert await turns_of_greedy() == 3, "it starts level, and who leads may lead by two"
    assert await is_served(modest)
    cell.time.advance(SECOND // 4)
    assert await turns_of_greedy() == 10, "who is served waits no more"
    await cell.claim(modest, stay_us=SECOND)
    await cell.claim(modest, stay_us=1)
    assert await turns_of_greedy() < 10
    cell.time.advance(SECOND - 1)
    assert not await is_served(greedily()), "a shorter claim shortens none"
    cell.time.advance(1)
    assert await is_served(greedily()), "it did not come"


async def test_claims_write_nothing_that_counts_and_end_within_ten_seconds() -> None:
    cell = await local_cell(lane("lane", in_flight(16), fair=True))
    before = cell.image()
    await cell.claim(greedily(), stay_us=3600 * SECOND)
    assert cell.image() == before
    assert set(fair_counters(cell)) == {b"cgreedy", b"tgreedy"}
    cell.time.advance(20 * SECOND)
    await cell.claim(wish(principal="modest", pool="pool"), stay_us=SECOND)
    assert set(fair_counters(cell)) == {b"cmodest", b"tmodest"}


async def test_many_idle_principals_leave_a_few_at_a_time_and_bind_nobody_for_long() -> None:
    cell = await local_cell(lane("lane", bucket(1000, SECOND), fair=True))
    for number in range(100):
        await cell.admit(wish(principal=f"once {number}", pool="pool"))
    cell.time.advance(11 * SECOND)
    for _ in range(1000):
        await cell.admit(greedily())


async def test_a_newcomer_starts_level_with_who_was_served_least_and_has_no_claim_on_the_past() -> None:
    cell = await local_cell(lane("lane", bucket(32, SECOND), fair=True))
    for _ in range(200):
        cell.time.advance(SECOND // 32)
        await cell.admit(greedily())
    got = {"greedy": 0, "new": 0}
    for turn in range(320):
        cell.time.advance(SECOND // 32)
        for name in ("greedy", "new") if turn % 2 else ("new", "greedy"):
            answer = await cell.reserve(wish(principal=name, pool="pool"))
            got[name] += not hasattr(answer, "binding")
    assert abs(got["new"] - got["greedy"]) <= 0.1 * got["new"]


async def test_a_denied_principal_has_written_nothing() -> None:
    cell = await local_cell(lane("lane", in_flight(16), fair=True))
    for number in range(15):
        await cell.admit(wish(principal="modest", pool="pool") if number == 7 else greedily())
    before = cell.image() | {"F": fair_counters(cell)}
    assert (await cell.deny(greedily())).binding.reason is Reason.FAIR_SHARE
    assert cell.image() | {"F": fair_counters(cell)} == before


async def test_pools_are_fair_each_for_itself() -> None:
    cell = await local_cell(lane("lane", in_flight(16), fair=True))
    await cell.admit(wish(principal="modest", pool="other"))
    for _ in range(15):
        await cell.admit(greedily())


async def test_eight_processes_share_a_scarce_bucket_on_a_real_server(valkey_server: Server) -> None:
    rounds, per_round = 250, 8
    valkey_server.flush()
    with valkey_server.client() as client:
        set_virtual_now(client, START_US)
    ledger = ledger_at(valkey_server.url)
    await ledger.open()
    await configure(ledger, lane("lane", bucket(per_round * 10, SECOND, burst=per_round * 10), fair=True))
    tasks = [
        Share(
            url=valkey_server.url, number=number, offered=1 if number < PROCESSES - 1 else 10, rounds=rounds,
            start_us=START_US, round_us=SECOND // 10, backlog_max=20,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    with eight_processes() as pool:
        counted = list(pool.map(take_turns, tasks))
    await ledger.close()
    after_warm_up = [sum(rounds_of[50:]) for rounds_of in counted]
    share = per_round * (rounds - 50) / PROCESSES
    assert min(after_warm_up) >= FAIR * share
    assert sum(after_warm_up) >= 0.99 * share * PROCESSES


def greedily() -> ReserveRequest:
    return wish(principal="greedy", pool="pool", lease_us=3600 * SECOND)


def fair_counters(cell: LocalCell) -> dict[bytes, bytes]:
    scores = cell.engine._lua.globals()[b"scores"](cell_key("F:pool").encode())
    return {bytes(member): repr(float(score)).encode() for member, score in scores.items()}
