"""Every route of management answers as the service publishes that it does: no field more, none less."""

from typing import Any

import httpx
import pytest
import pytest_asyncio

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Candidate, Charge, ReserveRequest
from apikeyrouter_proxy import deliveries
from apikeyrouter_proxy.main import create_app
from apikeyrouter_proxy.management.answer_schemas import ANSWERS
from tests.servers import Server
from tests.service.described import Description
from tests.service.running import MANAGEMENT_KEY, Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

API = "/api/v1"
CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
BUDGET: dict[str, Any] = {"scope": "global", "limit_usd": 5, "period": "daily"}
PROVIDER: dict[str, Any] = {"id": "mine", "adapter": "vllm", "base_url": "http://127.0.0.1:9/v1"}
POLICY: dict[str, Any] = {"name": "no gemini", "rules": {"denied_providers": ["gemini"]}}


class Tour:
    """Asks for one thing after the other; each must be answered as wanted."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, method: str, path: str, body: Any = None, *, status: int = 200, **params: Any) -> Any:
        answer = await self._client.request(method, f"{API}{path}", json=body, params=params)
        assert answer.status_code == status, (method, path, answer.text)
        return answer.json() if answer.content and "json" in answer.headers["content-type"] else None


@pytest_asyncio.fixture(loop_scope="package")
async def service(service_valkey: Server, config: dict[str, Any]) -> Any:
    config["limits"] = [{"key": "k2", "rpm": 5000}]
    async with running_service(service_valkey.url, config, environ={"PROXY_PRIVATE_URLS": "true"}) as started:
        yield started


async def test_every_route_answers_as_it_is_described(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "GIVE_UP_SECONDS", 0.0)
    description = Description(create_app({}).openapi())
    headers, hooks = {"X-API-Key": MANAGEMENT_KEY}, {"response": [description.check]}
    async with service.http(headers=headers, event_hooks=hooks) as client, service.http() as caller:
        ask = Tour(client)
        await _make(ask)
        for name in ("asked-1", "asked-2"):
            token = {"x-api-key": "a-token-that-is-long", "x-request-id": name}
            answer = await caller.post("/v1/chat/completions", json=CHAT, headers=token)
            assert answer.status_code == 200, answer.text
        await _look(ask, service)
        await _change(ask)
        await _short_names(client)
        await _remove(ask)
    documented = description.routes()
    answered = {(method, path) for method, path, status in description.seen if status[0] == "2"}
    assert documented - answered == set()


async def _make(ask: Tour) -> None:
    for status in (201, 200):
        await ask("POST", "/keys", {"key_material": "sk-sim-more", "provider_id": "openai"}, status=201)
        token = {"token": "a-token-that-is-long"} if status == 201 else {}
        await ask("POST", "/clients", {"name": "app", "rpm": 600, "team": "red", **token}, status=status)
        await ask("POST", "/budgets", BUDGET, status=status)
        await ask("POST", "/policies", POLICY, status=status)
        await ask("POST", "/limits", {"key": "k1", "rows": [{"rpd": 500, "kind": "calendar"}]}, status=status)
        await ask(
            "POST", "/providers", {"id": "mine", "adapter": "vllm", "base_url": "http://127.0.0.1:9/v1"}, status=status
        )
        await ask("POST", "/admin-keys", {"name": "ann", "role": "read"}, status=status)
        await ask("POST", "/webhooks", {"name": "pager", "url": "http://127.0.0.1:9/"}, status=status)
    await ask(
        "POST", "/limits", {"quota_group": "k1", "rows": [{"spend_usd": 1.5, "spend_period": "daily"}]}, status=201
    )
    await ask("POST", "/clients", {"name": "other", "budgets": [{"limit_usd": 1}]}, status=201)
    await ask("POST", "/keys/import", [{"key_material": "sk-sim-many", "provider_id": "openai"}, {"key_material": ""}])


async def _look(ask: Tour, service: Running) -> None:
    async def known() -> bool:
        return bool((await ask("GET", "/decisions"))["total"] >= 2)

    await wait_until(known)
    await ask("GET", "/decisions", limit=1)
    await ask("GET", "/decisions/asked-1")
    await ask("POST", "/decisions/dry-run", {"model": "gpt-4o-mini", "max_tokens": 5, "objective": "cost"})
    for path in ("/keys", "/clients", "/budgets", "/policies", "/limits", "/providers", "/admin-keys", "/webhooks"):
        assert (await ask("GET", path, limit=1))["total"] > 0
        await ask("GET", path, limit=1000)
    await ask("GET", "/limits", everything=True, forecast=True)
    assert (await ask("GET", "/pool", limit=1))["total"] > 1
    await ask("GET", "/pool", quota_group="k1")
    for path in (
        "/keys/k1", "/keys/k1/transitions", "/clients/app", "/budgets/global:daily", "/policies/no-gemini",
        "/limits/k:k1", "/limits/k:k2", "/providers/mine", "/providers/openai", "/admin-keys/ann", "/webhooks/pager",
        "/webhooks/pager/deliveries", "/reservations", "/suspense", "/state", "/whoami", "/audit",
        "/workers", "/store", "/findings", "/transitions",
        "/audit/ledger", "/export",
    ):  # fmt: skip
        await ask("GET", path)
    await ask("GET", "/export", secrets=True)
    await ask("GET", "/usage", by="client,team,key,provider,model,day")
    await ask("GET", "/usage", by="model", format="csv")
    await ask("GET", "/audit", kind="client", limit=1)
    await _suspend(ask, service)


async def _suspend(ask: Tour, service: Running) -> None:
    """A reservation of a worker that died."""
    rid = new_rid()
    charge = Charge(input_tokens=10, output_tokens=20, expected_nanousd=1000, bound_nanousd=2000)
    held = Candidate(lanes=("k:k1",), charge=charge)
    request = ReserveRequest(rid=rid, candidates=(held,), scopes=("global:daily",), lease_us=1000)
    await service.runtime.router.ledger.reserve(request)
    await ask("GET", "/reservations")

    async def suspended() -> bool:
        await service.runtime.router.ledger.sweep()
        return bool((await ask("GET", "/suspense"))["total"])

    await wait_until(suspended)
    await ask("POST", f"/suspense/{rid.hex()}/resolve", {"action": "refund"})


async def _change(ask: Tour) -> None:
    await ask("PATCH", "/keys/k1", {"state": "disabled", "reason": "why not"})
    await ask("PATCH", "/keys/k1", {"state": "available"})
    await ask("POST", "/keys/k1/probe")
    key = (await ask("POST", "/keys", {"key_material": "sk-sim-even-more", "provider_id": "openai"}, status=201))["id"]
    await ask("POST", f"/keys/{key}/rotate", {"key_material": "sk-sim-rotated"})
    await ask("PATCH", "/clients/app", {"rpm": 60, "expires_at": "2039-01-01T00:00:00Z"})
    await ask("POST", "/clients/app/rotate", {"grace_seconds": 60})
    await ask("PATCH", "/budgets/global:daily", {"limit_usd": 7.5})
    await ask("PATCH", "/policies/no-gemini", {"priority": 3})
    await ask("POST", "/policies/validate", {"name": "x", "rules": {"nonsense": 1}})
    await ask("POST", "/policies/dry-run", {"policy": POLICY, "context": {"model": "gpt-4o-mini"}})
    await ask("PATCH", "/limits/k:k1", {"rows": [{"rpm": 500}]})
    changes = {"timeouts": {"connect_ms": 500}, "breaker_settings": {"failures": 3}, "connections_max": 9}
    await ask("PATCH", "/providers/mine", changes)
    await ask("PATCH", "/admin-keys/ann", {"role": "operate"})
    await ask("POST", "/admin-keys/ann/rotate")
    await ask("PATCH", "/webhooks/pager", {"events": ["key.out"]})
    event = (await ask("POST", "/webhooks/pager/test"))["event_id"]

    async def ended() -> bool:
        found = (await ask("GET", "/webhooks/pager/deliveries"))["deliveries"]
        return any(one["state"] == "given_up" for one in found)

    await wait_until(ended)
    await ask("GET", "/webhooks/pager")
    await ask("POST", f"/webhooks/pager/deliveries/{event}/repeat")
    await ask("POST", "/config/reload")
    backup = await ask("GET", "/export", secrets=True)
    await ask("POST", "/import", {"document": backup, "dry_run": True})
    await ask("POST", "/import", {"document": backup, "replace": True})


async def _short_names(client: httpx.AsyncClient) -> None:
    made = [
        await client.post("/keys", json={"key_material": "sk-sim-short", "provider_id": "openai"}),
        await client.post("/policies", json={**POLICY, "name": "short"}),
        await client.get("/state"),
    ]
    assert [answer.status_code for answer in made] == [201, 201, 200]


async def _remove(ask: Tour) -> None:
    keys = (await ask("GET", "/keys"))["keys"]
    made = next(key["id"] for key in keys if key["id"].startswith("key_"))
    await ask("DELETE", "/keys/k1", status=409)  # the file declares it
    for path in (
        f"/keys/{made}", "/clients/app", "/budgets/global:daily", "/policies/no-gemini", "/limits/k:k1",
        "/providers/mine", "/admin-keys/ann", "/webhooks/pager",
    ):  # fmt: skip
        await ask("DELETE", path, status=204)


async def test_every_route_that_answers_something_says_what() -> None:
    paths = create_app({}).openapi()["paths"]
    described = {
        (method, path.removeprefix(API))
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "management" in operation.get("tags", ()) and method != "delete"
    }
    assert described == set(ANSWERS)


async def test_nothing_of_ours_is_described_as_open() -> None:
    """But for what is somebody else's: metadata, rules, an adapter's options, details of changes."""
    schemas = create_app({}).openapi()["components"]["schemas"]
    open_fields = {
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, told in schema.get("properties", {}).items()
        if told.get("additionalProperties") is True
    }
    closed = [name for name, schema in schemas.items() if schema.get("type") == "object" and "properties" in schema]
    assert [name for name in closed if schemas[name].get("additionalProperties") is not False] == []
    theirs = {"metadata", "rules", "options", "details", "context", "constraints", "timeouts", "breaker_settings"}
    assert {field.split(".")[1] for field in open_fields} <= theirs
