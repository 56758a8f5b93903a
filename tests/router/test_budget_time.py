"""Budgets and the passing of time, on a clock of the test's own: periods in their zones, and rules of suspense."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.cost_controller import CostController
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.recorded_costs import RecordedCosts
from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.accounting import Admission, Candidate, Charge, ReserveRequest, Settlement
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.serving.budgets import DeclaredBudgets

pytestmark = pytest.mark.asyncio(loop_scope="package")
LEASE_US = 30_000_000


@dataclass(slots=True)
class Desk:
    """A cost controller over a ledger whose clock is `now`."""

    now: datetime
    ledger: ScriptLedger
    controller: CostController

    async def hold(self, scope: str, dollars: str) -> bytes:
        """Hold dollars in a budget, as a request does; they must fit."""
        rid, amount = new_rid(), int(Decimal(dollars) * 10**9)
        charge = Charge(expected_nanousd=amount, bound_nanousd=amount)
        candidates = (Candidate(lanes=("x:test",), charge=charge),)
        asked = ReserveRequest(rid=rid, scopes=(scope,), candidates=candidates, lease_us=LEASE_US)
        assert isinstance(await self.ledger.reserve(asked), Admission)
        return rid

    async def settle(self, rid: bytes, dollars: str) -> None:
        """Book what it cost."""
        cost = int(Decimal(dollars) * 10**9)
        await self.ledger.settle(Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=cost))

    async def pass_time(self, **time: float) -> None:
        """Let time pass, and what is due happen."""
        self.now += timedelta(**time)
        await self.ledger.sweep()


@asynccontextmanager
async def desk(now: datetime) -> AsyncIterator[Desk]:
    """A desk whose clock begins at `now`."""
    times = [now]
    ledger = ScriptLedger(LocalEngine(clock_us=lambda: int(made.now.timestamp() * 1e6)))
    catalogue = Catalogue(PriceBook())

    async def started() -> None:
        """It is."""

    async def quote(intent: RequestIntent, provider_id: str | None, key_id: str | None) -> None:
        """Nothing is known of prices."""

    async def find(request_id: str) -> None:
        """Nothing was served."""

    controller = CostController(
        catalogue, ledger, DeclaredBudgets(catalogue, ledger, InMemoryStateStore()), TokenEstimator(), quote=quote,
        held_in=lambda **_: (), find=find, recorded=RecordedCosts(InMemoryStateStore()),
        started=started, defer=lambda work: work, emit=lambda *_, **__: None,
        now_us=lambda: int(made.now.timestamp() * 1e6),
    )  # fmt: skip
    made = Desk(times[0], ledger, controller)
    await ledger.open()
    yield made
    await ledger.close()


@pytest.mark.parametrize(
    ("period", "before", "until", "after"),
    [
        ("hourly", "2026-11-21T10:59", "2026-11-21T11:00", "2026-11-21T12:00"),
        ("daily", "2026-11-21T23:59", "2026-11-22T00:00", "2026-11-23T00:00"),
        ("weekly", "2026-11-22T23:59", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("monthly", "2026-02-28T23:59", "2026-03-01T00:00", "2026-04-01T00:00"),
        ("monthly", "2027-12-31T23:59", "2028-01-01T00:00", "2028-02-01T00:00"),
        ("daily", "2027-03-13T23:59", "2027-03-14T00:00", "2027-03-15T00:00"),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Apia"])
async def test_a_period_ends_on_its_calendar_and_begins_with_nothing_spent(
    period: str, before: str, until: str, after: str, zone: str
) -> None:
    def at(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)

    async with desk(at(before)) as made:
        budget = await made.controller.create_budget("global", 5, period, timezone=zone)
        await made.settle(await made.hold(budget.id, "4"), "3.5")
        open_one = await made.hold(budget.id, "1")
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.held, status.resets_at) == (Decimal("3.5"), Decimal(1), at(until))
        made.now = at(until)
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.held, status.free) == (Decimal(0), Decimal(0), Decimal(5))
        await made.settle(await made.hold(budget.id, "5"), "2")
        await made.settle(open_one, "1.25")  # belongs to the period in which it was held
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.held, status.resets_at) == (Decimal(2), Decimal(0), at(after))


async def test_a_total_budget_never_resets() -> None:
    async with desk(datetime(2026, 11, 21, tzinfo=UTC)) as made:
        budget = await made.controller.create_budget("global", 5, "total")
        await made.settle(await made.hold(budget.id, "4"), "4")
        await made.pass_time(days=4000)
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.resets_at) == (Decimal(4), None)


@pytest.mark.parametrize(
    ("rule", "settled", "suspense"), [("charge", "3", "0"), ("refund", "0", "0"), ("hold", "0", "3")]
)
async def test_what_a_dead_process_held_waits_in_suspense_and_then_follows_the_rule(
    rule: str, settled: str, suspense: str
) -> None:
    async with desk(datetime(2026, 11, 21, tzinfo=UTC)) as made:
        options: dict[str, Any] = {"suspense": rule, "suspense_after_seconds": 120}
        budget = await made.controller.create_budget("global", 5, "total", **options)
        rid = await made.hold(budget.id, "3")
        await made.pass_time(seconds=31)
        status = await made.controller.get_budget_status(budget.id)
        assert (status.held, status.suspense, status.free) == (Decimal(0), Decimal(3), Decimal(2))
        await made.pass_time(seconds=121)
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.suspense) == (Decimal(settled), Decimal(suspense))
        await made.settle(rid, "2.5")  # it was alive after all: the truth replaces the rule
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.suspense) == (Decimal("2.5"), Decimal(0))


async def test_another_period_goes_on_with_what_was_counted_where_the_two_overlap() -> None:
    async with desk(datetime(2026, 11, 21, 10, 30, tzinfo=UTC)) as made:
        budget = await made.controller.create_budget("global", 5, "hourly", name="b")
        await made.settle(await made.hold(budget.id, "2"), "2")
        await made.controller.update_budget(budget.id, period="daily")
        status = await made.controller.get_budget_status(budget.id)
        assert (status.settled, status.resets_at) == (Decimal(2), datetime(2026, 11, 22, tzinfo=UTC))
        await made.pass_time(hours=3)
        await made.settle(await made.hold(budget.id, "3"), "3")
        assert (await made.controller.get_budget_status(budget.id)).settled == Decimal(5)


async def test_a_repeat_within_a_day_books_nothing() -> None:
    async with desk(datetime(2026, 11, 21, tzinfo=UTC)) as made:
        budget = await made.controller.create_budget("global", 5, "total")
        for hours in (0, 1, 22):
            await made.pass_time(hours=hours)
            await made.controller.update_spending(budget.id, 1, idempotency_key="invoice")
        assert (await made.controller.get_budget_status(budget.id)).settled == Decimal(1)
