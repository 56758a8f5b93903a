"""When the ledger is away, answers get lost, leases run out, or the store forgets everything."""

import asyncio

import pytest
import redis

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.system_error import LedgerUnavailableError, StateStoreUnavailableError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.faulty import ALWAYS, faults_in
from tests.router.house import SCOPE, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_without_a_ledger_nothing_is_sent(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        faults = faults_in(made.router)
        faults.unreachable["reserve"] = 2
        with pytest.raises(LedgerUnavailableError):
            await made.route()
        assert (await made.seen("org-a"))["arrived"] == 0
        assert made.finished[0].outcome == "store_error"
        assert (await made.route()).content
        assert await made.at_rest() == await made.billed()


async def test_a_reserve_whose_answer_is_lost_is_held_once(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        faults_in(made.router).answers_lost["reserve"] = 1
        assert (await made.route()).content
        assert await made.at_rest() == await made.billed()


async def test_a_reserve_that_is_never_answered_is_cancelled(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        faults = faults_in(made.router)
        faults.answers_lost["reserve"] = 2
        with pytest.raises(LedgerUnavailableError):
            await made.route()
        await until(lambda: faults.calls["cancel"] == 1)
        assert await made.at_rest() == 0


@pytest.mark.parametrize("how", ["unreachable", "answers_lost"])
async def test_settlements_wait_for_the_ledger_and_are_booked_once(
    simulator: SimulatorProcess, store: StateStore, how: str
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        trouble = getattr(faults_in(made.router), how)
        trouble["settle"] = ALWAYS
        answers = await asyncio.gather(*(made.route(f"number {n}") for n in range(100)))
        assert len(answers) == 100
        assert made.router.books.waiting == 100
        trouble["settle"] = 0
        assert await made.at_rest() == await made.billed()
        assert made.router.books.settled == 100


async def test_a_ledger_that_is_away_is_not_hammered(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        faults = faults_in(made.router)
        faults.unreachable["settle"] = ALWAYS
        await asyncio.gather(*(made.route() for _ in range(100)))
        before = faults.calls["settle"]
        await asyncio.sleep(0.2)
        assert faults.calls["settle"] - before <= 20 * 64
        faults.unreachable["settle"] = 0
        await made.at_rest()


async def test_a_lost_lease_ends_its_calls_and_they_are_booked(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"], routing={"lease_ms": 1000}) as made:
        faults = faults_in(made.router)
        faults.unreachable["renew"] = ALWAYS
        whole = asyncio.create_task(made.route())
        stream = made.router.route_stream(intent())
        await anext(stream)
        await until(lambda: len(made.router.books.open) == 2)
        expired = 0

        async def both_expired() -> bool:
            nonlocal expired
            expired += await made.router.ledger.sweep()
            return expired == 2

        await until(both_expired)
        faults.unreachable["renew"] = 0
        with pytest.raises(ProviderError, match="lease"):
            [chunk async for chunk in stream]
        with pytest.raises(ProviderError, match="lease"):
            await whole
        assert not whole.cancelled()
        assert await made.at_rest() >= await made.billed() > 0
        assert len(made.finished) == 2


async def test_leases_are_renewed_while_calls_are_open(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"], routing={"lease_ms": 1000}) as made:
        exchange = made.router.route_stream(intent("[[tokens:60]] please"))
        received = [chunk async for chunk in exchange]
        assert received[-1].last
        assert await made.at_rest() == await made.billed()


async def test_an_answer_is_not_lost_with_its_decision(
    simulator: SimulatorProcess, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def away() -> None:
        tried.append("away")
        raise StateStoreUnavailableError("cut off by the test")

    async def hanging() -> None:
        tried.append("hanging")
        await asyncio.sleep(3600)

    async with house(simulator, store, ["a1"]) as made:
        for trouble in (away, hanging):
            monkeypatch.setattr(store, "flush", trouble)
            assert (await made.route()).content
            assert (await made.stream())[-1].last
            await until(lambda name=trouble.__name__: name in tried)
        assert tried.count("hanging") == 1
        made.router._keeping.cancel()  # type: ignore[union-attr]
        await made.at_rest()


async def test_decisions_are_written_when_the_store_is_back(
    simulator: SimulatorProcess, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStateStore(redis_url)
    working, failing = store.flush, True

    async def flush() -> None:
        if failing:
            raise StateStoreUnavailableError("cut off by the test")
        await working()

    monkeypatch.setattr(store, "flush", flush)
    async with house(simulator, store, ["a1"]) as made:
        answers = [await made.route() for _ in range(3)]
        failing = False
        other = RedisStateStore(redis_url)

        async def kept() -> bool:
            return len(await other.query_state(StateQuery("RoutingDecision"))) == 3

        await until(kept)
        found = await other.query_state(StateQuery("RoutingDecision"))
        await other.aclose()
    assert [decision.request_id for decision in found] == [answer.request_id for answer in answers]


async def test_a_store_that_was_emptied_is_told_everything_again(simulator: SimulatorProcess, redis_url: str) -> None:
    hard = {"name": "tight", "scope": "global", "limit_usd": 1, "period": "total", "enforcement": "hard"}
    limits = [{"quota_group": "org-c", "concurrency": 5}]
    soft = {"name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "soft"}
    async with house(simulator, RedisStateStore(redis_url), ["c1", "s1"], budgets=[soft, hard], limits=limits) as made:
        stream = made.router.route_stream(intent())  # of the slow key, which alone has this model
        await anext(stream)
        epoch = made.router.ledger.stamp.epoch
        (before,) = await made.router.ledger.scopes([SCOPE])
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        await until(lambda: made.router.ledger.stamp.epoch != epoch)

        async def remembered() -> bool:
            states = await made.router.ledger.scopes([SCOPE])
            return [state.held for state in states] == [before.held]

        await until(remembered)
        assert {key.id for key in await made.router.key_manager.list_keys()} == {"c1", "s1"}
        await stream.aclose()  # type: ignore[attr-defined]
        after_stream = await made.at_rest()
        assert (after_stream > 0, made.router.books.unmatched) == (True, 0)
        billed_before = await made.billed()
        answers = [await made.route("[[tokens:5]]", model="claude-haiku-5") for _ in range(4)]
        assert len(answers) == 4
        assert await made.at_rest() - after_stream == await made.billed() - billed_before
        lanes = {lane.id: lane for lane in await made.router.ledger.lanes(["g:org-c:*"])}
        assert [limit.capacity for limit in lanes["g:org-c:*"].limits] == [5]


async def test_settlements_that_waited_while_the_store_forgot_are_booked(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        faults = faults_in(made.router)
        faults.unreachable["settle"] = ALWAYS
        await asyncio.gather(*(made.route() for _ in range(5)))
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        faults.unreachable["settle"] = 0
        assert await made.at_rest() == await made.billed()
