"""Waiting for room over HTTP: asked for by header or file, in order, and left without a trace by who goes away."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.servers import Server
from tests.service.running import Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")
MODEL = "gpt-4o-mini"
ROOM_FOR_ONE = [{"quota_group": "org-one", "concurrency": 1}]


def narrow(config: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """One key that does one thing at a time."""
    key = {**config["keys"][0], "quota_group": "org-one"}
    return {**config, "keys": [key], "limits": ROOM_FOR_ONE, **sections}


async def post(client: httpx.AsyncClient, text: str, **headers: str) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post("/v1/chat/completions", json=body, headers=named)


async def lent(service: Running) -> Any:
    leasing = service.runtime.router.lease(MODEL, estimated_tokens=10)
    await leasing.__aenter__()
    return leasing


async def waiting(service: Running, count: int) -> None:
    async def are() -> bool:
        return service.runtime.router.waiting == count

    await wait_until(are)


async def test_requests_that_ask_for_it_wait_in_order_and_others_are_denied(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    async with running_service(service_valkey.url, narrow(config)) as service, service.http() as client:
        leasing = await lent(service)
        assert (await post(client, "at once")).status_code == 429
        order: list[str] = []

        async def send(name: str, priority: str) -> None:
            answer = await post(client, name, x_akr_wait_ms="15000", x_akr_priority=priority)
            assert answer.status_code == 200, answer.text
            order.append(name)

        tasks = []
        for count, (name, priority) in enumerate([("b1", "batch"), ("b2", "batch"), ("i1", "interactive")], 1):
            tasks.append(asyncio.create_task(send(name, priority)))
            await waiting(service, count)
        assert await service.count("apikeyrouter_waiting") == 3
        await leasing.__aexit__(None, None, None)
        await asyncio.gather(*tasks)
        assert order == ["i1", "b1", "b2"]


async def test_the_file_says_what_requests_wait_and_how_long_one_may_ask(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    routing = {"wait_max_ms": 15_000, "wait_asked_max_ms": 100}
    async with (
        running_service(service_valkey.url, narrow(config, routing=routing)) as service,
        service.http() as client,
    ):
        leasing = await lent(service)
        patient = asyncio.create_task(post(client, "by the file"))
        await waiting(service, 1)
        asked = await post(client, "asked for more than it may", x_akr_wait_ms="600000")
        assert (asked.status_code, asked.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(asked.headers["retry-after-ms"]) >= 0
        assert not patient.done()
        await leasing.__aexit__(None, None, None)
        assert (await patient).status_code == 200


async def test_a_client_that_goes_away_leaves_the_line_and_nothing_stays_held(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    async with running_service(service_valkey.url, narrow(config)) as service, service.http() as client:
        router, leasing = service.runtime.router, await lent(service)
        impatient = asyncio.create_task(post(client, "gone", x_akr_wait_ms="15000"))
        await waiting(service, 1)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        await waiting(service, 0)
        await leasing.__aexit__(None, None, None)
        assert await router.drain(15)
        assert (await post(client, "next")).status_code == 200
        assert await router.drain(15)
        lanes = await router.ledger.lanes(router.catalogue.lane_ids())
        assert [lane.id for lane in lanes if lane.in_flight] == []


async def test_an_sdk_that_waits_less_is_answered_within_its_time(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    routing = {"wait_max_ms": 15_000}
    async with running_service(service_valkey.url, narrow(config, routing=routing)) as service:
        leasing = await lent(service)
        headers = {"x-akr-timeout-ms": "300"}
        async with service.openai() as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "soon"}], extra_headers=headers
                )
        assert caught.value.status_code in (429, 504), "504 where its time was over before it stood in the line"
        await leasing.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("header", "value"),
    [("x_akr_wait_ms", "soon"), ("x_akr_wait_ms", "-1"), ("x_akr_wait_ms", "9999999"), ("x_akr_priority", "urgent")],
)
async def test_what_is_no_wait_is_a_400_that_names_the_header(service: Running, header: str, value: str) -> None:
    async with service.http() as client:
        answer = await post(client, "hello", **{header: value})
    assert answer.status_code == 400
    assert header.replace("_", "-") in answer.json()["error"]["message"]
