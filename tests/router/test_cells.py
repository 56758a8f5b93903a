"""Requests over several cells: whose they are says where they are held, and a budget over all of them is one budget."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import CELL_AT
from apikeyrouter.domain.models.system_error import (
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    KeyRegistrationError,
    LedgerConfigError,
    NoEligibleKeysError,
)
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, MASTER_KEY, SCOPE, SOFT_BUDGET, House, house

pytestmark = pytest.mark.asyncio(loop_scope="package")
NORTH = {"name": "north", "quota_groups": ["org-a"], "teams": ["n"], "clients": ["app-n"]}
SOUTH = {"name": "south", "quota_groups": ["org-b"], "teams": ["s"]}
CELLS: dict[str, Any] = {"cells": [NORTH, SOUTH]}
KEYS_OF_ALL = ("a1", "a2", "b1", "c1")


def cell_of(made: House, at: int = -1) -> int:
    """Where a request was held."""
    return made.finished[at].attempts[-1].rid[CELL_AT]


async def test_a_teams_requests_are_held_in_its_cell_by_its_keys(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, KEYS_OF_ALL, settings=CELLS) as made:
        for team, cell, keys in (("n", 1, {"a1", "a2"}), ("s", 2, {"b1"})):
            for _ in range(4):
                await made.route(team=team)
                assert (cell_of(made), made.finished[-1].attempts[-1].key_id in keys) == (cell, True)
        assert await made.at_rest() == await made.billed() > 0
        (state,) = await made.router.ledger.scopes([SCOPE])
        assert {name for name, of_cell in state.cells if of_cell.settled} == {"north", "south"}


async def test_who_is_in_no_cell_is_served_by_any_and_falls_back_on_the_next(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    limits = [{"quota_group": group, "rpm": 1, "kind": "fixed"} for group in ("org-a", "org-b", "org-c")]
    other = [{"provider": "openai", "model": "gpt-4o-mini"}, {"provider": "other", "model": "gpt-4o-mini"}]
    async with house(simulator, store, ("a1", "b1"), settings=CELLS, limits=limits[:2], models={"any": other}) as made:
        for _ in range(2):
            await made.route(model="any")
        assert {cell_of(made, at) for at in (0, 1)} == {1, 2}
        with pytest.raises(NoEligibleKeysError) as denied:
            await made.route(model="any")
        assert set(denied.value.reasons) == {"a1", "b1"}
        assert await made.at_rest() == await made.billed()


async def test_a_hard_budget_over_cells_is_never_exceeded(simulator: SimulatorProcess, store: StateStore) -> None:
    hard = {**SOFT_BUDGET, "limit_usd": 0.002, "enforcement": "hard"}
    async with house(simulator, store, ("a1", "b1"), settings=CELLS, budgets=[hard]) as made:
        asked = [made.route(f"number {at}", team="ns"[at % 2], parameters={"max_tokens": 200}) for at in range(60)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        denied = [answer for answer in answers if isinstance(answer, BudgetExceededError)]
        assert 0 < len(denied) < 60, answers[:3]
        assert await made.at_rest() == await made.billed() <= 2_000_000
        assert denied[0].details["limit"] == Decimal("0.002")


async def test_a_namespace_keeps_the_cells_that_it_began_with(simulator: SimulatorProcess, redis_url: str) -> None:
    async with house(simulator, RedisStateStore(redis_url), KEYS_OF_ALL, settings=CELLS):
        pass
    for cells in ([], [NORTH], [SOUTH, NORTH], [NORTH, {**SOUTH, "quota_groups": ["org-b", "org-c"]}]):
        router = ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY, "cells": cells})
        with pytest.raises(LedgerConfigError, match="decided when it is first used"):
            await router.start()
        await router.ledger.close()
    async with house(simulator, RedisStateStore(redis_url), KEYS_OF_ALL, settings=CELLS) as made:
        await made.route(team="n")


async def test_a_key_stays_in_its_cell(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ("a1",), settings=CELLS) as made:
        moved = {"id": "a1", **KEYS["a1"], "quota_group": "org-b"}
        with pytest.raises(InvalidRequestError, match="accounted in cell north"):
            await made.apply([moved])
        with pytest.raises(KeyRegistrationError, match="begins like 'org-a'"):
            await made.router.register_key("sk-sim-house-b-number-1", "other", {"quota_group": "org-a:2"})
        await made.route(team="n")


async def test_a_request_of_two_cells_is_refused(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, KEYS_OF_ALL, settings=CELLS) as made:
        call = made.router.catalogue
        assert call.layout is not None
        with pytest.raises(InvalidRequestError, match="no request can be of both"):
            call.layout.of_call("s", "app-n")


async def test_a_file_of_other_cells_is_refused_whole(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ("a1",), settings=CELLS) as made:
        with pytest.raises(ConfigurationError, match="take a restart"):
            await made.apply(["a1", "b1"], accounting={"cells": [NORTH]})
        assert sorted(made.router.catalogue.keys) == ["a1"]
        await made.apply(["a1", "b1"], accounting={"cells": [NORTH, SOUTH]})
        assert sorted(made.router.catalogue.keys) == ["a1", "b1"]


def spread(made: House) -> SpreadLedger:
    """Its ledger."""
    assert isinstance(made.router.ledger, SpreadLedger)
    return made.router.ledger
