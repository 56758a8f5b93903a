"""Who is said to call, behind proxies that are trusted and proxies that are not."""

import asyncio
import json
from typing import Any

import pytest

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_proxy.arrivals import PEER, Arrivals
from tests.servers import Server
from tests.service.running import running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")
BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "::1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.1"),
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
    ],
)
async def test_the_client_is_the_last_hop_that_is_no_trusted_proxy(peer: str, forwarded: str, client: str) -> None:
    scope: dict[str, Any] = {"client": (peer, 5), "scheme": "http", "headers": [(b"x-forwarded-proto", b"https")]}
    scope["headers"].append((b"x-forwarded-for", forwarded.encode()))
    Arrivals("10.0.0.0/8, fd00::/8").note(scope)
    assert scope["client"][0] == client
    assert PEER.get() == client
    assert scope["scheme"] == ("http" if peer == "192.0.2.1" else "https")


async def test_a_unix_socket_has_no_address() -> None:
    Arrivals("10.0.0.0/8").note({"client": None, "headers": []})
    assert PEER.get() is None


async def test_access_lines_show_the_client_that_the_trusted_proxy_names_and_it_gives_no_rights(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    environ = {"PROXY_TRUSTED_PROXIES": "127.0.0.1", "PROXY_ACCESS_LOG_PEER": "true"}
    config["clients"] = [{"name": "app", "token": "app-token-1234567890"}]
    async with running_service(service_valkey.url, config, environ=environ) as service, service.http() as client:
        headers = {"authorization": "Bearer app-token-1234567890", "x-forwarded-for": "203.0.113.9"}
        assert (await client.post("/v1/chat/completions", json=BODY, headers=headers)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 401

        async def written() -> bool:
            return len(await asyncio.to_thread(service.log.read_text)) > 0 and service.log.read_text().count("\n") == 2

        await wait_until(written)
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [line["peer"] for line in lines] == ["203.0.113.9", "127.0.0.1"]


async def test_a_wrong_network_is_refused_at_the_start(service_valkey: Server, config: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, RuntimeError)):
        async with running_service(service_valkey.url, config, environ={"PROXY_TRUSTED_PROXIES": "everybody"}):
            pass
    with pytest.raises(ConfigurationError, match="PROXY_TRUSTED_PROXIES"):
        Arrivals("everybody")
