"""What a client reads when a limit is really reached: the words, the waits, and that waiting so long is enough."""

from __future__ import annotations

import re
from typing import Any

import anthropic as anthropic_sdk
import openai as openai_sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from apikeyrouter.simulator import SimulatorProcess

pytestmark = pytest.mark.asyncio(loop_scope="package")

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]  # 10 tokens


async def chat(client: AsyncOpenAI, *, cap: int = 10) -> Any:
    """A chat that is charged 10 + cap tokens."""
    return await client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=cap)


async def message(client: AsyncAnthropic, *, cap: int = 10) -> Any:
    """A message of 10 tokens of input and up to cap of output."""
    return await client.messages.create(model="claude-haiku-5", max_tokens=cap, messages=HELLO)


async def test_a_request_limit_of_openai_names_limit_use_and_wait(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await simulator.control(organisation="org-a", limits=[{"rpm": 2}])
    await chat(openai)
    await chat(openai)
    with pytest.raises(openai_sdk.RateLimitError) as error:
        await chat(openai)
    assert re.search(
        r"Rate limit reached for gpt-4o in organization org-a on requests per min \(RPM\): "
        r"Limit 2, Used 2, Requested 1\. Please try again in [0-9.]+s\.",
        error.value.message,
    )
    assert (error.value.type, error.value.code) == ("requests", "rate_limit_exceeded")
    headers = error.value.response.headers
    assert 29_000 < int(headers["retry-after-ms"]) <= 30_000
    assert headers["retry-after"] == "30"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    await simulator.control(clock_advance_seconds=30)
    await chat(openai)


async def test_a_token_limit_of_openai_counts_the_cap_though_little_was_used(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await simulator.control(organisation="org-a", limits=[{"tpm": 1_000, "kind": "sliding"}])
    await chat(openai, cap=980)
    with pytest.raises(openai_sdk.RateLimitError, match=r"\(TPM\): Limit 1000, Used 990, Requested 11\.") as error:
        await chat(openai, cap=1)
    assert error.value.type == "tokens"
    with pytest.raises(openai_sdk.RateLimitError, match=r"Request too large .* Limit 1000, Requested 1001\.") as large:
        await chat(openai, cap=991)
    assert "retry-after" not in large.value.response.headers
    report = await simulator.report()
    assert report["total"]["rejected"] == {"tpm": 1, "too_large:tpm": 1}
    assert report["total"]["over_limit"] == 2


async def test_a_limit_of_anthropic_says_retry_after_in_whole_seconds(
    simulator: SimulatorProcess, anthropic: AsyncAnthropic
) -> None:
    await simulator.control(organisation="org-b", limits=[{"rpm": 1}])
    await message(anthropic)
    with pytest.raises(anthropic_sdk.RateLimitError, match=r"\(org-b\) of 1 requests per minute") as error:
        await message(anthropic)
    assert error.value.response.headers["retry-after"] == "60"
    assert error.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    await simulator.control(clock_advance_seconds=60)
    await message(anthropic)


async def test_max_tokens_is_free_at_anthropic_and_real_output_is_not(
    simulator: SimulatorProcess, anthropic: AsyncAnthropic
) -> None:
    limits = [{"output_tpm": 40, "kind": "sliding"}]
    await simulator.control(organisation="org-b", limits=limits, settings={"output_tokens": 20})
    await message(anthropic, cap=5_000)
    await message(anthropic, cap=5_000)
    with pytest.raises(anthropic_sdk.RateLimitError, match="40 output tokens per minute"):
        await message(anthropic, cap=1)


async def test_a_spend_limit_is_a_quota_error_with_the_day_it_ends(
    simulator: SimulatorProcess, openai: AsyncOpenAI, anthropic: AsyncAnthropic
) -> None:
    for organisation in ("org-a", "org-b"):
        await simulator.control(organisation=organisation, limits=[{"spend_usd": "0.000001"}])
    await chat(openai)
    with pytest.raises(openai_sdk.RateLimitError) as openai_error:
        await chat(openai)
    assert openai_error.value.code == "organization_spend_limit_exceeded"
    await message(anthropic)
    with pytest.raises(anthropic_sdk.RateLimitError, match=r"regain access on \d{4}-\d\d-\d\d at 00:00 UTC") as error:
        await message(anthropic)
    assert error.value.error_code == "enforced_spend_limit_reached"


async def test_the_sdks_own_retry_gets_through_when_the_wait_is_short(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await simulator.fail("rate_limit", count=2, seconds=0.01)
    await chat(openai.with_options(max_retries=2))
    total = (await simulator.report())["total"]
    assert (total["arrived"], total["admitted"]) == (3, 1)


async def test_the_sdk_gives_up_at_once_when_the_wait_is_beyond_two_minutes(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    await simulator.fail("rate_limit", seconds=121)
    with pytest.raises(openai_sdk.RateLimitError):
        await chat(openai.with_options(max_retries=2))
    assert (await simulator.report())["total"]["arrived"] == 1


async def test_unknown_keys_are_let_in_where_the_provider_is_open() -> None:
    async with SimulatorProcess({"open": True}) as process:
        for material in ("any-key-at-all", "another-key"):
            async with AsyncOpenAI(api_key=material, base_url=process.openai_url) as client:
                await chat(client)
        async with AsyncAnthropic(api_key="any-key-at-all", base_url=process.anthropic_url) as client_b:
            await message(client_b)
        organisations = (await process.report())["organisations"]
    assert {name: org["admitted"] for name, org in organisations.items()} == {"open-openai": 2, "open-anthropic": 1}
    assert list(organisations["open-openai"]["keys"]) == ["open-openai/1", "open-openai/2"]
