"""The service under servers that are not ours: what the deployment guide says of them."""

import asyncio
from typing import Any

import pytest

from tests.servers import Server
from tests.service.running import running_service
from tests.service.test_hostile_clients import GOOD, SECONDS_MAX, STREAMED, answer_of, told

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize(("http", "upgraded", "chunked"), [("httptools", 400, True), ("h11", 200, False)])
async def test_uvicorns_own_protocols_do_what_the_guide_says(
    service_valkey: Server, config: dict[str, Any], http: str, upgraded: int, chunked: bool
) -> None:
    upgrade = b"\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
    async with running_service(service_valkey.url, config, http=http) as service:
        host, port = service.url.removeprefix("http://").split(":")
        async with asyncio.timeout(SECONDS_MAX):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(told(GOOD).replace(b"\r\n\r\n", upgrade, 1))
            status, _, _ = await answer_of(reader)
            writer.close()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(told(STREAMED).replace(b"HTTP/1.1", b"HTTP/1.0"))
            head, _, stream = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        router = service.runtime.router
        assert await router.drain(SECONDS_MAX)
        assert router.books.open == {}
    assert status == upgraded
    assert (b"transfer-encoding: chunked" in head.lower(), stream.startswith(b"data: {")) == (chunked, not chunked)
