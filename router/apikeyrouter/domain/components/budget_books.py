"""The books of budgets: what is settled, held and free in each, how fast it goes, and what was spent elsewhere."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b

from apikeyrouter.domain.components.budget_forecast import SpendHistory
from apikeyrouter.domain.components.catalogue import BudgetRule
from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.models.accounting import (
    SHARED_SCOPES_MAX,
    Candidate,
    Charge,
    Outcome,
    ReserveRequest,
    ScopeConfig,
    ScopeState,
    Settlement,
    rid_in,
)
from apikeyrouter.domain.models.budget import BudgetInCell, BudgetScope, BudgetStatus, EnforcementMode, TimeWindow
from apikeyrouter.domain.models.cost_estimate import dollars

ELSEWHERE_LANE = "x:elsewhere"
"""The lane of what was spent outside the router: no limits, only the count."""
LEASE_US = 30_000_000


class BudgetBooks:
    """Reads the ledger's scopes as budgets, remembers how they grew, and books in them."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        period: Callable[[ScopeConfig, int], tuple[int, int | None]],
        now_us: Callable[[], int],
    ) -> None:
        self._ledger, self._period, self._now_us = ledger, period, now_us
        self._history: dict[str, SpendHistory] = {}
        self._sampled_us = 0

    def forget(self, budget_id: str) -> None:
        """The budget is gone."""
        self._history.pop(budget_id, None)

    async def sample(self, rules: Sequence[BudgetRule]) -> dict[str, ScopeState]:
        """`states` of all there are: what is first seen after that has spent nothing before."""
        states = await self.states(rules)
        self._sampled_us = self._now_us() if rules or self._sampled_us else 0
        return states

    async def states(self, rules: Sequence[BudgetRule]) -> dict[str, ScopeState]:
        """What is booked in each, as of now: one that was never used, or not since its reset, has spent nothing."""
        told = {state.id: state for state in await self._ledger.scopes([rule.scope.id for rule in rules])}
        now_us = self._now_us()
        states = {
            rule.scope.id: _as_of(self._period(rule.scope, now_us)[0], rule.scope, told.get(rule.scope.id))
            for rule in rules
        }
        for rule in rules:
            state = states[rule.scope.id]
            history = self._history.get(rule.scope.id)
            if history is None:
                history = SpendHistory(rule.scope.period, unspent_us=self._sampled_us)
                self._history[rule.scope.id] = history
            history.see(now_us, state.settled + state.suspense, start_us=state.starts_at_us)
        return states

    async def statuses(self, rules: Sequence[BudgetRule]) -> list[BudgetStatus]:
        """The status of each."""
        states = await self.states(rules)
        return [self._status(rule, states[rule.scope.id]) for rule in rules]

    def _status(self, rule: BudgetRule, state: ScopeState) -> BudgetStatus:
        scope = rule.scope
        resets_at = self.resets_at(scope)
        return BudgetStatus(
            budget_id=scope.id, scope=BudgetScope(rule.kind), scope_id=rule.target or None,
            limit=dollars(scope.limit_nanousd), settled=dollars(state.settled), held=dollars(state.held),
            suspense=dollars(state.suspense), unpriced=dollars(state.unpriced),
            unpriced_requests=state.unpriced_requests, late=dollars(state.late),
            enforcement_mode=EnforcementMode.Hard if scope.hard else EnforcementMode.Soft,
            period=TimeWindow(scope.period.value), resets_at=resets_at,
            forecast=self._history[scope.id].forecast(
                datetime.fromtimestamp(self._now_us() / 1e6, UTC),
                scope.limit_nanousd - state.settled - state.held - state.suspense, resets_at,
            ),
            cells=_by_cell(state),
        )  # fmt: skip

    def resets_at(self, scope: ScopeConfig) -> datetime | None:
        """When its period ends; None: never."""
        end_us = self._period(scope, self._now_us())[1]
        return None if end_us is None else datetime.fromtimestamp(end_us / 1e6, UTC)

    async def book(self, scopes: Sequence[str], spent_nanousd: int, idempotency_key: str | None) -> None:
        """Open and settle a reservation that nothing refuses.

        Between the two it is held, so that a crash leaves it in suspense and not in the dark.
        """
        by_cell: dict[int, list[str]] = {}
        for scope in scopes:
            by_cell.setdefault(self._ledger.of_booking(scopes=(scope,)), []).append(scope)
        for cell, found in by_cell.items():
            await self._book(rid_in(cell, _rid(idempotency_key)), found, spent_nanousd)

    async def _book(self, rid: bytes, scopes: Sequence[str], spent_nanousd: int) -> None:
        charge = Charge(expected_nanousd=spent_nanousd, bound_nanousd=spent_nanousd)
        for at in range(0, len(scopes), SHARED_SCOPES_MAX):
            page = tuple(scopes[at : at + SHARED_SCOPES_MAX])
            request = ReserveRequest(
                rid=bytes([rid[0] ^ (at // SHARED_SCOPES_MAX), *rid[1:]]), scopes=page, lease_us=LEASE_US,
                candidates=(Candidate(lanes=(ELSEWHERE_LANE,), charge=charge),),
            )  # fmt: skip
            await self._ledger.reassert(request, index=0)
            await self._ledger.settle(
                Settlement(
                    rid=request.rid, input_tokens=0, output_tokens=0, cost_nanousd=spent_nanousd,
                    outcome=Outcome.NEUTRAL,
                )
            )  # fmt: skip


def _by_cell(state: ScopeState) -> tuple[BudgetInCell, ...]:
    """A budget's books in each cell. What a home has granted is not free there."""
    granted = [0 if at == 0 else one.limit for at, (_, one) in enumerate(state.cells)]
    return tuple(
        BudgetInCell(
            cell=name, granted=dollars(granted[at]), settled=dollars(one.settled), held=dollars(one.held),
            suspense=dollars(one.suspense),
            free=dollars(one.limit - one.settled - one.held - one.suspense - (0 if at else sum(granted))),
        )
        for at, (name, one) in enumerate(state.cells)
    )  # fmt: skip


def _as_of(start_us: int, scope: ScopeConfig, state: ScopeState | None) -> ScopeState:
    """A scope's books as they will be when it is next used, in the period that began at `start_us`."""
    if state is not None and (state.resets_at_us > start_us or start_us == 0):
        return state
    return ScopeState(
        id=scope.id, seq=0, limit=scope.limit_nanousd, hard=scope.hard, settled=0, held=0, suspense=0, unpriced=0,
        unpriced_requests=0, late=0 if state is None else state.late, starts_at_us=start_us, resets_at_us=0,
    )  # fmt: skip


def _rid(idempotency_key: str | None) -> bytes:
    if idempotency_key is None:
        return os.urandom(16)
    return blake2b(idempotency_key.encode(), digest_size=16, person=b"spent-elsewhere").digest()
