"""Requests that wait for room instead of being denied: who is served when, and that nobody polls."""

import asyncio
from typing import Any

import pytest

from apikeyrouter import NoEligibleKeysError, ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import ConfigurationError, ErrorCategory, InvalidRequestError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving.leases import Lease, Leasing
from apikeyrouter.simulator import SimulatorProcess
from tests.router.faulty import faults_in
from tests.router.house import House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
LONG_MS = 60_000
SHORT_OF_IDLE_MS = 8_000
"""Less than the ledger keeps room for a client that wants none any more."""
ONE_AT_A_TIME = [{"quota_group": "org-a", "concurrency": 1}]
ONE_A_SECOND = [{"quota_group": "org-a", "rpm": 60, "kind": "bucket", "burst": 1, "headroom": 0}]
TOKENS = [f"token-of-a-client-{number}" for number in range(3)]
CLIENTS = [{"name": f"c{number}", "token": token} for number, token in enumerate(TOKENS)]


async def occupy(made: House) -> tuple[Leasing, Lease]:
    """Take all the room there is."""
    leasing = made.router.lease("gpt-4o-mini", estimated_tokens=10)
    return leasing, await leasing.__aenter__()


async def vacate(taken: tuple[Leasing, Lease]) -> None:
    taken[1].release()
    await taken[0].__aexit__(None, None, None)


class Waiters:
    """Requests that were sent one after the other, and the order in which they were served."""

    def __init__(self, made: House) -> None:
        self._made, self.served = made, list[str]()
        self.tasks: list[asyncio.Task[None]] = []

    async def add(self, name: str, **options: Any) -> asyncio.Task[None]:
        """Send one; it waits when this returns."""
        fields = {field: options.pop(field) for field in ("client",) if field in options}
        before = self._made.router.waiting

        async def send() -> None:
            await self._made.router.route(intent(name, **fields), **{"wait_max_ms": LONG_MS, **options})
            self.served.append(name)

        task = asyncio.create_task(send())
        self.tasks.append(task)
        await until(lambda: task.done() or self._made.router.waiting > before)
        return task

    async def all_served(self) -> list[str]:
        await asyncio.gather(*self.tasks)
        return self.served


async def test_all_are_served_one_at_a_time_and_nobody_polls(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME) as made:
        taken, waiters = await occupy(made), Waiters(made)
        faulty = faults_in(made.router)
        for number in range(10):
            await waiters.add(f"r{number}")
        asked = faulty.calls["reserve"]
        assert asked <= 10 + 5, "who is behind others does not ask"
        await vacate(taken)
        assert await waiters.all_served() == [f"r{number}" for number in range(10)]
        assert made.router.waiting == 0
        assert all(facts.waited_us > 0 and facts.denial is None for facts in made.finished if facts.operation == "chat")
        assert await made.at_rest() == await made.billed()


async def test_a_request_asks_again_at_the_instant_that_its_denial_named(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_A_SECOND, routing={"wait_max_ms": LONG_MS}) as made:
        faulty = faults_in(made.router)
        made.router.books.cells[0].on_booked = None  # no news but the time
        await asyncio.gather(*(made.route() for _ in range(3)))
        assert faulty.calls["reserve"] <= 2 * (1 + 2 + 3), "asked, denied, asked when it was due; not all the time"
        assert sorted(facts.waited_us > 0 for facts in made.finished) == [False, True, True]
        await made.at_rest()


async def test_persons_go_before_batches(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME) as made:
        taken, waiters = await occupy(made), Waiters(made)
        for name, priority in (("b1", "batch"), ("b2", "batch"), ("i1", "interactive"), ("i2", "interactive")):
            await waiters.add(name, priority=priority)
        await vacate(taken)
        assert await waiters.all_served() == ["i1", "i2", "b1", "b2"]


async def test_clients_take_turns(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME, clients=CLIENTS) as made:
        taken, waiters = await occupy(made), Waiters(made)
        for name in ("c0-1", "c0-2", "c0-3", "c0-4", "c1-1", "c1-2"):
            await waiters.add(name, client=name[:2])
        await vacate(taken)
        assert await waiters.all_served() == ["c0-1", "c1-1", "c0-2", "c1-2", "c0-3", "c0-4"]


async def test_a_better_class_does_not_wait_for_room_that_is_kept_for_those_behind_it(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    """The ledger keeps room for the client that was served least: here it waits behind, or no longer wants any."""
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME, clients=CLIENTS) as made:
        await made.route(client="c0")
        await made.at_rest()
        taken, waiters = await occupy(made), Waiters(made)
        batches, persons = [f"c0-{number}" for number in range(5)], [f"c1-{number}" for number in range(5)]
        for name in batches:
            await waiters.add(name, client="c0", priority="batch", wait_max_ms=SHORT_OF_IDLE_MS)
        for name in persons:
            await waiters.add(name, client="c1", wait_max_ms=SHORT_OF_IDLE_MS)
        await vacate(taken)
        assert await waiters.all_served() == persons + batches
        await made.at_rest()


async def test_a_place_that_is_left_in_time_leaves_the_turn_to_the_next(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME, clients=CLIENTS) as made:
        taken, waiters = await occupy(made), Waiters(made)
        late = await waiters.add("late", client="c0", timeout=1.0)
        await waiters.add("next", client="c1", priority="batch")
        with pytest.raises(ProviderError) as caught:
            await late
        assert caught.value.category is ErrorCategory.TimeoutError
        assert caught.value.retry_after is None
        assert made.finished[-1].outcome == "timeout_error"
        await vacate(taken)
        await waiters.tasks[1]
        assert waiters.served == ["next"]
        assert await made.at_rest() == await made.billed()


async def test_who_is_at_its_own_limit_stands_in_nobodys_way(simulator: SimulatorProcess, store: StateStore) -> None:
    clients = [{**CLIENTS[0], "concurrency": 1}, CLIENTS[1]]
    async with house(simulator, store, ["a1"], clients=clients) as made:
        leasing = made.router.lease("gpt-4o-mini", estimated_tokens=10, client="c0")
        taken, waiters = (leasing, await leasing.__aenter__()), Waiters(made)
        await waiters.add("own", client="c0")
        other = await waiters.add("other", client="c1")
        await other
        assert waiters.served == ["other"]
        await vacate(taken)
        assert await waiters.all_served() == ["other", "own"]


async def test_who_gives_up_leaves_nothing_and_the_others_go_on(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME) as made:
        taken, waiters = await occupy(made), Waiters(made)
        first = await waiters.add("first")
        second = await waiters.add("second")
        await waiters.add("third")
        for task in (first, second):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert made.router.waiting == 1
        await vacate(taken)
        await waiters.tasks[2]
        assert (waiters.served, made.router.waiting) == (["third"], 0)
        await made.at_rest()


async def test_a_wait_that_would_be_too_long_is_no_wait(simulator: SimulatorProcess, store: StateStore) -> None:
    hourly = [{"quota_group": "org-a", "rpd": 1, "kind": "fixed"}]
    async with house(simulator, store, ["a1"], limits=hourly, routing={"wait_max_ms": 5000}) as made:
        await made.route()
        with pytest.raises(NoEligibleKeysError) as caught:
            await made.route()
        assert (caught.value.retry_after or 0) > 5
        assert made.finished[-1].waited_us == 0
        await made.at_rest()


async def test_a_wait_ends_with_its_own_time_with_that_of_the_call_and_with_the_router(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME) as made:
        taken = await occupy(made)
        with pytest.raises(NoEligibleKeysError) as denied:
            await made.router.route(intent(), wait_max_ms=500)
        assert denied.value.retry_after is not None
        with pytest.raises(ProviderError, match="deadline") as late:
            await made.router.route(intent(), wait_max_ms=LONG_MS, timeout=0.5)
        assert (late.value.category, late.value.retry_after) == (ErrorCategory.TimeoutError, None)
        assert all(facts.waited_us >= 100_000 for facts in made.finished[-2:])
        waiters = Waiters(made)
        await waiters.add("one")
        await waiters.add("two")
        made.router._waiting.end()
        told = await asyncio.gather(*waiters.tasks, return_exceptions=True)
        assert [(type(error), str(error)) for error in told] == [(ConfigurationError, "the router was closed")] * 2
        await vacate(taken)
        await made.at_rest()


async def test_so_many_wait_and_no_more(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME, routing={"wait_queue_max": 2}) as made:
        taken, waiters = await occupy(made), Waiters(made)
        await waiters.add("one")
        await waiters.add("two")
        with pytest.raises(NoEligibleKeysError):
            await made.router.route(intent(), wait_max_ms=LONG_MS)
        await vacate(taken)
        assert await waiters.all_served() == ["one", "two"]


async def test_who_does_not_wait_is_denied_while_its_own_wait(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME) as made:
        taken, waiters = await occupy(made), Waiters(made)
        await waiters.add("one")
        faulty = faults_in(made.router)
        with pytest.raises(NoEligibleKeysError):
            await made.route()
        assert faulty.calls["reserve"] <= 1, "the one that waits may have asked"
        await vacate(taken)
        await waiters.all_served()


async def test_a_providers_own_rate_limit_is_waited_out(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["b1"]) as made:
        await simulator.fail("rate_limit", organisation="org-b", count=1, seconds=1)
        told = await made.router.route(intent(), wait_max_ms=LONG_MS)
        assert told.content
        (facts,) = made.finished
        assert [attempt.meaning for attempt in facts.attempts] == ["rate_limited", ""]
        assert facts.waited_us > 0
        assert await made.at_rest() == await made.billed()


async def test_streams_leases_and_batches_wait_too(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=ONE_AT_A_TIME) as made:
        made.router.wait_max_ms = LONG_MS
        answers = await made.router.route_batch([intent(f"{n}") for n in range(5)], concurrency=5)
        assert len(answers) == 5
        taken = await occupy(made)
        stream = asyncio.create_task(made.stream())

        async def lend() -> str:
            async with made.router.lease("gpt-4o-mini", estimated_tokens=10) as lease:
                lease.release()
                return lease.key_id

        lent = asyncio.create_task(lend())
        await until(lambda: made.router.waiting == 2)
        await vacate(taken)
        assert (await stream)[-1].usage is not None
        assert await lent == "a1"
        assert await made.at_rest() == await made.billed()


async def test_those_who_wait_in_two_processes_are_all_served_within_one_limit(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1"], limits=ONE_AT_A_TIME) as one,
        house(simulator, RedisStateStore(redis_url), ["a1"], limits=ONE_AT_A_TIME) as other,
    ):
        most, answers = 0, []

        async def send(made: House, number: int) -> None:
            nonlocal most
            answers.append(await made.router.route(intent(f"r{number}"), wait_max_ms=LONG_MS))
            most = max(most, len(one.router.books.open) + len(other.router.books.open))

        await asyncio.gather(*(send(made, number) for made in (one, other) for number in range(10)))
        assert len(answers) == 20
        assert most <= 1
        assert await one.router.books.flush(seconds=20)
        assert await other.at_rest() == await one.billed()


@pytest.mark.parametrize(
    "options", [{"wait_max_ms": -1}, {"wait_max_ms": 1.5}, {"wait_max_ms": 10**9}, {"priority": "now"}]
)
async def test_what_is_no_wait_is_refused(simulator: SimulatorProcess, store: StateStore, options: Any) -> None:
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(InvalidRequestError, match=next(iter(options))):
            await made.router.route(intent(), **options)
        assert await made.at_rest() == 0
