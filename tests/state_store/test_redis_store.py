"""What only the shared store has to prove."""

import asyncio
import contextlib
import multiprocessing
import os
import threading
from typing import Any

import pytest

from apikeyrouter.domain.interfaces.state_store import Change, StateQuery
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    StateStoreError,
    StateStoreUnavailableError,
)
from apikeyrouter.infrastructure.state_store.redis_connection import redacted_url
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.infrastructure.state_store.redis_watch import Watermark
from tests.servers import Server, free_port, running


def key(key_id: str) -> APIKey:
    return APIKey(id=key_id, provider_id="openai", encrypted_material="v1:x:y")


async def test_every_key_in_the_server_lies_under_the_namespace(any_server: Server) -> None:
    store = RedisStateStore(redis_url=any_server.url, namespace="blue")
    await store.save_key(key("k1"))
    await store.save_document("kind", "id", {})
    await store.aclose()
    with any_server.client() as client:
        names: Any = client.keys("*")
    assert names
    assert all(name.startswith(b"blue:e:{e}:") for name in names)


async def test_namespaces_do_not_see_each_other(redis_url: str) -> None:
    blue, green = (RedisStateStore(redis_url=redis_url, namespace=name) for name in ("blue", "green"))
    await blue.save_key(key("k1"))
    assert await green.get_key("k1") is None
    assert await green.version() == 0
    await blue.aclose()
    await green.aclose()


async def test_what_a_newer_version_added_is_left_out_when_read(redis_url: str) -> None:
    store = RedisStateStore(redis_url=redis_url)
    await store._redis.hset("apikeyrouter:e:{e}:keys", "k1", '{"id":"k1","provider_id":"openai","colour":"blue"}')
    found = await store.get_key("k1")
    assert found is not None
    assert found.provider_id == "openai"
    await store.aclose()


@pytest.mark.parametrize("text", ["{", "[]", '{"id":7}'])
async def test_something_of_somebody_else_under_our_keys_is_an_error_that_names_the_key(
    redis_url: str, text: str
) -> None:
    store = RedisStateStore(redis_url=redis_url)
    await store._redis.hset("apikeyrouter:e:{e}:keys", "k1", text)
    with pytest.raises(StateStoreError, match=r"apikeyrouter:e:\{e\}:keys"):
        await store.get_key("k1")
    await store._redis.set("apikeyrouter:e:{e}:keys", "not a hash")
    with pytest.raises(StateStoreError, match="WRONGTYPE"):
        await store.query_state(StateQuery("APIKey"))
    await store.aclose()


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    store = RedisStateStore(redis_url=f"redis://user:hunter2@127.0.0.1:{free_port()}/0")
    with pytest.raises(StateStoreUnavailableError, match="does not answer") as caught:
        await store.health_check()
    assert "hunter2" not in str(caught.value) + repr(store)


async def test_wrong_credentials_are_said_to_be_wrong() -> None:
    with running(options=("--requirepass", "right")) as server:
        port = server.url.rpartition(":")[2]
        store = RedisStateStore(redis_url=f"redis://:wrong@127.0.0.1:{port}")
        with pytest.raises(StateStoreError, match="credentials"):
            await store.health_check()


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "redis://", "redis+sentinel://localhost:26379", ""]
)
def test_a_url_that_is_none_is_refused_when_the_store_is_made(url: str) -> None:
    with pytest.raises(ConfigurationError):
        RedisStateStore(redis_url=url)


@pytest.mark.parametrize("namespace", ["", "a{b}", "a b", "x" * 65])
def test_a_namespace_that_could_break_the_key_layout_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        RedisStateStore(namespace=namespace)


def test_a_url_in_a_message_has_neither_password_nor_query() -> None:
    assert redacted_url("rediss://u:p@h:1/2?password=x") == "rediss://h:1/2"
    assert redacted_url("redis+sentinel://u:p@a:1,b:2/m/0") == "redis+sentinel://a:1,b:2/m/0"


def test_several_event_loops_in_threads_use_one_store(redis_url: str) -> None:
    store = RedisStateStore(redis_url=redis_url)

    async def write(n: int) -> None:
        await store.save_key(key(f"k{n}"))
        await store.aclose()

    threads = [threading.Thread(target=asyncio.run, args=(write(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def count() -> int:
        found = len(await store.query_state(StateQuery("APIKey")))
        await store.aclose()
        return found

    assert asyncio.run(count()) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_opens_connections_of_its_own(redis_url: str) -> None:
    store = RedisStateStore(redis_url=redis_url)
    with asyncio.Runner() as runner:
        runner.run(store.save_key(key("parent")))
        child = multiprocessing.get_context("fork").Process(target=_write_in_child, args=(store,))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        found = runner.run(store.query_state(StateQuery("APIKey")))
        runner.run(store.aclose())
    assert sorted(entity.id for entity in found) == ["child", "parent"]


def _write_in_child(store: RedisStateStore) -> None:
    async def write() -> None:
        await store.save_key(key("child"))
        await store.aclose()

    asyncio.run(write())


async def test_a_change_made_by_another_process_is_heard_and_one_during_an_outage_is_made_good(redis_url: str) -> None:
    reader, writer = RedisStateStore(redis_url=redis_url), RedisStateStore(redis_url=redis_url)
    heard: asyncio.Queue[Change] = asyncio.Queue()
    watching = asyncio.create_task(_forward(reader, heard))
    await _until_heard(writer, heard)

    await writer._redis.client_kill_filter(_type="pubsub")
    missed = int(await writer._redis.incr("apikeyrouter:e:{e}:version"))
    told = await asyncio.wait_for(heard.get(), 10)
    assert (told.version, told.kind) == (missed, "")
    await _until_heard(writer, heard)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await reader.aclose()
    await writer.aclose()


async def _forward(store: RedisStateStore, heard: "asyncio.Queue[Change]") -> None:
    async for change in store.watch():
        heard.put_nowait(change)


async def _until_heard(writer: RedisStateStore, heard: "asyncio.Queue[Change]") -> None:
    """Write until a notice comes, so that the watcher is known to listen; then everything told so far is taken."""
    for n in range(100):
        await writer.save_key(key(f"probe{n}"))
        with contextlib.suppress(TimeoutError):
            while (await asyncio.wait_for(heard.get(), 0.1)).id != f"probe{n}":
                pass
            return
    raise AssertionError("the watcher never heard anything")


def test_notices_that_overtook_each_other_leave_no_gap() -> None:
    mark = Watermark(4)
    mark.heard(6)
    mark.heard(5)
    assert mark.caught_up(6)


def test_a_lost_notice_is_seen_at_the_next_look_and_only_then() -> None:
    mark = Watermark(4)
    mark.heard(6)
    assert not mark.caught_up(6)
    assert mark.caught_up(6)


def test_a_version_that_went_back_counts_as_a_change() -> None:
    mark = Watermark(9)
    assert not mark.caught_up(1)
    assert mark.caught_up(1)
