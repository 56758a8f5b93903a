"""Gauges of what all hosts share: keys, budgets, money held. Read from the store when somebody asks for metrics."""

import asyncio
import contextlib
from collections.abc import Mapping
from decimal import Decimal

from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.observability import metric_names
from apikeyrouter.router import ApiKeyRouter

__all__ = ["fleet_gauges", "money_gauges"]

KEYS_SHOWN_MAX = 2_000
"""Keys that are listed one by one."""
BUDGETS_SHOWN_MAX = 500
SECONDS_MAX = 0.9
"""A store that takes longer is away: a scrape has a deadline of its own."""
NANOUSD = 1_000_000_000
Gauges = dict[str, Mapping[tuple[str, ...], int]]


def fleet_gauges(router: ApiKeyRouter, *, healthy: bool) -> Gauges:
    """Metric name → label values → value: keys as they were last known here."""
    keys = list(router.catalogue.keys.values())[:KEYS_SHOWN_MAX]
    return {
        metric_names.KEY_STATE.name: {(key.id, key.provider_id, key.state.value): 1 for key in keys},
        metric_names.STORE_UP.name: {(): int(healthy)},
        metric_names.UNSETTLED_SECONDS.name: {(): int(router.books.waiting_seconds)},
    }


async def money_gauges(router: ApiKeyRouter) -> Gauges:
    """What the ledger knows of money; nothing while the store is away."""
    if not router.ledger.gate.away:
        with contextlib.suppress(ApiKeyRouterError, TimeoutError):
            async with asyncio.timeout(SECONDS_MAX):
                return await _money(router)
    return {}


async def _money(router: ApiKeyRouter) -> Gauges:
    costs = (await router.get_state_summary()).costs
    budgets = (await router.cost_controller.list_budgets())[:BUDGETS_SHOWN_MAX]
    return {
        metric_names.HELD.name: {(): _nanousd(costs.held)},
        metric_names.SUSPENSE.name: {(): _nanousd(costs.suspense)},
        metric_names.BUDGET_LIMIT.name: {(budget.id,): _nanousd(budget.limit) for budget in budgets},
        metric_names.BUDGET_SPENT.name: {(budget.id,): _nanousd(budget.current_spending) for budget in budgets},
    }


def _nanousd(dollars: Decimal) -> int:
    return int(dollars * NANOUSD)
