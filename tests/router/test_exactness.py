"""Sums stay exact over very many settlements. `make exact` runs a million of them on each engine."""

import asyncio
import os
import random
from decimal import Decimal

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import Admission, Candidate, Charge, ReserveRequest, Settlement, Transition
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger

SETTLEMENTS = int(os.environ.get("EXACT_SETTLEMENTS", "20000"))
AT_ONCE = 256
LOOKS = 50
LIMIT_NANOUSD = 9_000_000 * 10**9
pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(3600)]


async def test_after_very_many_settlements_the_sum_is_exact(store: StateStore) -> None:
    """Amounts of every size, so that the sum comes near the largest integer that is counted, 2^53 nano-dollars."""
    chance, expected, rounds = random.Random(11), 0, -(-SETTLEMENTS // AT_ONCE)
    async with ApiKeyRouter(state_store=store) as router:
        desk, ledger = router.cost_controller, router.ledger.cells[0]
        hard = await desk.create_budget("global", 9_000_000, "total", name="all")
        soft = await desk.create_budget("team", 9_000_000, "total", "soft", scope_id="t")
        for number in range(rounds):
            costs = some_costs(chance, LIMIT_NANOUSD - 10**14 - expected)
            expected += await spend(ledger, costs, (hard.id, soft.id))
            if number % (rounds // LOOKS + 1) == 0:
                assert (await desk.get_budget_status(hard.id)).settled == Decimal(expected).scaleb(-9)
        for budget in (hard, soft):
            status = await desk.get_budget_status(budget.id)
            assert (status.settled, status.held) == (Decimal(expected).scaleb(-9), Decimal(0))
        assert expected > 2**52


def some_costs(chance: random.Random, left: int) -> list[int]:
    """What so many requests cost: much, hardly anything, one nano-dollar, nothing; together no more than is left."""
    mean, costs = LIMIT_NANOUSD // SETTLEMENTS, []
    for _ in range(AT_ONCE):
        cost = min(left, chance.choice((chance.randrange(7 * mean), chance.randrange(100), 1, 0)))
        costs.append(cost)
        left -= cost
    return costs


async def spend(ledger: ScriptLedger, costs: list[int], scopes: tuple[str, ...]) -> int:
    """Reserve and settle so many requests, all at once; what they cost together. Each is told one time in eight twice,
    as after a lost answer."""
    requests = [
        ReserveRequest(
            rid=new_rid(), scopes=scopes,
            candidates=(
                Candidate(lanes=("x:exact",), charge=Charge(expected_nanousd=cost // 2, bound_nanousd=cost)),
            ),
        )
        for cost in costs
    ]  # fmt: skip
    admitted = await asyncio.gather(*(ledger.reserve(request) for request in requests))
    assert all(isinstance(answer, Admission) for answer in admitted)
    settlements = [
        Settlement(rid=request.rid, input_tokens=1, output_tokens=1, cost_nanousd=cost)
        for request, cost in zip(requests, costs, strict=True)
    ]
    answers = await asyncio.gather(ledger.settle_many(settlements), ledger.settle_many(settlements[::8]))
    assert all(isinstance(answer, Transition) for told in answers for answer in told)
    await ledger.acknowledge([settlement.rid for settlement in settlements])
    return sum(costs)
