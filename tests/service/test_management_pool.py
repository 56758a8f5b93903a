"""The pool at a glance, held against what was done to its keys through other doors."""

from datetime import datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

API = "/api/v1"
CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


@pytest_asyncio.fixture(loop_scope="package")
async def service(service_valkey: Server, config: dict[str, Any]) -> Any:
    config["keys"][0] |= {"quota_group": "org-a", "metadata": {"tier": "pro", "tags": ["night", 7]}}
    config["limits"] = [{"quota_group": "org-a", "rpd": 4, "kind": "calendar"}, {"quota_group": "org-a", "rpm": 5000}]
    async with running_service(service_valkey.url, config) as started:
        yield started


async def _pool(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(f"{API}/pool", params=params)
    assert answer.status_code == 200, answer.text
    return {key["id"]: key for key in answer.json()["keys"]}


async def test_a_key_tells_its_tightest_limit_and_what_is_left_of_it(service: Running) -> None:
    async with service.operator() as client, service.http() as caller:
        untouched = (await _pool(client))["k1"]
        assert (untouched["headroom"], untouched["tier"], untouched["tags"]) == (1.0, "pro", ["night"])
        for _ in range(3):
            answer = await caller.post("/v1/chat/completions", json=CHAT, headers={"x-akr-provider": "openai"})
            assert answer.status_code == 200, answer.text

        async def seen() -> bool:
            limits = (await client.get(f"{API}/limits/g:org-a:*")).json()["limits"]
            daily = next(limit for limit in limits if limit["name"].startswith("rpd"))
            key = (await _pool(client))["k1"]
            return bool(daily["used"] and key["binding"] and key["binding"]["used"] == daily["used"])

        await wait_until(seen)
        key = (await _pool(client))["k1"]
        assert (key["binding"]["lane"], key["binding"]["counts"]) == ("g:org-a:*", "requests")
        assert key["headroom"] == key["binding"]["remaining"] / key["binding"]["capacity"]
        assert key["lanes"][0] == "k:k1"
        assert key["lanes"][-1] == "p:openai"


async def test_a_key_without_a_known_limit_has_no_known_headroom(service: Running) -> None:
    async with service.operator() as client:
        key = (await _pool(client))["a1"]
    assert key["headroom"] is None
    assert key["binding"] is None


async def test_a_key_tells_why_it_is_out_and_until_when(service: Running) -> None:
    async with service.operator() as client:
        told = {"state": "throttled", "reason": "too fast", "for_seconds": 60}
        assert (await client.patch(f"{API}/keys/k2", json=told)).status_code == 200
        key = (await _pool(client))["k2"]
        shown = (await client.get(f"{API}/keys/k2")).json()
    assert (key["state"], key["state_reason"]) == ("throttled", "too fast")
    assert datetime.fromisoformat(key["state_until"]) == datetime.fromisoformat(shown["state_until"])


async def test_the_pool_comes_in_parts_and_pages(service: Running) -> None:
    async with service.operator() as client:
        assert set(await _pool(client, provider_id="anthropic")) == {"a1"}
        assert set(await _pool(client, quota_group="org-a")) == {"k1"}
        first = (await client.get(f"{API}/pool", params={"limit": 2})).json()
        rest = (await client.get(f"{API}/pool", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [key["id"] for key in first["keys"] + rest["keys"]] == ["a1", "k1", "k2"]
    assert (first["total"], rest["next_cursor"]) == (3, None)


async def test_a_limit_that_is_being_used_up_is_foretold(service: Running) -> None:
    async with service.operator() as client, service.http() as caller:

        async def foretold() -> bool:
            await caller.post("/v1/chat/completions", json=CHAT, headers={"x-akr-provider": "openai"})
            lanes = (await client.get(f"{API}/limits", params={"forecast": True})).json()["limits"]
            group = next(lane for lane in lanes if lane["id"] == "g:org-a:*")
            daily = next(limit for limit in group["limits"] if limit["name"].startswith("rpd"))
            return bool(daily["forecast"] and daily["forecast"]["probability"] == 1)

        await wait_until(foretold)
        plain = (await client.get(f"{API}/limits")).json()["limits"]
        assert [limit["forecast"] for lane in plain for limit in lane["limits"]] == [None] * sum(
            len(lane["limits"]) for lane in plain
        )


async def test_an_admin_key_learns_who_it_is(service: Running) -> None:
    async with service.operator() as client:
        made = (await client.post(f"{API}/admin-keys", json={"name": "ann", "role": "read"})).json()
        first = (await client.get(f"{API}/whoami")).json()
    async with service.http(headers={"X-API-Key": made["key"]}) as client:
        ann = (await client.get(f"{API}/whoami")).json()
    assert (first["role"], ann["name"], ann["role"]) == ("admin", "ann", "read")


async def test_a_request_is_tried_out_without_being_sent(service: Running) -> None:
    async with service.operator() as client:
        tried = (await client.post(f"{API}/decisions/dry-run", json={"model": "gpt-4o-mini"})).json()
        assert tried["selected_key_id"] in ("k1", "k2")
        assert {one["key_id"] for one in tried["candidates"]} == {"k1", "k2"}
        assert tried["hold_ids"] == []
        assert (await client.get(f"{API}/reservations")).json()["total"] == 0
        assert (await client.get(f"{API}/usage")).json()["sum"]["requests"] == 0
        unknown = await client.post(f"{API}/decisions/dry-run", json={"model": "no-such-model"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "model")


async def test_a_key_tells_its_last_failure_whichever_worker_saw_it(
    service_valkey: Server, simulator: SimulatorProcess, config: dict[str, Any]
) -> None:
    config["keys"] = config["keys"][:2]
    fleet = fresh_namespace()
    async with (
        running_service(service_valkey.url, config, environ=fleet) as one,
        running_service(service_valkey.url, config, environ=fleet) as other,
        one.operator() as client, other.operator() as elsewhere, one.http() as caller,
    ):  # fmt: skip
        await simulator.fail("server_error", count=1)
        answer = await caller.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text  # the other key served it
        failed = next(key for key in (await _pool(client)).values() if key["last_error"])
        error = failed["last_error"]
        assert (error["category"], error["status"], error["model"]) == ("provider_error", 500, "gpt-4o-mini")
        told = (await client.get(f"{API}/decisions/{error['request_id']}")).json()
        assert told["tried"][0]["key_id"] == failed["id"]
        assert told["tried"][0]["failure"] == error["category"]
        await one.runtime.fleet.beat()
        assert (await _pool(elsewhere))[failed["id"]]["last_error"] == error
        assert [key["id"] for key in (await _pool(elsewhere)).values() if key["last_error"]] == [failed["id"]]
        await caller.post("/v1/chat/completions", json={**CHAT, "messages": "nonsense"})
        assert (await _pool(client))[failed["id"]]["last_error"] == error  # the caller's own fault is no key's
        await one.runtime.router.key_manager.revoke_key(failed["id"])
        one.runtime.fleet._tidy_at = 0.0
        await one.runtime.fleet.beat()
        assert await one.runtime.fleet.failures._kept([failed["id"]]) == [None]
