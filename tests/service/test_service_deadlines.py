"""A client's own time over HTTP: what SDKs say of their patience ends the call here and at the provider."""

from typing import Any

import anthropic
import openai
import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.service.running import Running, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SHORT = 0.6


async def at_rest(service: Running, simulator: SimulatorProcess) -> None:
    """Nothing is held, and the provider was cut off as well."""
    router = service.runtime.router

    async def quiet() -> bool:
        return router.in_flight == 0 and (await simulator.report())["total"]["in_flight"] == 0

    await wait_until(quiet)
    assert await router.books.flush(seconds=15)
    assert router.books.open == {}
    lanes = await router.ledger.lanes(router.catalogue.lane_ids())
    assert [lane.id for lane in lanes if lane.in_flight] == []
    assert sum(lane.failures_total for lane in lanes) == 0, "a client's time is evidence against nobody"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_openai_client_that_waits_no_longer_ends_its_call_everywhere(
    service: Running, simulator: SimulatorProcess, stream: bool
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with service.openai(timeout=SHORT) as client:
        with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=stream)
    await at_rest(service, simulator)
    assert (await simulator.report())["total"]["arrived"] <= 1, "no attempt begins that nobody waits for"


async def test_an_anthropic_client_that_waits_no_longer_ends_its_call_everywhere(
    service: Running, simulator: SimulatorProcess
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with service.anthropic(timeout=SHORT) as client:
        with pytest.raises((anthropic.APITimeoutError, anthropic.InternalServerError)):
            await client.messages.create(model="claude-haiku-4-5", max_tokens=10, messages=HELLO)
    await at_rest(service, simulator)
    assert (await simulator.report())["total"]["arrived"] <= 1


async def test_a_deadline_in_a_header_is_answered_as_a_timeout_that_is_not_to_be_retried(
    service: Running, simulator: SimulatorProcess
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with service.openai(max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(
                model="gpt-4o-mini", messages=HELLO, extra_headers={"x-akr-timeout-ms": "400"}
            )
    assert caught.value.status_code == 504
    assert caught.value.response.headers["x-should-retry"] == "false"
    await at_rest(service, simulator)
    assert (await simulator.report())["total"]["arrived"] <= 1


@pytest.mark.parametrize("hint", ["x-stainless-read-timeout", "x-stainless-timeout"])
async def test_what_an_sdk_says_it_will_wait_is_a_deadline(
    service: Running, simulator: SimulatorProcess, hint: str
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with service.http() as client:
        body = {"model": "gpt-4o-mini", "messages": HELLO}
        answer = await client.post("/v1/chat/completions", json=body, headers={hint: "0.4"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    await at_rest(service, simulator)


async def test_a_stream_that_is_not_at_its_end_in_time_says_so(service: Running, simulator: SimulatorProcess) -> None:
    await simulator.fail("stall_mid_stream", seconds=3600)
    text = ""
    async with service.openai() as client:
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, stream=True, extra_headers={"x-akr-timeout-ms": "600"}
        )
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
    assert text
    assert caught.value.code == "upstream_timeout"
    await at_rest(service, simulator)


async def test_a_client_that_hangs_up_in_the_middle_ends_its_call_everywhere(
    service: Running, simulator: SimulatorProcess
) -> None:
    await simulator.fail("stall_mid_stream", seconds=3600)
    async with service.openai() as client:
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await at_rest(service, simulator)
