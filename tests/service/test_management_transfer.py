"""Export and import: what was configured comes back, what was spent stays, and no secret is in the clear."""

import json
from typing import Any

import httpx
import pytest

from tests.servers import Server
from tests.service.running import Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
MATERIAL = "sk-sim-service-2"


async def _furnish(operator: httpx.AsyncClient) -> str:
    """One of each; the client's token."""
    for path, body in (
        ("keys", {"key_material": MATERIAL, "provider_id": "openai"}),
        ("budgets", {"scope": "client", "scope_id": "app", "limit_usd": 5, "period": "daily"}),
        ("policies", {"name": "no gemini", "rules": {"denied_providers": ["gemini"]}}),
        ("admin-keys", {"name": "ann", "role": "read"}),
        ("webhooks", {"name": "pager", "url": "https://example.com/hook"}),
    ):
        made = await operator.post(f"/api/v1/{path}", json=body)
        assert made.status_code == 201, made.text
    answer = await operator.post("/api/v1/clients", json={"name": "app", "rpm": 600})
    token: str = answer.json()["token"]
    return token


async def _take_in(operator: httpx.AsyncClient, document: Any, **options: Any) -> httpx.Response:
    return await operator.post("/api/v1/import", json={"document": document, **options})


async def test_what_was_exported_comes_back_in_an_empty_store(service_valkey: Server, config: dict[str, Any]) -> None:
    del config["keys"]
    async with running_service(service_valkey.url, config) as service, service.operator() as operator:
        token = await _furnish(operator)
        shown = (await operator.get("/api/v1/export")).text
        backup = (await operator.get("/api/v1/export", params={"secrets": True})).json()
    assert not any(secret in shown + json.dumps(backup) for secret in (token, MATERIAL, "whsec_"))
    assert "sha256" not in shown
    async with (
        running_service(service_valkey.url, config) as service,
        service.operator() as operator,
        service.http() as caller,
    ):
        tried = await _take_in(operator, backup, dry_run=True)
        nothing = (await operator.get("/api/v1/clients")).json()["total"]
        done = await _take_in(operator, backup)
        again = await _take_in(operator, backup)
        answer = await caller.post("/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {token}"})
        books = (await operator.get("/api/v1/budgets/client:app:daily")).json()
        second = (await operator.get("/api/v1/export", params={"secrets": True})).json()
    assert (tried.json()["made"], nothing) == (done.json()["made"], 0)
    assert done.json()["made"] == dict.fromkeys(("key", "client", "budget", "policy", "admin_key", "webhook"), 1)
    assert again.json()["kept"] == done.json()["made"]
    (key,) = (one for one in again.json()["entries"] if one["section"] == "keys")
    assert key == {"section": "keys", "index": 0, "id": backup["keys"][0]["id"], "outcome": "kept"}
    assert {one["outcome"] for one in done.json()["entries"]} == {"made"}
    assert (answer.status_code, books["limit_usd"]) == (200, 5)
    for document in (backup, second):
        document["exported_at"] = None
        for key in document["keys"]:
            key.update(usage_count=0, last_used_at=None, updated_at=None, organization="")
    assert second == backup


async def test_a_restore_leaves_what_was_spent(service: Running) -> None:
    async with service.operator() as operator, service.http() as caller:
        token = await _furnish_client(operator)
        backup = (await operator.get("/api/v1/export", params={"secrets": True})).json()
        await caller.post("/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {token}"})

        async def booked() -> bool:
            return bool((await operator.get("/api/v1/budgets/client:app:daily")).json()["settled_usd"] > 0)

        await wait_until(booked)
        before = (await operator.get("/api/v1/budgets/client:app:daily")).json()["settled_usd"]
        await operator.patch("/api/v1/budgets/client:app:daily", json={"limit_usd": 1})
        done = await _take_in(operator, backup, replace=True)
        after = (await operator.get("/api/v1/budgets/client:app:daily")).json()
    assert done.json()["replaced"] == {"client": 1, "budget": 1}
    assert (after["settled_usd"], after["limit_usd"]) == (before, 5)


async def _furnish_client(operator: httpx.AsyncClient) -> str:
    body = {"scope": "client", "scope_id": "app", "limit_usd": 5, "period": "daily"}
    assert (await operator.post("/api/v1/budgets", json=body)).status_code == 201
    token: str = (await operator.post("/api/v1/clients", json={"name": "app"})).json()["token"]
    return token


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "version"),
        ({"version": 2}, "version"),
        ({"version": 1, "clients": [{"name": "x"}]}, "clients[0]"),
        ({"version": 1, "clients": [{"name": "x", "token_sha256": "short"}]}, "clients[0]"),
        ({"version": 1, "keys": [{"id": "x", "provider_id": "openai"}]}, "keys[0]"),
        ({"version": 1, "keys": [{"id": "x", "provider_id": "openai", "encrypted_material": "v1:a:b"}]}, "keys[0]"),
        ({"version": 1, "budgets": [{"id": "global:x", "limit": -1}]}, "budgets[0]"),
        ({"version": 1, "policies": [{"name": "x", "rules": {"nonsense": 1}}]}, "policies[0]"),
        ({"version": 1, "webhooks": [{"name": "x"}]}, "webhooks[0]"),
        ({"version": 1, "nonsense": []}, "nonsense"),
    ],
)
async def test_a_wrong_document_changes_nothing(service: Running, document: dict[str, Any], said: str) -> None:
    async with service.operator() as operator:
        digest = "0" * 64
        sound = [{"name": "sound", "token_sha256": digest}]
        answer = await _take_in(operator, {**document, "clients": [*document.get("clients", ()), *sound]})
        clients = (await operator.get("/api/v1/clients")).json()["total"]
    assert (answer.status_code, clients) == (400, 0)
    assert said in answer.json()["error"]["message"]
