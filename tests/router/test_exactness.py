"""Sums stay exact over very many settlements. `EXACT_SETTLEMENTS=1000000` runs the long way (a minute or two)."""

import os
import random
from decimal import Decimal

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.models.accounting import Candidate, Charge, ReserveRequest, Settlement
from apikeyrouter.serving.admission import new_rid

SETTLEMENTS = int(os.environ.get("EXACT_SETTLEMENTS", "50000"))
PAGE = 32
pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(3600)]


async def test_after_very_many_settlements_the_sum_is_exact() -> None:
    """Amounts of every size, so that the sum comes near the largest integer that is counted, 2^53 nano-dollars."""
    chance = random.Random(11)
    expected = 0
    async with ApiKeyRouter() as router:
        desk, ledger = router.cost_controller, router.ledger
        hard = await desk.create_budget("global", 9_000_000, "total", name="all")
        soft = await desk.create_budget("team", 9_000_000, "total", "soft", scope_id="t")
        mean = 8_500_000 * 10**9 // SETTLEMENTS
        for page in range(SETTLEMENTS // PAGE):
            settlements = []
            for _ in range(PAGE):
                cost = chance.choice((chance.randrange(7 * mean), chance.randrange(100), 1, 0))
                cost = min(cost, 8_900_000 * 10**9 - expected)
                charge = Charge(expected_nanousd=cost // 2, bound_nanousd=cost)
                request = ReserveRequest(
                    rid=new_rid(), scopes=(hard.id, soft.id), candidates=(Candidate(lanes=("x:exact",), charge=charge),)
                )  # fmt: skip
                await ledger.reserve(request)
                settlements.append(Settlement(rid=request.rid, input_tokens=1, output_tokens=1, cost_nanousd=cost))
                expected += cost
            await ledger.settle_many(settlements)
            await ledger.acknowledge([settlement.rid for settlement in settlements])
            if page % 64 == 0:
                assert (await desk.get_budget_status(hard.id)).settled == Decimal(expected).scaleb(-9)
        for budget in (hard, soft):
            status = await desk.get_budget_status(budget.id)
            assert (status.settled, status.held) == (Decimal(expected).scaleb(-9), Decimal(0))
        assert expected > 2**52
