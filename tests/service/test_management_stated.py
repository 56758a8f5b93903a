"""Limits and providers stated over the API: in force in every worker, versioned, in the audit log and the export."""

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
MATERIAL = "sk-sim-service-1"


@contextlib.asynccontextmanager
async def _two(server: Server, config: dict[str, Any]) -> AsyncIterator[tuple[Running, Running]]:
    shared = {**fresh_namespace(), "PROXY_PRIVATE_URLS": "true"}
    async with (
        running_service(server.url, config, environ=shared) as one,
        running_service(server.url, config, environ=shared) as other,
    ):
        yield one, other


async def _until(operator: httpx.AsyncClient, path: str, status: int) -> None:
    async def so() -> bool:
        return (await operator.get(path)).status_code == status

    await wait_until(so)


async def test_stated_limits_hold_in_the_other_worker(service_valkey: Server, config: dict[str, Any]) -> None:
    config["keys"] = [{**config["keys"][0], "quota_group": "org-a"}]
    async with (
        _two(service_valkey, config) as (one, other),
        one.operator() as here,
        other.operator() as there,
        other.http() as caller,
    ):
        body = {"quota_group": "org-a", "rows": [{"rpd": 3, "kind": "calendar"}, {"concurrency": 9}]}
        made = await here.post("/api/v1/limits", json=body)
        same = await here.post("/api/v1/limits", json=body)
        taken = await here.post("/api/v1/limits", json={**body, "rows": [{"rpd": 4}]})
        await _until(there, "/api/v1/limits/g:org-a:*", 200)
        first = [(await caller.post("/v1/chat/completions", json=BODY)).status_code for _ in range(4)]
        changed = await there.patch(
            "/api/v1/limits/g:org-a:*", json={"rows": [{"rpd": 5, "kind": "calendar"}]},
            headers={"if-match": made.headers["etag"]},
        )  # fmt: skip
        late = await here.patch(
            "/api/v1/limits/g:org-a:*", json={"rows": [{"rpd": 9}]}, headers={"if-match": made.headers["etag"]}
        )
        more = [(await caller.post("/v1/chat/completions", json=BODY)).status_code for _ in range(3)]
        gone = await there.delete("/api/v1/limits/g:org-a:*")
        free = (await caller.post("/v1/chat/completions", json=BODY)).status_code
        audit = (await here.get("/api/v1/audit", params={"kind": "limit"})).json()["audit"]
    assert (made.status_code, same.status_code, taken.status_code) == (201, 200, 409)
    assert (made.json()["source"], made.json()["rows"]) == ("api", body["rows"])
    assert first == [200, 200, 200, 429]
    assert (changed.status_code, late.status_code) == (200, 412)
    assert [(one["name"], one["capacity"], one["used"]) for one in changed.json()["limits"]] == [("rpd", 5, 3)]
    assert more == [200, 200, 429]
    assert (gone.status_code, free) == (204, 200)
    assert [one["action"] for one in audit] == ["limit.deleted", "limit.updated", "limit.created"]


async def test_a_keys_own_limits_and_those_of_some_models(service_valkey: Server, config: dict[str, Any]) -> None:
    config["keys"] = [{**config["keys"][0], "quota_group": "org-a"}]
    async with (
        running_service(service_valkey.url, config) as service,
        service.operator() as operator,
        service.http() as caller,
    ):
        own = await operator.post("/api/v1/limits", json={"key": "k1", "rows": [{"rpd": 2, "kind": "calendar"}]})
        some = await operator.post(
            "/api/v1/limits",
            json={"quota_group": "org-a", "models": ["gpt-4o"], "rows": [{"rpd": 1, "kind": "calendar"}]},
        )
        big = {**BODY, "model": "gpt-4o"}
        answers = [
            (await caller.post("/v1/chat/completions", json=body)).status_code for body in (big, big, BODY, BODY)
        ]
        listed = (await operator.get("/api/v1/limits")).json()["limits"]
    assert (own.status_code, some.status_code) == (201, 201)
    assert answers == [200, 429, 200, 429]
    assert {one["id"]: one["source"] for one in listed} == {"k:k1": "api", "g:org-a:gpt-4o": "api"}


async def test_what_a_file_limits_is_changed_in_the_file(service_valkey: Server, config: dict[str, Any]) -> None:
    config["limits"] = [{"key": "k1", "rpm": 100}]
    async with running_service(service_valkey.url, config) as service, service.operator() as operator:
        answers = [
            await operator.post("/api/v1/limits", json={"key": "k1", "rows": [{"rpm": 5}]}),
            await operator.patch("/api/v1/limits/k:k1", json={"rows": [{"rpm": 5}]}),
            await operator.delete("/api/v1/limits/k:k1"),
        ]
        free = await operator.delete("/api/v1/limits/k:k2")
        shown = (await operator.get("/api/v1/limits/k:k1")).json()
    assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(409, "declared_in_file")] * 3
    assert (free.status_code, free.json()["error"]["code"]) == (409, "declared_elsewhere")
    assert (shown["source"], shown["rows"], shown["limits"][0]["capacity"]) == ("file", None, 100)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"rows": [{"rpm": 1}]}, {"key": "k1", "rows": []}, {"key": "k1", "rows": [{}]},
        {"key": "k1", "quota_group": "x", "rows": [{"rpm": 1}]}, {"key": "k1", "models": ["x"], "rows": [{"rpm": 1}]},
        {"key": "nobody", "rows": [{"rpm": 1}]}, {"key": "k1", "rows": [{"rpm": -1}]},
        {"key": "k1", "rows": [{"rpm": 2**53}]}, {"key": "k1", "rows": [{"rpm": 5}, {"rpm": 6}]},
        {"key": "k1", "rows": [{"rpm": 5, "kind": "calendar"}]}, {"key": "k1", "rows": [{"nonsense": 5}]},
    ],
)  # fmt: skip
async def test_wrong_limits_are_refused(service: Running, body: dict[str, Any]) -> None:
    async with service.operator() as operator:
        answer = await operator.post("/api/v1/limits", json=body)
        listed = (await operator.get("/api/v1/limits")).json()
    assert (answer.status_code, listed["total"]) == (400, 0)


async def test_a_provider_is_registered_changed_and_forgotten_in_both_workers(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    config["keys"] = []
    async with (
        _two(service_valkey, config) as (one, other),
        one.operator() as here,
        other.operator() as there,
        other.http() as caller,
    ):
        body = {"id": "mine", "adapter": "openai", "base_url": simulator.openai_url, "timeouts": {"connect_ms": 900}}
        made = await here.post("/api/v1/providers", json=body)
        same = await here.post("/api/v1/providers", json=body)
        taken = await here.post("/api/v1/providers", json={**body, "adapter": "anthropic"})
        await _until(there, "/api/v1/providers/mine", 200)
        key = await there.post("/api/v1/keys", json={"key_material": MATERIAL, "provider_id": "mine"})
        served = await caller.post("/v1/chat/completions", json=BODY, headers={"x-akr-provider": "mine"})
        in_use = await here.delete("/api/v1/providers/mine")
        wrong = await there.patch("/api/v1/providers/mine", json={"adapter": "nonsense"})
        moved = await there.patch("/api/v1/providers/mine", json={"base_url": "http://127.0.0.1:9/v1"})
        lost = await caller.post("/v1/chat/completions", json=BODY, headers={"x-akr-provider": "mine"})
        await there.delete(f"/api/v1/keys/{key.json()['id']}")

        async def without_keys() -> bool:
            return bool((await here.get("/api/v1/providers/mine")).json()["keys"] == 0)

        await wait_until(without_keys)
        gone = await here.delete("/api/v1/providers/mine")
        await _until(there, "/api/v1/providers/mine", 404)
        of_file = await here.patch("/api/v1/providers/openai", json={"base_url": simulator.openai_url})
    assert (made.status_code, same.status_code, taken.status_code) == (201, 200, 409)
    assert (made.json()["source"], made.json()["timeouts"]) == ("api", {"connect_ms": 900})
    assert (key.status_code, served.status_code) == (201, 200), served.text
    assert (in_use.status_code, in_use.json()["error"]["code"]) == (409, "in_use")
    assert (wrong.status_code, moved.status_code, lost.status_code) == (400, 200, 502)
    assert (gone.status_code, of_file.status_code) == (204, 409)


async def test_one_that_is_there_from_the_start_goes_back_to_what_it_was(
    service_valkey: Server, simulator: SimulatorProcess
) -> None:
    private = {"PROXY_PRIVATE_URLS": "true"}
    async with (
        running_service(service_valkey.url, {}, environ=private) as service,
        service.operator() as operator,
        service.http() as caller,
    ):
        body = {"id": "openai", "adapter": "openai", "base_url": simulator.openai_url}
        made = await operator.post("/api/v1/providers", json=body)
        await operator.post("/api/v1/keys", json={"key_material": MATERIAL, "provider_id": "openai"})
        served = await caller.post("/v1/chat/completions", json=BODY)
        gone = await operator.delete("/api/v1/providers/openai")
        shown = (await operator.get("/api/v1/providers/openai")).json()
    assert (made.status_code, served.status_code, gone.status_code) == (201, 200, 204)
    assert (shown["source"], shown["base_url"], shown["keys"]) == ("builtin", None, 1)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"id": "x"}, {"id": "x", "adapter": "nonsense"}, {"id": "a b", "adapter": "openai"},
        {"id": "x", "adapter": "openai", "base_url": "ftp://x"},
        {"id": "x", "adapter": "openai", "base_url": "http://127.0.0.1:1/v1"},
        {"id": "x", "adapter": "openai", "base_url": "http://localhost/v1"},
        {"id": "x", "adapter": "openai", "options": {"nonsense": 1}},
        {"id": "x", "adapter": "openai", "timeouts": {"nonsense_ms": 1}},
        {"id": "x", "adapter": "openai", "breaker_settings": {"open_ms": 5000, "open_max_ms": 4000}},
        {"id": "x", "adapter": "generic"},
    ],
)  # fmt: skip
async def test_a_wrong_provider_is_refused(service: Running, body: dict[str, Any]) -> None:
    async with service.operator() as operator:
        answer = await operator.post("/api/v1/providers", json=body)
        known = await operator.get("/api/v1/providers/x")
    assert (answer.status_code, known.status_code) == (400, 404), answer.text


async def test_what_is_stated_comes_back_from_a_backup_and_a_restart(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    shared = {**fresh_namespace(), "PROXY_PRIVATE_URLS": "true"}
    async with running_service(service_valkey.url, config, environ=shared) as service, service.operator() as operator:
        body = {"id": "mine", "adapter": "openai", "base_url": simulator.openai_url}
        assert (await operator.post("/api/v1/providers", json=body)).status_code == 201
        key = (await operator.post("/api/v1/keys", json={"key_material": MATERIAL, "provider_id": "mine"})).json()["id"]
        stated = await operator.post("/api/v1/limits", json={"key": key, "rows": [{"rpd": 1, "kind": "calendar"}]})
        assert stated.status_code == 201, stated.text
        backup = (await operator.get("/api/v1/export", params={"secrets": True})).json()
    async with running_service(service_valkey.url, config, environ=shared) as service, service.operator() as operator:
        again = (await operator.get(f"/api/v1/limits/k:{key}")).json()
        there = (await operator.get("/api/v1/providers/mine")).json()
    assert (again["source"], again["rows"], there["keys"]) == ("api", [{"rpd": 1, "kind": "calendar"}], 1)
    elsewhere = {**fresh_namespace(), "PROXY_PRIVATE_URLS": "true"}
    async with (
        running_service(service_valkey.url, config, environ=elsewhere) as service,
        service.operator() as operator,
        service.http() as caller,
    ):
        done = await operator.post("/api/v1/import", json={"document": backup})
        pinned = {"x-akr-provider": "mine"}
        answers = [(await caller.post("/v1/chat/completions", json=BODY, headers=pinned)).status_code for _ in range(2)]
        second = (await operator.get("/api/v1/export", params={"secrets": True})).json()
    assert done.json()["made"] == {"provider": 1, "key": 1, "limit": 1}
    assert answers == [200, 429]
    assert (second["limits"], second["providers"]) == (backup["limits"], backup["providers"])


async def test_a_stated_providers_address_is_looked_at_when_a_connection_is_made(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At registration the name stands for a public address, later for this machine; and one has no address of its own,
    but a default that is one of this machine."""
    port = int(simulator.openai_url.rpartition(":")[2].partition("/")[0])
    told = {name: iter(["93.184.216.34"]) for name in ("rebinding.example", "told.example")}
    real = socket.getaddrinfo

    def name_service(host: str | bytes, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host  # httpx asks in bytes
        if name not in told:
            return real(host, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(told[name], "127.0.0.1"), port))]

    monkeypatch.setattr(socket, "getaddrinfo", name_service)
    stated: list[dict[str, Any]] = [
        {"id": "moved", "adapter": "openai", "base_url": f"http://rebinding.example:{port}/v1"},
        {"id": "default", "adapter": "vllm"},
        {
            "id": "told",
            "adapter": "generic",
            "base_url": f"http://told.example:{port}/v1",
            "options": {"path": "/chat/completions", "operations": ["chat"], "content": "choices.0.message.content"},
        },
    ]
    config["routing"] = {"translate": True}  # for the one that has an httpx client
    async with running_service(service_valkey.url, config) as service, service.operator() as operator:
        for provider in stated:
            assert (await operator.post("/api/v1/providers", json=provider)).status_code == 201
            key = {"key_material": MATERIAL, "provider_id": provider["id"], "metadata": {"models": [provider["id"]]}}
            made = await operator.post("/api/v1/keys", json=key)
            body = {**BODY, "model": provider["id"]}
            answer = await operator.post(
                "/v1/chat/completions", json=body, headers={"x-akr-provider": str(provider["id"])}
            )
            assert answer.status_code >= 500, answer.text
            assert "private address" in answer.text or provider["adapter"] == "generic", answer.text
            probed = (await operator.post(f"/api/v1/keys/{made.json()['id']}/probe")).json()
            assert probed["works"] is None or provider["adapter"] == "generic"
        assert (await operator.post("/v1/chat/completions", json=BODY)).status_code == 200
    assert (await simulator.report())["total"]["arrived"] == 1
