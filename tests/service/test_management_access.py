"""Who may manage what: every route and method there is, tried without a key, with a wrong one, and with each role."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from apikeyrouter_proxy.main import create_app
from apikeyrouter_proxy.management import management
from tests.servers import Server
from tests.service.running import MANAGEMENT_KEY, Running, fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

OPERATE = {
    ("PATCH", "/api/v1/keys/{key_id}"),
    ("POST", "/api/v1/keys/{key_id}/probe"),
    ("POST", "/api/v1/suspense/{reservation_id}/resolve"),
    ("POST", "/api/v1/config/reload"),
}
LOOKS = {
    ("POST", "/api/v1/policies/validate"),
    ("POST", "/api/v1/policies/dry-run"),
    ("POST", "/api/v1/decisions/dry-run"),
}
"""Requests with a body that change nothing."""
REF = r"#/components/schemas/(\w+)"
KEPT_FROM_READERS = {("GET", "/api/v1/admin-keys"), ("GET", "/api/v1/admin-keys/{name}"), ("GET", "/api/v1/export")}


def managed() -> list[tuple[str, str]]:
    """Every method and path that takes an admin key: whatever is not operations."""
    app = create_app({})
    described = app.openapi()["paths"]
    found = {
        (method.upper(), path)
        for path, operations in described.items()
        for method, operation in operations.items()
        if "management" in operation.get("tags", ())
    }
    return sorted(found)


async def test_every_route_of_the_management_plane_is_described_and_asks_for_a_key() -> None:
    hidden = [route for route in _leaves(management) if not route.include_in_schema]
    paths = create_app({}).openapi()["paths"]
    asking = {
        path
        for path, operations in paths.items()
        if all(operation.get("security") == [{"APIKeyHeader": []}] for operation in operations.values())
    }
    others = {path for path in paths if path.startswith(("/v1", "/health", "/metrics"))}
    assert hidden == []
    assert len(list(_leaves(management))) > 40
    assert asking | others == set(paths)
    assert not asking & others


async def test_the_addresses_that_can_be_named_through_management_are_these() -> None:
    """Each of them is guarded; a new one needs its guard, and its place here."""
    described = create_app({}).openapi()
    named = {
        (schema, name)
        for schema in _sent(described)
        for name in described["components"]["schemas"][schema].get("properties", ())
        if {"url", "uri", "host", "endpoint", "address", "port", "proxy"} & set(re.split(r"[_\W]", name.lower()))
    }
    assert named == {
        ("NewWebhook", "url"), ("WebhookUpdate", "url"), ("NewProvider", "base_url"), ("ProviderUpdate", "base_url"),
    }  # fmt: skip


async def test_a_slash_too_many_is_an_unknown_path_and_leads_nowhere(service: Running) -> None:
    async with service.operator() as operator:
        for path in ("/api/v1/keys/", "/api/v1/state/", "/keys/", "/health/", "/metrics/"):
            answer = await operator.get(path, headers={"host": "elsewhere.example"})
            told = (answer.status_code, answer.json()["error"]["code"], "location" in answer.headers)
            assert told == (404, "unknown_url", False), path


def _sent(described: dict[str, Any]) -> set[str]:
    """The schemas of what is sent, and of what they hold."""
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    found: set[str] = set()
    news = set(re.findall(REF, str([operation.get("requestBody") for operation in operations])))
    while news:
        found |= news
        news = set(re.findall(REF, str([described["components"]["schemas"][name] for name in news]))) - found
    return found


def _leaves(router: Any) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from _leaves(route.original_router)


def filled(path: str) -> str:
    for name in ("key_id", "name", "budget_id", "policy_id", "request_id", "provider_id", "lane_id", "event_id"):
        path = path.replace(f"{{{name}}}", "nothing").replace(f"{{{name}:name}}", "nothing")
    return path.replace("{reservation_id}", "00")


async def _try(client: httpx.AsyncClient, method: str, path: str, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"X-API-Key": key}
    return await client.request(method, filled(path), headers=headers)


async def test_no_route_opens_without_the_right_key(service: Running) -> None:
    routes = managed()
    assert len(routes) > 40
    async with service.http() as client:
        for method, path in routes:
            answers = [
                await _try(client, method, path, None),
                await _try(client, method, path, "wrong"),
                await _try(client, method, path, ""),
            ]
            assert [answer.status_code for answer in answers] == [401, 401, 401], (method, path)
            assert {answer.json()["error"]["code"] for answer in answers} == {"unauthorized"}
            bearer = {"Authorization": f"Bearer {MANAGEMENT_KEY}"}
            assert (await client.request(method, filled(path), headers=bearer)).status_code == 401, (method, path)


async def _key_of(client: httpx.AsyncClient, role: str) -> str:
    answer = await client.post("/api/v1/admin-keys", json={"name": f"an-{role}-key", "role": role})
    assert answer.status_code == 201
    key: str = answer.json()["key"]
    return key


async def test_each_role_opens_what_it_is_for_and_nothing_above(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        keys = {role: await _key_of(operator, role) for role in ("read", "operate", "admin")}
        for method, path in managed():
            looks = (method == "GET" and (method, path) not in KEPT_FROM_READERS) or (method, path) in LOOKS
            opened = {
                "read": looks,
                "operate": looks or (method, path) in OPERATE,
            }
            for role, may in opened.items():
                answer = await _try(client, method, path, keys[role])
                refused = answer.status_code == 403 and answer.json()["error"]["code"] == "role_too_small"
                assert refused is not may, (role, method, path, answer.status_code)


async def test_an_admin_key_ends_with_its_time_its_rotation_and_its_deletion(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        first = await _key_of(operator, "read")
        rotated = (await operator.post("/api/v1/admin-keys/an-read-key/rotate")).json()["key"]
        statuses = [(await _try(client, "GET", "/state", key)).status_code for key in (first, rotated)]
        past = {"expires_at": "2020-01-01T00:00:00Z"}
        await operator.patch("/api/v1/admin-keys/an-read-key", json=past)
        expired = await _try(client, "GET", "/state", rotated)
        await operator.patch("/api/v1/admin-keys/an-read-key", json={"expires_at": None})
        again = await _try(client, "GET", "/state", rotated)
        gone = await operator.delete("/api/v1/admin-keys/an-read-key")
        after = await _try(client, "GET", "/state", rotated)
        listed = await operator.get("/api/v1/admin-keys")
    assert statuses == [401, 200]
    assert [expired.status_code, again.status_code, gone.status_code, after.status_code] == [401, 200, 204, 401]
    assert (listed.json()["admin_keys"], listed.json()["total"]) == ([], 0)


async def test_an_admin_key_is_known_to_every_worker_within_a_second(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    shared = fresh_namespace()
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as two,
        one.operator() as operator,
        two.http() as client,
    ):
        key = await _key_of(operator, "read")

        async def opens() -> bool:
            return (await _try(client, "GET", "/state", key)).status_code == 200

        async with asyncio.timeout(5):
            await wait_until(opens)
        await operator.delete("/api/v1/admin-keys/an-read-key")

        async def closes() -> bool:
            return (await _try(client, "GET", "/state", key)).status_code == 401

        async with asyncio.timeout(5):
            await wait_until(closes)
