"""The fleet: what workers say of themselves, how the store is, and what is wrong with the deployment."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from apikeyrouter.domain.components.reservation_ids import new_rid, process_of, process_tag
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_proxy.workers import KEPT_US, LOST_KEPT_MAX, LOST_US, WorkerRecord, forgotten, reserve_times
from tests.servers import Server
from tests.service.conftest import KEYS
from tests.service.running import Running, providers_of, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
OTHER = WorkerRecord(
    id="ab12cd", host="other", pid=7, version="0", started_at_us=1, at_us=1, mode="normal", config_version=1,
    decisions_per_second=0, open_requests=0, waiting=0, waiting_longest_us=0, reserve_p50_us=None, reserve_p99_us=None,
    clock_offset_us=0, clock_suspected=False, unsettled=0, memory_bytes=1, cpu_share=0,
)  # fmt: skip


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def service(service_valkey: Server, shared_simulator: SimulatorProcess) -> Any:
    await shared_simulator.reset()
    config = {
        "providers": providers_of(shared_simulator), "keys": KEYS,
        "models": {"fast": [{"provider": "openai", "model": "gpt-nobody-knows"}]},
    }  # fmt: skip
    async with running_service(service_valkey.url, config) as started:
        yield started


async def _get(service: Running, path: str) -> Any:
    async with service.operator() as client:
        answer = await client.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()


async def _say(service: Running, record: WorkerRecord) -> None:
    key = f"{service.runtime.settings.namespace}:m:{{m}}:workers"
    assert service.runtime.fleet._client is not None
    await service.runtime.fleet._client.hset(key, record.id, msgspec.json.encode(record).decode())


async def test_a_worker_tells_of_itself_and_of_the_requests_that_it_served(service: Running) -> None:
    async with service.http() as caller:
        for _ in range(3):
            assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200
    await service.runtime.fleet.beat()
    own = next(one for one in (await _get(service, "/workers"))["workers"] if one["id"] == process_tag())
    assert own["state"] == "normal"
    assert own["decisions_per_second"] > 0
    assert 0 < own["reserve_p50_us"] <= own["reserve_p99_us"]
    assert own["memory_bytes"] > 10_000_000
    assert own["config_version"] == service.runtime.router.ledger.stamp.config_version
    assert abs(own["clock_offset_ms"]) < 60_000


async def test_who_says_nothing_any_more_is_lost_and_at_last_forgotten(service: Running) -> None:
    now_us = service.runtime.router.ledger_now_us
    for id_, age_us in (("000001", 0), ("000002", LOST_US + 1_000_000), ("000003", KEPT_US + 1_000_000)):
        await _say(service, msgspec.structs.replace(OTHER, id=id_, at_us=now_us - age_us))
    found = {one["id"]: one["state"] for one in (await _get(service, "/workers"))["workers"]}
    assert (found["000001"], found["000002"], found["000003"]) == ("normal", "lost", "lost")
    service.runtime.fleet._tidy_at = 0.0
    await service.runtime.fleet.beat()
    found = {one["id"]: one["state"] for one in (await _get(service, "/workers"))["workers"]}
    assert found.keys() & {"000001", "000002", "000003"} == {"000001", "000002"}


async def test_a_service_that_stops_is_there_no_more(service_valkey: Server, config: dict[str, Any]) -> None:
    async with running_service(service_valkey.url, config) as started:
        fleet = started.runtime.fleet
        await fleet.beat()
        client = service_valkey.client()
        assert client.hlen(fleet._key) == 1
        started.runtime.leaving = True
        assert (await _get(started, "/workers"))["workers"][0]["state"] == "draining"
    assert client.hlen(fleet._key) == 0


async def test_of_lost_workers_only_so_many_are_remembered() -> None:
    lost = [msgspec.structs.replace(OTHER, id=f"{n:06}", at_us=n) for n in range(LOST_KEPT_MAX + 5)]
    assert sorted(forgotten(lost, now_us=LOST_US + 1000)) == [f"{n:06}" for n in range(5)]


async def test_times_of_reserves_are_those_since_the_last_look() -> None:
    def facts(at_us: int, *times: int) -> Facts:
        attempts = [AttemptFacts(key_id="k", provider_id="p", model="m", rid=b"", reserve_us=time) for time in times]
        return Facts(
            request_id="r", operation="chat", model="m", stream=False, objective="", team=None, client=None,
            at_us=at_us, attempts=attempts,
        )  # fmt: skip

    told = [facts(1, 9_000), facts(10, 100), facts(11, 200, 300), facts(12)]
    assert reserve_times(told, since_us=10) == (200, 300)
    assert reserve_times(told, since_us=12) == (None, None)


async def test_an_id_of_a_reservation_tells_which_process_made_it() -> None:
    ids = [new_rid() for _ in range(600)]
    assert {process_of(rid) for rid in ids} == {process_tag()}
    assert len(set(ids)) == 600
    assert {len(rid) for rid in ids} == {16}


async def test_the_store_tells_how_it_is(service: Running, service_valkey: Server) -> None:
    told = await _get(service, "/store")
    assert (told["server"], told["role"], told["eviction"]) == ("Valkey", "master", "noeviction")
    assert told["version"] == service_valkey.version
    assert told["append_only"] is False
    assert 0 < told["ping_us"] <= told["ping_us_max"]
    assert told["memory_bytes"] > 0


async def test_what_doctor_finds_is_told_with_a_remedy(service: Running) -> None:
    told = await _get(service, "/findings")
    found = {one["check"]: one for one in told["findings"]}
    assert (found["eviction"]["verdict"], found["eviction"]["remedy"]) == ("ok", None)
    assert found["persistence"]["verdict"] == "warning"
    assert "appendonly" in found["persistence"]["remedy"]
    assert "gpt-nobody-knows" in found["prices"]["found"]
    assert found["stored keys"]["verdict"] == "ok"
    assert datetime.now(UTC) - datetime.fromisoformat(told["as_of"]) < timedelta(minutes=5)
    assert (await _get(service, "/findings"))["as_of"] == told["as_of"]  # believed for some seconds


async def test_a_server_that_evicts_is_found_while_the_service_runs(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    async with running_service(service_valkey.url, config) as started:
        client = service_valkey.client()
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            found = {one["check"]: one for one in (await _get(started, "/findings"))["findings"]}
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert (found["eviction"]["verdict"], found["eviction"]["found"]) == ("problem", "allkeys-lru")


async def test_a_reader_may_look_at_all_of_it_and_nobody_else(service: Running) -> None:
    async with service.operator() as client, service.http() as nobody:
        made = (await client.post("/api/v1/admin-keys", json={"name": "looker", "role": "read"})).json()["key"]
        for path in ("/workers", "/store", "/findings"):
            assert (await nobody.get(f"/api/v1{path}")).status_code == 401
            assert (await nobody.get(f"/api/v1{path}", headers={"X-API-Key": made})).status_code == 200


async def test_with_the_store_away_the_worker_says_so_itself(service: Running) -> None:
    async def mode() -> str:
        return str(
            next(one for one in (await _get(service, "/workers"))["workers"] if one["id"] == process_tag())["state"]
        )

    gate = service.runtime.router.ledger.cells[0].gate
    gate.away = True
    try:
        assert await mode() == "store_away"
    finally:
        gate.away = False

    async def normal() -> bool:
        return await mode() == "normal"

    await wait_until(normal)
