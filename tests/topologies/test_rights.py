"""A user with the least rights: all that a service does works under it, and it has no right that nothing needs.

The rights are read from docs/redis-keys.md, as an operator copies them.
"""

import asyncio
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyState, StateTransition
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.state_store.records import records_for
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter_proxy.metrics_sharing import SharedMetrics
from tests.ledger.histories import Call, History, Wind
from tests.ledger.support import NAMESPACE, START_US, set_virtual_now
from tests.servers import Server, binaries, running
from tests.topologies.books import booked, ledger_at

PAGE = Path(__file__).parents[2] / "docs" / "redis-keys.md"
SEEDS, EVENTS = (1, 2, 3), 220
OURS = "apikeyrouter"
NOT_ASKED_FOR = {"auth", "hello", "client|setinfo", "quit"}
"""What a server lets everybody do, and what redis-py does without."""
IN_A_CLUSTER = {"cluster|slots", "asking"}


def stated() -> list[str]:
    """The words of ACL SETUSER as the page has them, the namespace in its place."""
    block = re.search(r"```\nACL SETUSER apikeyrouter (.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    return block.group(1).split()


@dataclass(frozen=True, slots=True)
class Kept:
    """A server with that user, and what happened there."""

    server: Server
    url: str

    def used(self) -> set[str]:
        """Commands that ran, those inside scripts included."""
        with self.server.client() as client:
            stats: Any = client.info("commandstats")
        return {name.removeprefix("cmdstat_") for name, told in stats.items() if told["calls"] > 0}

    def denied(self) -> set[str]:
        """What the user was not let do."""
        with self.server.client() as client:
            log: Any = client.acl_log()
        return {f"{entry['reason']} {entry['object']}" for entry in log if entry["object"] != "client|setinfo"}


def with_user(server: Server, words: list[str]) -> Kept:
    """Make the user; from here on it is counted what is done."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "service", "on", ">secret", *words)
        client.execute_command("ACL", "LOG", "RESET")
        client.config_resetstat()
    return Kept(server, server.url.replace("redis://", "redis://service:secret@"))


@pytest.fixture(params=list(binaries()))
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    """A fresh server with the user that the page describes, for both namespaces of this test."""
    with running(request.param) as server:
        words = [word for word in stated() if word not in ("on", ">PASSWORD")]
        other = [word.replace(OURS, NAMESPACE) for word in words if word[0] in "~&"]
        yield with_user(server, [*words, *other])


async def everything(kept: Kept) -> None:
    """All that workers, their operators and `doctor` ask of a server."""
    await every_script(kept)
    async with ledger_at(kept.url) as ledger:
        assert await booked(ledger)
    await every_entity(RedisStateStore(kept.url))
    shared = SharedMetrics(kept.url, namespace=OURS, counters=dict, gauges=dict)
    await shared.publish()
    with kept.server.client() as client:  # of a worker that is long gone
        client.hset(f"{OURS}:metrics:{{{socket.gethostname()}}}", "dead", '{"at":1.0,"gauges":{},"counters":{}}')
    await shared.take_over()
    await shared.totals()
    await shared.close()
    await doctor(kept.url)


async def every_script(kept: Kept) -> None:
    """Random histories of all scripts, on a clock of their own."""
    with kept.server.client() as client:
        for seed in SEEDS:
            engine = RedisEngine(kept.url, namespace=NAMESPACE, timeout_s=20.0, virtual_time=True)
            set_virtual_now(client, START_US)
            await engine.open()
            for event in History(seed, START_US).events(EVENTS):
                if isinstance(event, Wind):
                    set_virtual_now(client, event.now_us)
                elif isinstance(event, Call):
                    await engine.run(event.name, event.args, pool=event.pool)
            await engine.close()
            client.flushall()


async def every_entity(store: RedisStateStore) -> None:
    """Every method of the store and of its records."""
    key = APIKey(id="k1", provider_id="openai", encrypted_material="v1:x:y")
    watching = asyncio.create_task(anext(cast("Any", store.watch())))
    await store.save_key(key)
    await store.change_key("k1", lambda known: KeyChange(key=known))
    await store.get_key("k1")
    await store.query_state(StateQuery("APIKey"))
    await store.save_state_transition(a_transition())
    for entity in ("QuotaState", "RoutingDecision", "StateTransition", "Policy"):
        await store.query_state(StateQuery(cast("Any", entity)))
    await store.save_document("kind", "id", {"a": 1})
    await store.get_document("kind", "id")
    await store.list_documents("kind")
    await store.delete_document("kind", "id")
    await store.save_note("kind", "id", {}, seconds=10)
    await store.get_note("kind", "id")
    await store.replace_note("kind", "id", {}, {"a": 1}, seconds=10)
    await store.add_counts("key_failures", {"k1": 1})
    await store.get_counts("key_failures", ["k1"])
    await store.version()
    await store.health_check()
    while not watching.done():
        await store.save_document("kind", "id", {"a": 1})
        await asyncio.sleep(0.05)
    await store._add_decisions(["f"])
    await store.change_key("k1", lambda _: KeyChange(key=None))
    await every_record(store)
    await store.aclose()


def a_transition() -> StateTransition:
    """Any."""
    return StateTransition(entity_id="k1", from_state=KeyState.Available, to_state=KeyState.Disabled, reason="test")


async def every_record(store: RedisStateStore) -> None:
    """Every method of the management plane's records."""
    records = records_for(store)
    async with records.turn("test"):
        await records.append("audit", {"what": "it"}, kept=10)
    await records.entries("audit")
    await records.claim("it", seconds=10)
    await records.remember("it", {}, seconds=10)
    await records.recall("it")
    await records.add_counts("usage-1", {"a": 1})
    await records.all_counts("usage-1")
    for name in ("one", "two"):
        await records.enqueue("webhooks", name, {"a": 1}, once_seconds=10)
    await records.waiting("webhooks", limit=10)
    one, two = await records.take("webhooks", count=2, seconds=5)
    await records.settle("webhooks", one, again=None)
    await records.settle("webhooks", two, again={"a": 2}, delay=1.0)
    await records.close()


async def doctor(url: str) -> None:
    """What `apikeyrouter doctor` asks besides."""
    from apikeyrouter.infrastructure.state_store.redis_connection import open_client
    from apikeyrouter_proxy.doctor.store import look_into
    from apikeyrouter_proxy.doctor.surroundings import look_around

    client = open_client(url)
    await client.time()
    info = await client.info()
    await client.aclose()
    found = await look_into(url, info, look_around(config=None), embedded=True)
    assert [finding for finding in found if finding.check == "store"] == []


async def test_everything_works_under_the_least_rights_and_each_is_needed(kept: Kept) -> None:
    await everything(kept)
    assert kept.denied() == set()
    rights = {word[1:] for word in stated() if word.startswith("+")}
    assert sorted(rights - kept.used() - IN_A_CLUSTER) == []
    assert NOT_ASKED_FOR.isdisjoint(rights)


@pytest.mark.parametrize("right", ["fcall", "function|list", "function|load"])
async def test_a_right_that_is_missing_is_named_when_the_ledger_opens(kept: Kept, right: str) -> None:
    with kept.server.client() as client:
        client.execute_command("ACL", "SETUSER", "service", f"-{right}")
    ledger = ScriptLedger(RedisEngine(kept.url))
    with pytest.raises(LedgerConfigError, match=r"refused: NOPERM.*docs/redis-keys\.md"):
        await ledger.open()
    await ledger.close()


async def test_other_peoples_keys_are_out_of_reach(kept: Kept) -> None:
    with redis.Redis.from_url(kept.url) as client, pytest.raises(redis.ResponseError, match="permission"):
        client.get("somebody:else")
