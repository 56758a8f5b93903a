"""A Cluster: the cell's slot is found wherever it is, while it is moved, and when its primary dies."""

import asyncio
import contextlib
import itertools
from typing import Any, cast

import pytest

from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import StateStoreUnavailableError
from apikeyrouter.infrastructure.state_store.records import records_for
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.servers import Server
from tests.topologies.books import COST, LAYOUT, SCOPE, SPREAD, booked, ledger_at, spent, spread_at
from tests.topologies.deployments import Cluster, alive, node_id, port_of, until

pytestmark = pytest.mark.timeout(120)
CELL_KEY = "apikeyrouter:{c:main}:L"


def errors_of(server: Server, *kinds: str) -> int:
    """How often it has answered so."""
    with server.client() as client:
        told: Any = client.info("errorstats")
    return sum(int(told.get(f"errorstat_{kind}", {"count": 0})["count"]) for kind in kinds)


def moved(deployed: Cluster, key: str, to: Server, *, under_load: bool = False) -> None:
    """Move the key's slot as redis-cli does it: piece by piece, while clients go on (and until they have met it)."""
    source = deployed.owner(key)
    with source.client() as giving, to.client() as taking:
        give, take = cast("Any", giving.execute_command), cast("Any", taking.execute_command)
        slot = int(give("CLUSTER", "KEYSLOT", key))
        take("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        give("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(to))
        for number in itertools.count():
            keys = give("CLUSTER", "GETKEYSINSLOT", slot, 1)
            if not keys:
                break
            before = errors_of(source, "TRYAGAIN", "ASK")
            give("MIGRATE", "127.0.0.1", port_of(to), keys[0], 0, 5000)
            if under_load and number == 0:
                until(lambda before=before: errors_of(source, "TRYAGAIN", "ASK") > before)  # type: ignore[misc]
        for run in (take, give):
            run("CLUSTER", "SETSLOT", slot, "NODE", node_id(to))
    until(lambda: deployed.owner(key, asked=source) is to and deployed.owner(key, asked=to) is to)


def another_primary(deployed: Cluster, than: Server) -> Server:
    """A living primary that is not this one."""
    with than.client() as client:
        rows: Any = client.execute_command("CLUSTER", "SLOTS")
    ports = {int(row[2][1]) for row in (rows.values() if isinstance(rows, dict) else rows)}
    return next(each for each in deployed.servers if port_of(each) in ports and each is not than and alive(each))


async def test_entities_and_records_are_where_their_slots_are(sharded: Cluster) -> None:
    store = RedisStateStore(sharded.url)
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def listen() -> None:
        async for change in store.watch():
            if change.id in ("", "k2") and not heard.done():
                heard.set_result(change.id)

    await store.save_key(APIKey(id="k1", provider_id="openai", encrypted_material="v1:x:y"))
    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.2)
    await store.save_key(APIKey(id="k2", provider_id="openai", encrypted_material="v1:x:y"))
    async with asyncio.timeout(20):
        await heard
    assert {key.id for key in await store.query_state(StateQuery("APIKey"))} == {"k1", "k2"}
    await store.add_counts("key_failures", {"k1": 2})
    assert await store.get_counts("key_failures", ["k1"]) == {"k1": 2}
    records = records_for(store)
    async with records.turn("test"):
        await records.append("audit", {"what": "it"}, kept=10)
    assert [entry for _, entry in await records.entries("audit")] == [{"what": "it"}]
    assert await records.enqueue("webhooks", "one", {"a": 1}, once_seconds=10)
    (taken,) = await records.take("webhooks", count=1, seconds=5)
    assert await records.settle("webhooks", taken, again=None)
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    await records.close()
    await store.aclose()


async def test_nothing_is_lost_or_doubled_while_the_slot_is_moved_under_load(sharded: Cluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ledgers = [await stack.enter_async_context(ledger_at(sharded.url, limit=10**9)) for _ in range(4)]
        before, _ = await spent(ledgers[0])
        stop, counts = asyncio.Event(), [0]

        async def work(number: int) -> None:
            while not stop.is_set():
                admitted = await booked(ledgers[number % len(ledgers)])
                counts[0] += admitted

        working = [asyncio.create_task(work(number)) for number in range(16)]
        for _ in range(4):
            seen = counts[0]
            source = sharded.owner(CELL_KEY)
            await asyncio.to_thread(moved, sharded, CELL_KEY, another_primary(sharded, source), under_load=True)
            while counts[0] < seen + 50:
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*working)
        assert sum(errors_of(server, "MOVED") for server in sharded.servers)
        assert await spent(ledgers[1]) == (before + counts[0] * COST, 0)
        assert await ledgers[2].audit(lanes=["k:one"], scopes=[SCOPE]) == []


async def test_a_budget_is_exact_while_the_slot_is_moved(sharded: Cluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ledgers = [await stack.enter_async_context(ledger_at(sharded.url)) for _ in range(4)]
        before, _ = await spent(ledgers[0])
        async with ledger_at(sharded.url, limit=before + 100 * COST):
            source = sharded.owner(CELL_KEY)
            offered = [booked(ledgers[number % 4]) for number in range(300)]
            moving = asyncio.to_thread(moved, sharded, CELL_KEY, another_primary(sharded, source))
            admitted, _ = await asyncio.gather(asyncio.gather(*offered), moving)
        assert sum(admitted) == 100
        assert await spent(ledgers[0]) == (before + 100 * COST, 0)


async def test_a_budget_over_cells_of_several_primaries_is_exact_while_one_is_moved(sharded: Cluster) -> None:
    keys = [f"{SPREAD}:{{c:{cell.name}}}:L" for cell in LAYOUT.cells]
    assert len({sharded.owner(key).url for key in keys}) > 1
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(spread_at(sharded.url, limit=100 * COST)) for _ in range(2)]
        offered = [booked(workers[number % 2], cell=number % 3) for number in range(150)]
        to = another_primary(sharded, sharded.owner(keys[1]))
        admitted, _ = await asyncio.gather(asyncio.gather(*offered), asyncio.to_thread(moved, sharded, keys[1], to))
        count = sum(admitted)
        async with asyncio.timeout(40):
            while count < 100:
                count += await booked(workers[0], cell=1)
        assert [await booked(workers[1], cell=cell) for cell in range(3)] == [False] * 3
        assert (count, await spent(workers[1])) == (100, (100 * COST, 0))
        assert await workers[0].audit(lanes=["k:one"], scopes=[SCOPE]) == []


async def test_a_killed_primary_is_left_for_its_replica(sharded: Cluster) -> None:
    owner = sharded.owner(CELL_KEY)
    store = RedisStateStore(sharded.url)
    async with ledger_at(sharded.url) as ledger:
        before, _ = await spent(ledger)
        assert await booked(ledger)
        with owner.client() as client:
            await asyncio.to_thread(until, lambda: cast("int", client.wait(1, 1000)) >= 1)
        owner.stop()
        assert await booked(ledger)
        assert ledger.forgotten >= 1
        assert await spent(ledger) == (before + 2 * COST, 0)

    async def back() -> bool:
        try:
            return await store.health_check()
        except StateStoreUnavailableError:
            return False

    async with asyncio.timeout(30):
        while not await back():
            await asyncio.sleep(0.1)
    await store.save_document("kind", "id", {"a": 1})
    assert await store.get_document("kind", "id") == {"a": 1}
    await store.aclose()
