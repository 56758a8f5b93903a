"""Who may call, as whom, and what they may ask for."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from apikeyrouter.infrastructure.surface.problems import RequestRefused
from apikeyrouter_proxy.clients import Clients, is_loopback
from tests.servers import Server
from tests.service.running import Running, running_service

TOKEN = "token-of-the-first-app"
OTHER = "token-of-the-other-app"
BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
CLIENTS = [
    {"name": "first", "token": TOKEN, "team": "red", "models": ["gpt-4o-mini"]},
    {"name": "other", "token": OTHER},
]


@pytest.mark.asyncio(loop_scope="package")
async def test_the_matrix_of_tokens(service_valkey: Server, config: dict[str, Any]) -> None:
    config["clients"] = CLIENTS
    accepted = [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer {TOKEN}"},
        {"x-api-key": TOKEN},
        {"x-goog-api-key": TOKEN},
    ]
    refused = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"x-api-key": TOKEN + " x"},
        {"authorization": "Bearer wrong", "x-api-key": TOKEN},
        {"x-api-key": "x" * 5000},
    ]
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        for headers in accepted:
            answer = await client.post("/v1/chat/completions", json=BODY, headers=headers)
            assert answer.status_code == 200, headers
        for headers in refused:
            answer = await client.post("/v1/chat/completions", json=BODY, headers=headers)
            assert answer.status_code == 401, headers
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["x-should-retry"] == "false"
            assert TOKEN not in answer.text
        assert (await client.get("/v1/models")).status_code == 401
        assert await service.count('apikeyrouter_requests_total{route="chat"') == len(accepted) + len(refused)


@pytest.mark.asyncio(loop_scope="package")
async def test_a_wrong_token_is_an_authentication_error_in_the_sdk(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    config["clients"] = CLIENTS
    async with running_service(service_valkey.url, config) as service, service.openai("wrong-token") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(**BODY)
    assert caught.value.code == "invalid_api_key"


@pytest.mark.asyncio(loop_scope="package")
async def test_a_client_sees_its_models_that_are_served_though_no_price_list_knows_them(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    for key in config["keys"]:
        del key["models"]
    config["clients"] = [{"name": "first", "token": TOKEN, "models": ["gpt-of-tomorrow", "gpt-4o-mini"]}]
    async with running_service(service_valkey.url, config) as service, service.openai(TOKEN) as client:
        assert [model.id async for model in client.models.list()] == ["gpt-4o-mini", "gpt-of-tomorrow"]


@pytest.mark.asyncio(loop_scope="package")
async def test_a_client_may_use_its_models_and_sees_no_others(service_valkey: Server, config: dict[str, Any]) -> None:
    config["clients"] = CLIENTS
    async with running_service(service_valkey.url, config) as service, service.openai(TOKEN) as client:
        await client.chat.completions.create(**BODY)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.chat.completions.create(**{**BODY, "model": "gpt-4o"})
        listed = [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_allowed"
    assert listed == ["gpt-4o-mini"]


@pytest.mark.asyncio(loop_scope="package")
async def test_a_client_of_a_team_cannot_spend_another_teams_money(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    config["clients"] = CLIENTS
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        statuses = [
            await _status(client, TOKEN, {"x-akr-team": "red"}),
            await _status(client, TOKEN, {"x-akr-team": "blue"}),
            await _status(client, OTHER, {"x-akr-team": "blue"}),
        ]
        teams = {(facts.client, facts.team) for facts in service.runtime.router.decisions}
    assert statuses == [200, 403, 200]
    assert teams == {("first", "red"), ("other", "blue")}


async def _status(client: httpx.AsyncClient, token: str, headers: dict[str, str]) -> int:
    told = {"authorization": f"Bearer {token}", **headers}
    return (await client.post("/v1/chat/completions", json=BODY, headers=told)).status_code


@pytest.mark.parametrize(
    ("peer", "headers", "served"),
    [
        (("127.0.0.1", 5), {}, True),
        (("127.8.8.8", 5), {}, True),
        (("::1", 5), {}, True),
        (("::ffff:127.0.0.1", 5), {}, True),
        (None, {}, True),
        (("127.0.0.1", 5), {b"authorization": b"Bearer whatever"}, True),
        (("10.0.0.1", 5), {}, False),
        (("::ffff:10.0.0.1", 5), {}, False),
        (("testclient", 5), {}, False),
        (("", 5), {}, False),
        (("127.0.0.1", 5), {b"x-forwarded-for": b"10.0.0.1"}, False),
        (("127.0.0.1", 5), {b"x-forwarded-for": b"127.0.0.1, 10.0.0.1"}, False),
        (("127.0.0.1", 5), {b"x-forwarded-for": b"127.0.0.1"}, True),
        (("127.0.0.1", 5), {b"x-real-ip": b"10.0.0.1"}, False),
        (("127.0.0.1", 5), {b"forwarded": b"for=127.0.0.1"}, False),
        (("127.0.0.1", 5), {b"origin": b"https://evil.example"}, False),
        (("127.0.0.1", 5), {b"origin": b"null"}, False),
        (("127.0.0.1", 5), {b"origin": b"http://localhost:3000"}, True),
        (("127.0.0.1", 5), {b"origin": b"http://[::1]:3000"}, True),
        (None, {b"x-forwarded-for": b"10.0.0.1"}, False),
    ],
)
def test_without_clients_only_this_machine_is_served(
    peer: tuple[str, int] | None, headers: dict[bytes, bytes], served: bool
) -> None:
    clients = Clients()
    if served:
        assert clients.identify(headers, {"client": peer}).name is None
    else:
        with pytest.raises(RequestRefused) as caught:
            clients.identify(headers, {"client": peer})
        assert caught.value.problem.status == 403
        assert "PROXY_OPEN" in caught.value.problem.message
    assert Clients(open_to_all=True).identify(headers, {"client": peer}).name is None


def test_names_are_not_loopback_addresses() -> None:
    assert not is_loopback("localhost")
    assert is_loopback("::1%lo")


@pytest.mark.asyncio(loop_scope="package")
async def test_a_caller_relayed_from_elsewhere_is_told_the_remedy(service: Running) -> None:
    async with service.http(headers={"x-forwarded-for": "203.0.113.9"}) as client:
        answer = await client.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 403
    assert "PROXY_OPEN=true" in answer.json()["error"]["message"]


@pytest.mark.asyncio(loop_scope="package")
async def test_each_client_has_a_prompt_cache_of_its_own(service_valkey: Server, config: dict[str, Any]) -> None:
    sent: list[dict[str, Any]] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        sent.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(note, "127.0.0.1", 0) as provider:
        config["providers"]["openai"]["base_url"] = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}/v1"
        config["clients"] = CLIENTS
        async with running_service(service_valkey.url, config) as service, service.http() as client:
            for token in (TOKEN, TOKEN, OTHER):
                headers = {"authorization": f"Bearer {token}"}
                body = {**BODY, "prompt_cache_key": "hello", "cache_salt": None, "user": "u"}
                await client.post("/v1/chat/completions", json=body, headers=headers)
    keys = [body.pop("prompt_cache_key") for body in sent]
    assert keys[0] == keys[1] != keys[2]
    assert "hello" not in keys
    assert all(len(key) <= 64 for key in keys)
    assert sent[0] == {**BODY, "cache_salt": None, "user": "u"}
