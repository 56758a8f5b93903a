"""Sticky routing, in the provider's own dollars: sessions go where their prompt is cached, while that is worth it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house
from tests.routing.recomputing import rechosen

PROMPT = "You are a patient teacher of geology. " * 200
"""Longer than what providers cache at least."""


def organisation(letter: str) -> dict[str, Any]:
    """One that caches prompts."""
    return {"id": f"org-{letter}", "keys": [f"sk-sim-sticky-{letter}-1"], "output_tokens": 12, "cache": True}


@asynccontextmanager
async def school(
    simulator: SimulatorProcess, store: StateStore, *letters: str, metadata: dict[str, dict[str, Any]] | None = None,
    limits: list[dict[str, Any]] | None = None,
) -> AsyncIterator[House]:  # fmt: skip
    """A house with a key of each of these organisations, which is called like its letter."""
    async with house(simulator, store, []) as made:
        for letter in letters:
            told = {"quota_group": f"org-{letter}", **(metadata or {}).get(letter, {})}
            if limits is not None:
                told["limits"] = limits
            await made.router.key_manager.register_key(f"sk-sim-sticky-{letter}-1", "openai", told, key_id=letter)
        yield made


@pytest_asyncio.fixture(loop_scope="package")
async def caching() -> AsyncIterator[SimulatorProcess]:
    """Three organisations with prompt caches."""
    async with SimulatorProcess({"organisations": [organisation(letter) for letter in "abd"]}) as process:
        yield process


async def asked(made: House, number: int, objective: str | RoutingObjective, *, session: str | None = None) -> str:
    """One turn of a conversation; the key that served it."""
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"question {number}"}]
    tags = {} if session is None else {"session": session}
    told = {"model": "gpt-4o-mini", "messages": messages, "tags": tags}
    return (await made.router.route(told, objective=objective)).key_used


async def cached(simulator: SimulatorProcess) -> int:
    """Tokens that the providers read from their caches."""
    return int((await simulator.report())["total"]["cached_tokens"])


@pytest.mark.parametrize("objective", ["fairness", "reliability", "quality", "cost"])
async def test_a_session_stays_where_its_prompt_is_cached(objective: str, caching: SimulatorProcess) -> None:
    async with school(caching, InMemoryStateStore(), "a", "b", "d") as made:
        used = [await asked(made, number, objective, session="lesson") for number in range(6)]
        assert len(set(used)) == 1
        decision = (await made.router.explain(made.finished[-1].request_id)).decision
        assert rechosen(decision) == used[-1]
        assert decision.candidates[0].parts["cached_tokens"] > 1024
        assert await cached(caching) >= 5 * 1024
        await made.at_rest()


async def test_different_sessions_are_spread(caching: SimulatorProcess) -> None:
    async with school(caching, InMemoryStateStore(), "a", "b", "d") as made:
        used = {f"s{n}": await asked(made, n, "fairness", session=f"s{n}") for n in range(20)}
        assert set(used.values()) == {"a", "b", "d"}
        assert used == {session: await asked(made, 0, "fairness", session=session) for session in used}


async def test_without_a_session_fairness_takes_turns_and_cost_finds_the_cache_by_itself(
    caching: SimulatorProcess,
) -> None:
    async with school(caching, InMemoryStateStore(), "a", "b", "d") as made:
        assert sorted([await asked(made, n, "fairness") for n in range(6)]) == ["a", "a", "b", "b", "d", "d"]
    async with school(caching, InMemoryStateStore(), "a", "b", "d") as made:
        assert len({await asked(made, n, "cost") for n in range(6)}) == 1
        weighted = RoutingObjective("cost", weights={"cost": 1, "reliability": 1})
        assert len({await asked(made, n, weighted) for n in range(6)}) == 1


async def test_a_full_lane_is_left_and_the_next_group_becomes_warm(caching: SimulatorProcess) -> None:
    limits = [{"models": ["gpt-4o-mini"], "rpd": 3, "headroom": 0}]
    async with school(caching, InMemoryStateStore(), "a", "b", "d", limits=limits) as made:
        used = [await asked(made, number, "cost", session="lesson") for number in range(9)]
        assert [used[at : at + 3] for at in (0, 3, 6)] == [[used[at]] * 3 for at in (0, 3, 6)]
        assert len(set(used)) == 3


async def test_a_cache_saves_no_more_than_the_difference_in_price(caching: SimulatorProcess) -> None:
    """The cached half of a dear key's price is above the whole of a cheap one's: the cheap one serves."""
    dear = {"b": {"cost_per_1k": 0.01}}
    async with school(caching, InMemoryStateStore(), "a", "b", metadata=dear) as made:
        assert {await asked(made, number, "cost", session="lesson") for number in range(3)} == {"a"}
        await made.router.key_manager.disable_key("a", "of the test")
        assert await asked(made, 4, "cost", session="lesson") == "b"
        await made.router.key_manager.enable_key("a", "of the test")
        assert {await asked(made, number, "cost", session="lesson") for number in range(5, 8)} == {"a"}


async def test_the_providers_bill_less_for_it(caching: SimulatorProcess, store: StateStore) -> None:
    """The same forty turns of eight conversations, with and without their sessions."""
    bills = []
    for told in (False, True):
        await caching.reset()
        async with school(caching, store if told else InMemoryStateStore(), "a", "b", "d") as made:
            for turn in range(5):
                for conversation in range(8):
                    system = {"role": "system", "content": f"{conversation}: {PROMPT}"}
                    messages = [system, {"role": "user", "content": f"{turn}"}]
                    tags = {"session": str(conversation)} if told else {}
                    await made.router.route({"model": "gpt-4o-mini", "messages": messages, "tags": tags})
            billed = await made.billed()
            assert await made.at_rest() == billed  # the books agree with the bill, cached input included
            bills.append(billed)
    assert bills[1] < 0.8 * bills[0]
