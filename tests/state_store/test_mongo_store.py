"""What is MongoDB's own about the store, seen past it: in the collections, and by other processes."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.interfaces.state_store import Change, StateQuery
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyState, StateTransition
from apikeyrouter.domain.models.system_error import ConfigurationError, StateStoreError, StateStoreUnavailableError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.mongo_connection import redacted_mongodb_url
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.mongo_servers import DATABASE, drop, ferretdb_running, mongo_running
from tests.servers import free_port
from tests.service.running import MASTER_KEY, providers_of, running_service, wait_until

REQUEST = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
OTHER_PROCESS = """
import asyncio, sys
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore

async def main():
    store = MongoStateStore(sys.argv[1], sys.argv[2])
    await store.save_key(APIKey.parse({"id": "theirs", "provider_id": "openai", "encrypted_material": "v1:x:y"}))
    await store.aclose()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with mongo_running() as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    drop(server)
    return server


def key(key_id: str) -> APIKey:
    return APIKey.parse({"id": key_id, "provider_id": "openai", "encrypted_material": "v1:x:y"})


def collections(url: str) -> dict[str, list[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](url) as client:
        database = client[DATABASE]
        return {name: list(database[name].find()) for name in database.list_collection_names()}


async def test_everything_lies_in_the_database_under_the_namespace(url: str) -> None:
    one, other = MongoStateStore(url, DATABASE, "one"), MongoStateStore(url, DATABASE, "other")
    await one.save_key(key("k1"))
    await one.save_document("kind", "id", {"n": 1})
    assert await other.get_key("k1") is None
    assert all(name.startswith("one.") for name in collections(url))
    assert [each["_id"] for each in collections(url)["one.keys"]] == ["k1"]
    await one.aclose()
    await other.aclose()


async def test_a_trail_that_its_writer_could_not_move_is_found_all_the_same(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MongoStateStore(url, DATABASE)
    entry = StateTransition(entity_id="k1", from_state=KeyState.Available, to_state=None, reason="gone")

    async def dies(_: str) -> None:
        raise KeyboardInterrupt

    await store.save_key(key("k1"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "_move_trail", dies)
        with pytest.raises(KeyboardInterrupt):
            await store.change_key("k1", lambda _: KeyChange(key=None, transitions=(entry,)))
    other = MongoStateStore(url, DATABASE)
    assert await other.get_key("k1") is None
    for _ in range(2):
        assert [each.reason for each in await other.query_state(StateQuery("StateTransition"))] == ["gone"]
    assert collections(url)["apikeyrouter.keys"] == []
    await store.aclose()
    await other.aclose()


async def test_a_change_by_another_process_is_heard(url: str) -> None:
    store = MongoStateStore(url, DATABASE)
    heard: asyncio.Queue[Change] = asyncio.Queue()

    async def listen() -> None:
        async for change in store.watch():
            heard.put_nowait(change)

    listening = asyncio.create_task(listen())
    await store.version()
    command = [sys.executable, "-c", OTHER_PROCESS, url, DATABASE]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    assert (await asyncio.wait_for(heard.get(), 10)).id in ("theirs", "")
    found = await store.get_key("theirs")
    assert found is not None
    assert found.provider_id == "openai"
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await store.aclose()


async def test_a_server_that_loses_changes_made_at_once_is_refused_and_no_worker_over_it_becomes_ready(
    redis_url: str,
) -> None:
    with ferretdb_running() as url:
        store = MongoStateStore(url, DATABASE)
        with pytest.raises(StateStoreError, match="use MongoDB or FerretDB 2"):
            await store.health_check()
        await store.aclose()
        environ = {"MONGODB_URL": url, "MONGODB_DATABASE": DATABASE}
        async with running_service(redis_url, {}, environ=environ) as service, service.http() as client:
            assert (await client.get("/health/ready")).status_code == 503


async def test_something_of_somebody_else_in_our_collection_is_an_error_that_names_it(url: str) -> None:
    with MongoClient[dict[str, Any]](url) as client:
        client[DATABASE]["apikeyrouter.keys"].insert_one({"_id": "k1", "e": "not json"})
    store = MongoStateStore(url, DATABASE)
    with pytest.raises(StateStoreError, match="k1"):
        await store.get_key("k1")
    await store.save_key(APIKey(id="k2", provider_id="openai"))
    found = await store.query_state(StateQuery("APIKey"))  # it hides no other
    assert [(key.id, bool(key.unreadable)) for key in found] == [("k1", True), ("k2", False)]
    with pytest.raises(StateStoreError, match=r"k1.*revoke it"):
        await store.change_key("k1", lambda key: None if key is None else KeyChange(key=key))
    assert await store.change_key("k1", lambda _: KeyChange(key=None)) is not None
    assert [key.id for key in await store.query_state(StateQuery("APIKey"))] == ["k2"]
    await store.aclose()


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    store = MongoStateStore(f"mongodb://user:hunter2@127.0.0.1:{free_port()}/?directConnection=true")
    with pytest.raises(StateStoreUnavailableError, match="does not answer") as caught:
        await store.health_check()
    assert "hunter2" not in str(caught.value) + repr(store)
    await store.aclose()


@pytest.mark.parametrize("wrong", ["localhost:27017", "redis://localhost", "mongodb://", ""])
def test_a_url_that_is_none_is_refused_when_the_store_is_made(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="mongodb://"):
        MongoStateStore(wrong)


async def test_a_url_that_only_pymongo_finds_wrong_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="not valid") as caught:
        await MongoStateStore("mongodb://u:hunter2@host:port").health_check()
    assert "hunter2" not in redacted_mongodb_url("mongodb://u:hunter2@a,b/x?y=z") + str(caught.value).split("valid")[0]


async def test_a_router_keeps_its_keys_there_and_counts_in_redis_with_others(url: str, redis_url: str) -> None:
    async with SimulatorProcess({"organisations": [{"id": "o", "keys": ["sk-sim-1"]}]}) as simulator:
        stores = [MongoStateStore(url, DATABASE, redis_url=redis_url) for _ in range(2)]
        config = {"encryption_key": MASTER_KEY}
        async with ApiKeyRouter(stores[0], config=config) as one, ApiKeyRouter(stores[1], config=config) as two:
            for router in (one, two):
                await router.register_provider("openai", OpenAIAdapter(base_url=simulator.openai_url))
                await router.cost_controller.create_budget("global", 1, "daily", "hard")
            made = await one.register_key("sk-sim-1", "openai")

            async def heard() -> bool:
                return made.id in two.catalogue.keys

            await wait_until(heard)
            answers = [await router.route(REQUEST) for router in (one, two)]
            assert [answer.key_used for answer in answers] == [made.id] * 2
            cost = sum(answer.cost.amount for answer in answers if answer.cost)

            async def booked() -> bool:
                spent = [(await router.cost_controller.list_budgets())[0].current_spending for router in (one, two)]
                return spent == [cost] * 2 and cost > 0

            await wait_until(booked)
    found = collections(url)
    assert [each["_id"] for each in found["apikeyrouter.keys"]] == [made.id]
    assert len(found["apikeyrouter.decisions"]) == 2
    assert "sk-sim-1" not in str(found)


async def test_the_service_keeps_keys_in_mongodb_when_it_is_told_to(url: str, redis_url: str) -> None:
    async with SimulatorProcess({"organisations": [{"id": "o", "keys": ["sk-sim-1"]}]}) as simulator:
        config = {
            "providers": providers_of(simulator),
            "keys": [{"id": "k1", "provider": "openai", "key": "sk-sim-1", "models": ["gpt-4o-mini"]}],
        }
        environ = {"MONGODB_URL": url, "MONGODB_DATABASE": DATABASE}
        async with running_service(redis_url, config, environ=environ) as service, service.http() as client:
            assert (await client.post("/v1/chat/completions", json=REQUEST)).status_code == 200
            assert (await client.get("/health/ready")).status_code == 200
    found = collections(url)
    (keys,) = [name for name in found if name.endswith(".keys")]
    assert [each["_id"] for each in found[keys]] == ["k1"]
