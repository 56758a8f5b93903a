"""Clients made while running: their token, their limits, and every worker knows them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.servers import Server
from tests.service.running import Running, fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


async def _made(operator: httpx.AsyncClient, **settings: Any) -> str:
    answer = await operator.post("/api/v1/clients", json=settings)
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


async def _ask(client: httpx.AsyncClient, token: str, **body: Any) -> httpx.Response:
    told = {"authorization": f"Bearer {token}"}
    return await client.post("/v1/chat/completions", json={**BODY, **body}, headers=told)


@pytest_asyncio.fixture(loop_scope="package")
async def two(service_valkey: Server, config: dict[str, Any]) -> AsyncIterator[tuple[Running, Running]]:
    """Two workers on one store."""
    shared = fresh_namespace()
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
    ):
        yield one, other


async def test_a_clients_token_is_shown_once_and_opens_what_it_may(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        token = await _made(operator, name="app", team="red", models=["gpt-4o-mini"])
        statuses = [
            (await _ask(client, token)).status_code,
            (await _ask(client, token, model="gpt-4o")).status_code,
            (await _ask(client, "akr-of-nobody")).status_code,
            (await client.post("/v1/chat/completions", json=BODY)).status_code,
        ]
        shown = [
            await operator.get("/api/v1/clients"),
            await operator.get("/api/v1/clients/app"),
            await operator.get("/api/v1/audit"),
            await operator.post("/api/v1/clients", json={"name": "app", "team": "red", "models": ["gpt-4o-mini"]}),
        ]
    assert statuses == [200, 403, 401, 401]
    assert [answer.status_code for answer in shown] == [200, 200, 200, 200]
    assert not any(token in answer.text or "sha256" in answer.text for answer in shown)
    assert shown[0].json()["clients"][0]["name"] == "app"
    assert shown[3].json().get("token") is None


async def test_another_client_of_a_name_is_refused(service: Running) -> None:
    async with service.operator() as operator:
        await _made(operator, name="app", rpm=5)
        answer = await operator.post("/api/v1/clients", json={"name": "app", "rpm": 6})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")


async def test_a_clients_own_rate_is_enforced_exactly_by_two_workers(two: tuple[Running, Running]) -> None:
    one, other = two
    async with one.operator() as operator, one.http() as first, other.http() as second:
        token = await _made(operator, name="app", rpm=6)

        async def known() -> bool:
            return (await second.get("/v1/models", headers={"x-api-key": token})).status_code == 200

        await wait_until(known)
        answers = await asyncio.gather(*[_ask(client, token) for client in (first, second) for _ in range(10)])
    admitted = [answer.status_code for answer in answers].count(200)
    assert admitted == 6
    assert {answer.status_code for answer in answers} == {200, 429}


async def test_a_changed_limit_holds_in_the_other_worker(two: tuple[Running, Running]) -> None:
    one, other = two
    async with one.operator() as operator, other.http() as client:
        token = await _made(operator, name="app")

        async def served() -> bool:
            return (await _ask(client, token)).status_code == 200

        await wait_until(served)
        changed = await operator.patch("/api/v1/clients/app", json={"rpm": 1})

        async def limited() -> bool:
            return (await _ask(client, token)).status_code == 429

        await wait_until(limited)
        await operator.delete("/api/v1/clients/app")
        await _made(operator, name="somebody-else")

        async def refused() -> bool:
            return (await _ask(client, token)).status_code == 401

        await wait_until(refused)
    assert changed.json()["rpm"] == 1


async def test_a_client_keeps_to_its_providers(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        token = await _made(operator, name="app", providers=["anthropic"])
        refused = await _ask(client, token)
        await operator.patch("/api/v1/clients/app", json={"providers": ["anthropic", "openai"]})
        served = await _ask(client, token)
        wrong = await operator.patch("/api/v1/clients/app", json={"providers": ["nobody"]})
        still = await operator.get("/api/v1/clients/app")
    assert (refused.status_code, served.status_code) == (403, 200)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "providers")
    assert still.json()["providers"] == ["anthropic", "openai"]


async def test_a_clients_budget_is_held_in_and_goes_with_it(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        token = await _made(operator, name="app", budgets=[{"limit_usd": 0.000000001, "period": "daily"}])
        denied = await _ask(client, token)
        shown = (await operator.get("/api/v1/clients/app")).json()
        ids = shown["budget_ids"]
        await operator.patch("/api/v1/clients/app", json={"budgets": [{"limit_usd": 5, "period": "daily"}]})
        served = await _ask(client, token)
        await operator.delete("/api/v1/clients/app")
        left = (await operator.get("/api/v1/budgets", params={"scope": "client"})).json()
    assert denied.status_code == 429
    assert ids == ["client:app:client-hard-daily"]
    assert served.status_code == 200
    assert left["total"] == 0


async def test_rotation_takes_the_old_token_for_as_long_as_it_was_told(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        first = await _made(operator, name="app")
        second = (await operator.post("/api/v1/clients/app/rotate", json={"grace_seconds": 600})).json()["token"]
        both = [(await _ask(client, token)).status_code for token in (first, second)]
        third = (await operator.post("/api/v1/clients/app/rotate", json={})).json()["token"]
        after = [(await _ask(client, token)).status_code for token in (first, second, third)]
    assert (both, after) == ([200, 200], [401, 401, 200])


async def test_a_client_that_is_switched_off_or_expired_is_refused(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        token = await _made(operator, name="app")
        await operator.patch("/api/v1/clients/app", json={"enabled": False})
        off = await _ask(client, token)
        await operator.patch("/api/v1/clients/app", json={"enabled": True, "expires_at": "2020-01-01T00:00:00Z"})
        expired = await _ask(client, token)
    assert (off.status_code, off.json()["error"]["code"]) == (403, "client_disabled")
    assert (expired.status_code, expired.json()["error"]["code"]) == (401, "expired_api_key")


async def test_a_client_of_the_file_is_shown_and_cannot_be_changed_here(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    config["clients"] = [{"name": "filed", "token": "a-token-of-the-file", "rpm": 100, "providers": ["openai"]}]
    async with running_service(service_valkey.url, config) as service, service.operator() as operator:
        shown = (await operator.get("/api/v1/clients/filed")).json()
        answers = [
            await operator.patch("/api/v1/clients/filed", json={"rpm": 5}),
            await operator.delete("/api/v1/clients/filed"),
            await operator.post("/api/v1/clients", json={"name": "filed"}),
            await operator.post("/api/v1/clients", json={"name": "thief", "token": "a-token-of-the-file-2"}),
        ]
    assert (shown["source"], shown["rpm"], shown["providers"]) == ("file", 100, ["openai"])
    assert [answer.status_code for answer in answers] == [409, 409, 409, 201]


async def test_clients_outlive_a_store_that_forgot_them(service_valkey: Server, config: dict[str, Any]) -> None:
    async with (
        running_service(service_valkey.url, config) as service,
        service.operator() as operator,
        service.http() as client,
    ):
        token = await _made(operator, name="app", rpm=1)
        store = service.runtime.router.state_store
        await store.delete_document("client_marker", "present")
        await store.delete_document("client", "app")
        await service.runtime.router._configuration.clients.restore()
        again = await store.get_document("client", "app")
        statuses = [(await _ask(client, token)).status_code for _ in range(2)]
    assert again is not None
    assert sorted(statuses) == [200, 429]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a:b"}, "name"),
        ({"name": "app", "rpm": 0}, "rpm"),
        ({"name": "app", "rpm": 2**60}, "rpm"),
        ({"name": "app", "rpm": 1.5}, "rpm"),
        ({"name": "app", "weight": -1}, "weight"),
        ({"name": "app", "priority": "first"}, "priority"),
        ({"name": "app", "providers": ["nobody"]}, "providers"),
        ({"name": "app", "token": "short"}, "token"),
        ({"name": "app", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "app", "budgets": [{"limit_usd": -1}]}, "budgets"),
        ({"name": "app", "unknown": 1}, "unknown"),
    ],
)
async def test_a_wrong_client_is_refused_and_nothing_is_left(service: Running, body: dict[str, Any], said: str) -> None:
    async with service.operator() as operator:
        answer = await operator.post("/api/v1/clients", json=body)
        listed = (await operator.get("/api/v1/clients")).json()
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert listed["total"] == 0
