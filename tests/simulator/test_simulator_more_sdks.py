"""Official SDKs of the other providers, unmodified, against the simulator; raw HTTP where there is none."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import groq
import httpx
import openai as openai_sdk
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from groq import AsyncGroq
from mistralai.client import Mistral
from mistralai.client.errors import HTTPValidationError, SDKError
from openai import AsyncAzureOpenAI, AsyncOpenAI

from apikeyrouter.simulator import SimulatorProcess

pytestmark = pytest.mark.asyncio(loop_scope="package")

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]  # 10 tokens
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
GEMINI_MODEL, GROQ_MODEL, MISTRAL_MODEL = "gemini-2.5-flash", "llama-3.3-70b-versatile", "mistral-small-latest"


# --- Gemini


def gemini(simulator: SimulatorProcess, key: str = "AIza-sim-gemini-key") -> genai.Client:
    """The official SDK."""
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=simulator.base_url("gemini")))


async def test_gemini_answers_with_thoughts_beside_the_candidates(simulator: SimulatorProcess) -> None:
    config = types.GenerateContentConfig(max_output_tokens=8)
    answer = await gemini(simulator).aio.models.generate_content(
        model=GEMINI_MODEL, contents="hello there", config=config
    )
    assert answer.text == "You said: hello there You said: "
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    usage = answer.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count) == (10, 8, 5)
    assert usage.total_token_count == 23
    assert (await simulator.report())["organisations"]["proj-g"]["output_tokens"] == 13


async def test_gemini_streams_end_without_a_terminator(simulator: SimulatorProcess) -> None:
    config = types.GenerateContentConfig(max_output_tokens=6)
    stream = await gemini(simulator).aio.models.generate_content_stream(
        model=GEMINI_MODEL, contents="hello there", config=config
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text or "" for chunk in chunks) == "You said: hello there Yo"
    assert [chunk.usage_metadata is not None for chunk in chunks] == [True] * len(chunks)
    last = chunks[-1].usage_metadata
    assert last is not None
    assert (last.candidates_token_count, last.thoughts_token_count) == (6, 5)
    organisation = (await simulator.report())["organisations"]["proj-g"]
    assert (organisation["completed"], organisation["output_tokens"]) == (1, 11)


async def test_gemini_calls_the_function_that_is_demanded(simulator: SimulatorProcess) -> None:
    declaration = types.FunctionDeclaration(name="weather", parameters_json_schema=WEATHER)
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declaration])],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
        ),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    answer = await gemini(simulator).aio.models.generate_content(model=GEMINI_MODEL, contents="hi", config=config)
    assert answer.function_calls is not None
    assert [(call.name, call.args) for call in answer.function_calls] == [("weather", {"city": "sample"})]


async def test_gemini_counts_embeds_and_lists(simulator: SimulatorProcess) -> None:
    client = gemini(simulator).aio
    counted = await client.models.count_tokens(model=GEMINI_MODEL, contents="hello there")
    assert counted.total_tokens == 10
    embedded = await client.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])
    assert embedded.embeddings is not None
    assert [len(vector.values or []) for vector in embedded.embeddings] == [8, 8]
    assert f"models/{GEMINI_MODEL}" in [model.name async for model in await client.models.list()]


async def test_a_gemini_stream_without_alt_is_one_growing_array(simulator: SimulatorProcess) -> None:
    url = f"{simulator.url}/v1beta/models/{GEMINI_MODEL}:streamGenerateContent"
    body = {"contents": [{"parts": [{"text": "hello there"}]}], "generationConfig": {"maxOutputTokens": 3}}
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, json=body, params={"key": "AIza-sim-gemini-key"})
    assert answer.headers["content-type"].startswith("application/json")
    chunks = answer.json()
    assert chunks[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert len(chunks) == 5


@pytest.mark.parametrize(
    ("limits", "quota", "delay"),
    [
        ([{"rpm": 1}], "GenerateRequestsPerMinutePerProjectPerModel", 60),
        ([{"rpd": 1}], "GenerateRequestsPerDayPerProjectPerModel", 60),
        ([{"tpm": 15}], "GenerateContentInputTokensPerModelPerMinute", 60),
    ],
)
async def test_geminis_limits_name_their_quota_and_a_delay(
    simulator: SimulatorProcess, limits: list[dict[str, int]], quota: str, delay: int
) -> None:
    await simulator.control(organisation="proj-g", limits=limits)
    client = gemini(simulator).aio
    await client.models.generate_content(model=GEMINI_MODEL, contents="hello there")
    with pytest.raises(genai_errors.ClientError) as caught:
        await client.models.generate_content(model=GEMINI_MODEL, contents="hello there")
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    details = caught.value.details["error"]["details"]
    assert details[0]["violations"][0]["quotaId"] == quota
    assert details[0]["violations"][0]["quotaDimensions"]["model"] == GEMINI_MODEL
    assert 1 <= int(details[1]["retryDelay"][:-1]) <= delay


async def test_a_wrong_gemini_key_is_a_400(simulator: SimulatorProcess) -> None:
    with pytest.raises(genai_errors.ClientError) as caught:
        await gemini(simulator, "AIza-wrong").aio.models.generate_content(model=GEMINI_MODEL, contents="hi")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


# --- Azure


def azure(simulator: SimulatorProcess) -> AsyncAzureOpenAI:
    """The official SDK's Azure client, without retries."""
    return AsyncAzureOpenAI(
        api_key="azure-sim-key", azure_endpoint=simulator.base_url("azure"), api_version="2024-10-21", max_retries=0
    )


async def test_azure_takes_the_deployment_from_the_path(simulator: SimulatorProcess) -> None:
    await simulator.control(organisation="res-z", limits=[{"rpm": 60, "tpm": 1000}])
    async with azure(simulator) as client:
        raw = await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO, max_tokens=5)
        answer = raw.parse()
        assert (answer.model, answer.usage and answer.usage.completion_tokens) == ("gpt-4o", 5)
        assert raw.headers["x-ratelimit-remaining-requests"] == "9"  # of ten in this slice
        assert raw.headers["x-ratelimit-reset-tokens"].isdecimal()
        assert (raw.headers["x-ms-region"], "apim-request-id" in raw.headers) == ("Simulated", True)
        embedded = await client.embeddings.create(model="text-embedding-3-small", input="x")
        assert len(embedded.data) == 1
        told = await client.responses.create(model="gpt-4o", input="hello", max_output_tokens=4)
        assert told.usage is not None
        assert told.usage.output_tokens == 4


async def test_azure_streams_begin_with_what_the_filter_thought(simulator: SimulatorProcess) -> None:
    async with azure(simulator) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=HELLO, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_azures_limits_and_keys_have_its_words(simulator: SimulatorProcess) -> None:
    await simulator.control(organisation="res-z", limits=[{"rpm": 6}])
    async with azure(simulator) as client:
        for _ in range(2):  # one request in each slice of ten seconds
            try:
                await client.chat.completions.create(model="gpt-4o", messages=HELLO)
            except openai_sdk.RateLimitError as exc:
                error = exc
        assert "exceeded call rate limit" in error.message
        assert 0 < int(error.response.headers["retry-after-ms"]) <= 10_000
        assert error.code == "429"
    async with azure(simulator).with_options(api_key="wrong") as client:
        with pytest.raises(openai_sdk.AuthenticationError) as caught:
            await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert caught.value.code == "401"


# --- Groq


async def test_groq_counts_requests_by_the_day_and_tells_usage_in_x_groq(simulator: SimulatorProcess) -> None:
    await simulator.control(organisation="org-q", limits=[{"rpd": 14_400, "tpm": 6_000}])
    async with AsyncGroq(api_key="gsk_sim_key", base_url=f"{simulator.url}/groq", max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=GROQ_MODEL, messages=HELLO, max_completion_tokens=90
        )
        assert raw.headers["x-ratelimit-limit-requests"] == "14400"
        assert raw.headers["x-ratelimit-remaining-requests"] == "14399"
        assert raw.headers["x-ratelimit-remaining-tokens"] == "5900"
        assert raw.headers["x-ratelimit-reset-requests"] == "6s"  # one of 14,400 a day
        stream = await client.chat.completions.create(
            model=GROQ_MODEL, messages=HELLO, max_completion_tokens=4, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].x_groq is not None
        assert chunks[-1].x_groq.usage is not None
        assert chunks[-1].x_groq.usage.completion_tokens == 4
        with pytest.raises(groq.APIStatusError, match="Request too large") as caught:
            await client.chat.completions.create(model=GROQ_MODEL, messages=HELLO, max_completion_tokens=6_000)
        assert caught.value.status_code == 413
        await client.chat.completions.create(model=GROQ_MODEL, messages=HELLO, max_completion_tokens=3_000)
        with pytest.raises(groq.RateLimitError, match=r"tokens per minute \(TPM\): Limit 6000, Used \d+") as limited:
            await client.chat.completions.create(model=GROQ_MODEL, messages=HELLO, max_completion_tokens=5_960)
        said = re.search(r"Please try again in ([\d.]+)s", str(limited.value))
        assert said is not None
        assert limited.value.response.headers["retry-after"] == str(math.ceil(float(said[1])))


# --- Mistral


def mistral(simulator: SimulatorProcess) -> Mistral:
    """The official SDK."""
    return Mistral(api_key="mistral-sim-key", server_url=f"{simulator.url}/mistral")


async def test_mistral_tells_usage_unasked_and_limits_by_the_minute(simulator: SimulatorProcess) -> None:
    await simulator.control(organisation="org-m", limits=[{"rpm": 60, "tpm": 1000}])
    client = mistral(simulator)
    answer = await client.chat.complete_async(model=MISTRAL_MODEL, messages=HELLO, max_tokens=6)
    assert answer.usage.completion_tokens == 6
    stream = await client.chat.stream_async(model=MISTRAL_MODEL, messages=HELLO, max_tokens=3)
    chunks = [event.data async for event in stream]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.completion_tokens, chunks[-1].choices[0].finish_reason) == (3, "length")
    async with httpx.AsyncClient() as http:
        raw = await http.post(
            f"{simulator.url}/mistral/v1/chat/completions",
            json={"model": MISTRAL_MODEL, "messages": HELLO, "max_tokens": 5},
            headers={"authorization": "Bearer mistral-sim-key"},
        )
    assert raw.headers["x-ratelimit-limit-req-minute"] == "60"
    left = int(raw.headers["x-ratelimit-remaining-tokens-minute"])  # 30 of input, 14 of output; some came back since
    assert 956 <= left <= 985
    assert "x-ratelimit-reset-req-minute" not in raw.headers


async def test_mistral_refuses_what_it_does_not_know(simulator: SimulatorProcess) -> None:
    url = f"{simulator.url}/mistral/v1"
    async with AsyncOpenAI(api_key="mistral-sim-key", base_url=url, max_retries=0) as client:
        with pytest.raises(openai_sdk.UnprocessableEntityError) as caught:
            await client.chat.completions.create(model=MISTRAL_MODEL, messages=HELLO, max_completion_tokens=5)
        (problem,) = caught.value.response.json()["message"]["detail"]
        assert (problem["type"], problem["loc"]) == ("extra_forbidden", ["body", "max_completion_tokens"])
    wrong = Mistral(api_key="wrong", server_url=f"{simulator.url}/mistral")
    with pytest.raises((SDKError, HTTPValidationError), match="Unauthorized"):
        await wrong.chat.complete_async(model=MISTRAL_MODEL, messages=HELLO)


# --- DeepSeek and OpenRouter


async def test_deepseek_limits_only_what_is_in_flight_and_tells_what_its_cache_gave(
    simulator: SimulatorProcess,
) -> None:
    long: list[Any] = [{"role": "user", "content": "a long document " * 300}]
    async with AsyncOpenAI(api_key="sk-deepseek-sim", base_url=simulator.base_url("deepseek"), max_retries=0) as client:
        for hits in (0, 1152):
            answer = await client.chat.completions.create(model="deepseek-chat", messages=long, max_tokens=3)
            assert answer.usage is not None
            assert answer.usage.model_extra is not None
            assert answer.usage.model_extra["prompt_cache_hit_tokens"] == hits
        stream = await client.chat.completions.create(model="deepseek-chat", messages=HELLO, max_tokens=3, stream=True)
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert chunks[-1].choices[0].finish_reason == "length"
        await simulator.control(organisation="acc-d", limits=[{"concurrency": 1}], settings={"tokens_per_second": 5})
        first = await client.chat.completions.create(model="deepseek-chat", messages=HELLO, stream=True)
        with pytest.raises(openai_sdk.RateLimitError, match="concurrent"):
            await client.chat.completions.create(model="deepseek-chat", messages=HELLO)
        await first.close()


async def test_openrouter_tells_what_each_answer_cost(simulator: SimulatorProcess) -> None:
    url = simulator.base_url("openrouter")
    async with AsyncOpenAI(api_key="sk-or-v1-sim", base_url=url, max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="openai/gpt-4o-mini", messages=HELLO, max_tokens=10
        )
        assert raw.headers["x-generation-id"].startswith("gen-")
        usage = raw.parse().usage
        assert usage is not None
        assert usage.model_extra is not None
        assert usage.model_extra["cost"] == (10 * 0.15 + 10 * 0.60) / 1e6
        stream = await client.chat.completions.create(
            model="openai/gpt-4o-mini", messages=HELLO, max_tokens=2, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 2
        cost = (await simulator.report())["organisations"]["acc-r"]["cost_nanousd"]
        assert cost == 7_500 + 2_700


@pytest.mark.parametrize(
    ("limits", "scope", "source"),
    [
        ([{"spend_usd": "0.000001"}], "acc-r", "openrouter_credits"),
        ([{"concurrency": 1}], "acc-r", "openrouter_in_flight_budget"),
    ],
)
async def test_openrouters_402s_say_what_ran_out(
    simulator: SimulatorProcess, limits: list[dict[str, Any]], scope: str, source: str
) -> None:
    await simulator.control(organisation=scope, limits=limits, settings={"tokens_per_second": 50})
    url = simulator.base_url("openrouter")
    async with AsyncOpenAI(api_key="sk-or-v1-sim", base_url=url, max_retries=0) as client:
        first = await client.chat.completions.create(
            model="openai/gpt-4o-mini", messages=HELLO, stream=True, max_tokens=9
        )
        if source == "openrouter_credits":
            [chunk async for chunk in first]
        with pytest.raises(openai_sdk.APIStatusError) as caught:
            await client.chat.completions.create(model="openai/gpt-4o-mini", messages=HELLO)
        await first.close()
    assert caught.value.status_code == 402
    assert json.loads(caught.value.response.content)["error"]["metadata"]["limit_source"] == source
    assert ("retry-after" in caught.value.response.headers) is (source == "openrouter_in_flight_budget")


async def test_an_openrouter_stream_that_breaks_says_so_beside_its_choices(simulator: SimulatorProcess) -> None:
    await simulator.fail("error_mid_stream", organisation="acc-r")
    url = simulator.base_url("openrouter")
    async with AsyncOpenAI(api_key="sk-or-v1-sim", base_url=url, max_retries=0) as client:
        with pytest.raises(openai_sdk.APIError, match="Provider disconnected"):
            stream = await client.chat.completions.create(model="openai/gpt-4o-mini", messages=HELLO, stream=True)
            [chunk async for chunk in stream]
