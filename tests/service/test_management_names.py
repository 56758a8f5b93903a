"""What was made under a name can be shown, changed and taken back under it, whatever the name holds."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from apikeyrouter.domain.models.client import Client
from apikeyrouter.infrastructure.config.stated import StatedProvider
from apikeyrouter_proxy.admin_keys import token_sha256
from tests.servers import Server
from tests.service.running import Running, providers_of, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

ODD = [
    "team/app",
    "50%25",
    "%2e%2e",
    "who?x=1",
    "part#2",
    "a\\b",
    "ünï-名",
    "x/rotate",
    "-",
    "a..b",
    ".hidden",
    "n" * 64,
]
UNSAYABLE = ["..", ".", "a/../b", "a//b", "/a", "a/", "a/./b", "a\u200bb", "x/transitions", "x/deliveries"]
REFUSED = [*UNSAYABLE, "", "n" * 65, "a\x00b", "a\nb"]
KEY: dict[str, Any] = {"id": "eu/1", "provider": "openai", "key": "sk-sim-service-1", "models": ["gpt-4o-mini"]}


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def served(service_valkey: Server, shared_simulator: Any) -> AsyncIterator[Running]:
    """One service for the whole module, with a key of an odd name in its file."""
    config = {"providers": providers_of(shared_simulator), "keys": [KEY]}
    async with running_service(service_valkey.url, config) as started:
        yield started


MADE: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("clients", "name", {}, {"rpm": 7}),
    ("providers", "id", {"adapter": "openai"}, {"connections_max": 3}),
    ("policies", "id", {"name": "n", "scope": "global", "rules": {"denied_models": ["never"]}}, {"priority": 3}),
    ("webhooks", "name", {"url": "https://example.com/hook", "events": ["key.out"]}, {"enabled": False}),
    ("admin-keys", "name", {"role": "read"}, {"role": "operate"}),
]


@pytest.mark.parametrize(("kind", "field", "body", "change"), MADE, ids=[row[0] for row in MADE])
async def test_a_name_that_is_taken_can_be_shown_changed_and_taken_back(
    served: Running, kind: str, field: str, body: dict[str, Any], change: dict[str, Any]
) -> None:
    async with served.operator() as operator:
        for name in ODD:
            made = await operator.post(f"/api/v1/{kind}", json={**body, field: name})
            path = f"/api/v1/{kind}/{quote(name, safe='')}"
            shown, changed = await operator.get(path), await operator.patch(path, json=change)
            gone, after = await operator.delete(path), await operator.get(path)
            answers = [one.status_code for one in (made, shown, changed, gone, after)]
            assert answers == [201, 200, 200, 204, 404], (name, made.text, shown.text, changed.text, gone.text)
            assert shown.json()[field] == name
            assert {key: changed.json()[key] for key in change} == change


@pytest.mark.parametrize(("kind", "field", "body", "change"), MADE, ids=[row[0] for row in MADE])
async def test_a_name_that_no_path_can_say_is_refused_where_it_is_given(
    served: Running, kind: str, field: str, body: dict[str, Any], change: dict[str, Any]
) -> None:
    async with served.operator() as operator:
        for name in REFUSED if field == "name" else UNSAYABLE:
            refused = await operator.post(f"/api/v1/{kind}", json={**body, field: name})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field), (name, refused.text)


async def test_a_slash_needs_no_escape_and_a_stored_name_of_before_is_still_served_and_revoked(served: Running) -> None:
    token, old = "a-token-from-before-the-rule", "old/transitions"
    await served.runtime.router.configure_client(Client(name=old, token_sha256=token_sha256(token)))
    await served.runtime.router.configure_provider(StatedProvider(id="p/1", adapter="openai"))
    ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    bearer = {"authorization": f"Bearer {token}"}
    async with served.operator() as operator, served.http(headers=bearer) as client:
        answers = [
            await client.post("/v1/chat/completions", json=ask),
            await operator.delete("/api/v1/providers/p/1"),
            await operator.post(f"/api/v1/clients/{old}/rotate", json={"token": f"{token}-2"}),
            await operator.delete(f"/api/v1/clients/{old}"),
            await operator.get(f"/api/v1/clients/{old}"),
        ]
    assert [answer.status_code for answer in answers] == [200, 204, 200, 204, 404]


async def test_a_key_of_the_file_is_shown_under_its_name_and_revoked_in_the_file_only(served: Running) -> None:
    async with served.operator() as operator:
        shown = await operator.get("/api/v1/keys/eu/1")
        moves = await operator.get("/api/v1/keys/eu/1/transitions")
        refused = await operator.delete("/api/v1/keys/eu/1")
        made = await operator.post("/api/v1/keys", json={"key_material": "sk-sim-service-2", "provider_id": "openai"})
        gone = await operator.delete(f"/api/v1/keys/{made.json()['id']}")
        left = [key["id"] for key in (await operator.get("/api/v1/keys")).json()["keys"]]
    assert (shown.json()["id"], moves.status_code, gone.status_code) == ("eu/1", 200, 204)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "declared_in_file")
    assert left == ["eu/1"]
