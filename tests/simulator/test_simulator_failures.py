"""Every failure by name: the error of the provider, or what the official SDKs make of a broken stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic as anthropic_sdk
import httpx
import openai as openai_sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter.simulator.anthropic_errors import ANTHROPIC_FAILURES
from apikeyrouter.simulator.failures import WIRE_FAILURES
from apikeyrouter.simulator.openai_errors import OPENAI_FAILURES

pytestmark = pytest.mark.asyncio(loop_scope="package")

OPENAI_STATUS: dict[str, tuple[int, str | None]] = {
    # providers.md §1.3, the OpenAI rows: status and error.code
    "rate_limit_requests": (429, "rate_limit_exceeded"),
    "rate_limit_tokens": (429, "rate_limit_exceeded"),
    "request_too_large": (429, "rate_limit_exceeded"),
    "slow_down": (429, "slow_down"),
    "slow_down_503": (503, "slow_down"),
    "flex_unavailable": (429, "resource_unavailable"),
    "insufficient_quota": (429, "insufficient_quota"),
    "credit_balance_exhausted": (429, "credit_balance_exhausted"),
    "organization_spend_limit_exceeded": (429, "organization_spend_limit_exceeded"),
    "project_spend_limit_exceeded": (429, "project_spend_limit_exceeded"),
    "organization_usage_limit_exceeded": (429, "organization_usage_limit_exceeded"),
    "billing_hard_limit_reached": (400, "billing_hard_limit_reached"),
    "invalid_api_key": (401, "invalid_api_key"),
    "not_a_member": (401, "invalid_organization"),
    "ip_not_authorized": (401, "ip_not_authorized"),
    "unsupported_country": (403, "unsupported_country_region_territory"),
    "missing_scope": (403, "missing_scope"),
    "unverified_organization": (403, "unverified_organization"),
    "model_not_found": (404, "model_not_found"),
    "model_not_found_400": (400, "model_not_found"),
    "context_length_exceeded": (400, "context_length_exceeded"),
    "content_filter": (400, "content_filter"),
    "content_policy_violation": (400, "content_policy_violation"),
    "invalid_prompt": (400, "invalid_prompt"),
    "bio_policy": (400, "bio_policy"),
    "misalignment_policy_violation": (400, "misalignment_policy_violation"),
    "server_is_overloaded": (503, "server_is_overloaded"),
    "server_error": (500, None),
    "gateway_timeout": (504, None),
}

ANTHROPIC_STATUS: dict[str, tuple[int, str, str | None]] = {
    # providers.md §1.3, the Anthropic rows: status, error.type and details.error_code
    "rate_limit_requests": (429, "rate_limit_error", None),
    "rate_limit_tokens": (429, "rate_limit_error", None),
    "ramp_limit_exceeded": (429, "rate_limit_error", "ramp_limit_exceeded"),
    "enforced_spend_limit_reached": (429, "rate_limit_error", "enforced_spend_limit_reached"),
    "contract_spend_limit_reached": (429, "rate_limit_error", "contract_spend_limit_reached"),
    "usage_limit_reached": (400, "invalid_request_error", None),
    "workspace_usage_limit_reached": (400, "invalid_request_error", None),
    "credit_balance_too_low": (400, "invalid_request_error", None),
    "billing_error": (402, "billing_error", None),
    "organization_on_hold": (400, "invalid_request_error", "organization_on_hold"),
    "organization_disabled": (400, "invalid_request_error", None),
    "claude_code_key_creator_not_member": (400, "invalid_request_error", "claude_code_key_creator_not_member"),
    "linked_organization_billing": (402, "billing_error", "linked_organization_billing_inactive"),
    "authentication_error": (401, "authentication_error", None),
    "permission_error": (403, "permission_error", None),
    "cmek_key_unavailable": (400, "invalid_request_error", "cmek_key_revoked"),
    "cmek_transient": (503, "api_error", "cmek_key_unavailable"),
    "not_found_error": (404, "not_found_error", None),
    "request_too_large": (413, "request_too_large", None),
    "prompt_too_long": (400, "invalid_request_error", None),
    "content_policy": (400, "invalid_request_error", None),
    "overloaded_error": (529, "overloaded_error", None),
    "api_error": (500, "api_error", None),
    "timeout_error": (504, "timeout_error", None),
}

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]


async def chat(client: AsyncOpenAI, fail: str, **options: Any) -> Any:
    """A chat that asks for ``fail`` by header."""
    arguments = {"model": "gpt-4o", "messages": HELLO, "extra_headers": {"x-sim-fail": fail}, **options}
    return await client.chat.completions.create(**arguments)


async def message(client: AsyncAnthropic, fail: str, **options: Any) -> Any:
    """A message that asks for ``fail`` by header."""
    arguments = {
        "model": "claude-haiku-5",
        "max_tokens": 20,
        "messages": HELLO,
        "extra_headers": {"x-sim-fail": fail},
        **options,
    }
    return await client.messages.create(**arguments)


async def chat_text(client: AsyncOpenAI, fail: str, **options: Any) -> tuple[str, bool]:
    """The text of a streamed chat, and whether it had a finish reason."""
    text, finished = "", False
    async for chunk in await chat(client, fail, stream=True, **options):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finished = finished or choice.finish_reason is not None
    return text, finished


async def message_kinds(client: AsyncAnthropic, fail: str) -> list[str]:
    """The event types of a streamed message."""
    return [event.type async for event in await message(client, fail, stream=True)]


async def test_the_tables_here_name_every_error_of_both_dialects() -> None:
    assert OPENAI_STATUS.keys() == OPENAI_FAILURES.keys()
    assert ANTHROPIC_STATUS.keys() == ANTHROPIC_FAILURES.keys()


@pytest.mark.parametrize("name", OPENAI_STATUS)
async def test_an_openai_error_has_its_status_and_code(openai: AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai_sdk.APIStatusError) as error:
        await chat(openai, name)
    assert (error.value.status_code, error.value.code) == OPENAI_STATUS[name]
    assert isinstance(error.value.body, dict)
    assert set(error.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ANTHROPIC_STATUS)
async def test_an_anthropic_error_has_its_status_type_and_code(anthropic: AsyncAnthropic, name: str) -> None:
    with pytest.raises(anthropic_sdk.APIStatusError) as error:
        await message(anthropic, name)
    status, type_, error_code = ANTHROPIC_STATUS[name]
    body: Any = error.value.body
    assert (error.value.status_code, body["error"]["type"], error.value.error_code) == (status, type_, error_code)
    assert body["request_id"] == error.value.request_id


async def test_a_wait_is_named_in_message_and_headers_alike(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_sdk.RateLimitError, match=r"Please try again in 6m0\.5s\.") as error:
        await chat(openai, "rate_limit_tokens:360.5")
    assert error.value.response.headers["retry-after"] == "361"
    assert error.value.response.headers["retry-after-ms"] == "360500"


async def test_a_spend_limit_names_the_day_of_return_and_no_retry_after(anthropic: AsyncAnthropic) -> None:
    pattern = r"You will regain access on \d{4}-\d\d-01 at 00:00 UTC\."
    for name in ("usage_limit_reached", "enforced_spend_limit_reached"):
        with pytest.raises(anthropic_sdk.APIStatusError, match=pattern) as error:
            await message(anthropic, name)
        assert "retry-after" not in error.value.response.headers


async def test_cloudflare_answers_a_request_too_large_with_html(anthropic: AsyncAnthropic) -> None:
    with pytest.raises(anthropic_sdk.APIStatusError) as error:
        await message(anthropic, "request_too_large_html")
    assert error.value.status_code == 413
    assert error.value.response.headers["content-type"] == "text/html"


async def test_a_model_not_found_is_a_400_on_responses(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_sdk.BadRequestError) as error:
        await openai.responses.create(model="gpt-4o", input="x", extra_headers={"x-sim-fail": "model_not_found"})
    assert error.value.code == "model_not_found"


async def test_an_unknown_failure_is_told_rather_than_ignored(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_sdk.BadRequestError, match="no_such_failure"):
        await chat(openai, "no_such_failure")


# --- on the wire, streamed
@pytest.mark.parametrize("name", ["comments", "crlf", "split_utf8", "retry_after_on_200", "slow_first_token:0.05"])
async def test_a_strange_stream_is_whole_for_both_sdks(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic, name: str
) -> None:
    text, finished = await chat_text(openai, name, max_tokens=20)
    assert finished
    assert len(text.encode()) == 80
    assert ("世界" in text) is (name == "split_utf8")
    assert (await message_kinds(anthropic, name))[-1] == "message_stop"


@pytest.mark.parametrize("name", ["truncate", "truncate_terminator"])
async def test_a_truncated_stream_raises_nothing_and_lacks_its_end(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic, name: str
) -> None:
    text, finished = await chat_text(openai, name)
    assert finished is (name == "truncate_terminator")
    assert text.startswith("You said")
    assert (await message_kinds(anthropic, name))[-1] != "message_stop"


@pytest.mark.parametrize("name", ["cut_mid_stream", "cut_mid_body"])
async def test_a_cut_stream_is_a_connection_error(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic, simulator: SimulatorProcess, name: str
) -> None:
    with pytest.raises(openai_sdk.APIConnectionError):
        await chat_text(openai, name)
    with pytest.raises(Exception, match=r"(?i)read|peer|incomplete|connection|$") as error:
        await message_kinds(anthropic, name)
    assert type(error.value).__name__ in ("ReadError", "RemoteProtocolError", "APIConnectionError")
    assert (await simulator.report())["total"]["cut"] == 2


@pytest.mark.parametrize("name", ["error_first_event", "error_mid_stream"])
async def test_an_error_event_is_raised_by_both_sdks(openai: AsyncOpenAI, anthropic: AsyncAnthropic, name: str) -> None:
    with pytest.raises(openai_sdk.APIError) as openai_error:
        await chat_text(openai, name)
    assert openai_error.value.code == "server_error"
    with pytest.raises(anthropic_sdk.APIStatusError) as anthropic_error:
        await message_kinds(anthropic, name)
    assert anthropic_error.value.status_code == 200
    assert anthropic_error.value.type == "overloaded_error"


async def test_a_malformed_event_is_a_raw_decode_error(openai: AsyncOpenAI) -> None:
    with pytest.raises(json.JSONDecodeError):
        await chat_text(openai, "malformed_json")


async def test_a_stalled_stream_times_out_and_is_billed_for_what_it_sent(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    for name in ("stall_before_first_byte", "stall_mid_stream:60:3"):
        with pytest.raises((openai_sdk.APITimeoutError, TimeoutError)):
            await asyncio.wait_for(chat_text(openai, name, timeout=1.2), 20)
    for _ in range(500):
        entries = await simulator.journal()
        if all(entry["verdict"] == "disconnected" for entry in entries):
            break
        await asyncio.sleep(0.01)
    assert [entry["output_tokens"] for entry in entries] == [0, 3]


async def test_a_connection_closed_before_the_answer_is_a_connection_error(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    for stream in (False, True):
        with pytest.raises(openai_sdk.APIConnectionError):
            await chat(openai, "disconnect", stream=stream)
    assert (await simulator.report())["total"]["cost_nanousd"] == 0


async def test_an_empty_stream_ends_without_a_word(openai: AsyncOpenAI) -> None:
    assert await chat_text(openai, "empty_body") == ("", False)


# --- on the wire, whole bodies
@pytest.mark.parametrize("name", ["truncate", "cut_mid_stream", "cut_mid_body", "stall_mid_stream"])
async def test_a_body_that_breaks_off_is_a_connection_error(openai: AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai_sdk.APIConnectionError):
        await chat(openai, name, timeout=0.5)


@pytest.mark.parametrize("name", ["comments", "split_utf8", "crlf", "retry_after_on_200"])
async def test_a_strange_body_is_a_good_answer(openai: AsyncOpenAI, name: str) -> None:
    assert (await chat(openai, name)).choices[0].message.content.startswith("You said")


@pytest.mark.parametrize("name", ["malformed_json", "empty_body", "error_first_event"])
async def test_a_spoilt_body_arrives_with_status_200(simulator: SimulatorProcess, name: str) -> None:
    headers = {"authorization": "Bearer sk-sim-key-number-1", "x-sim-fail": name}
    async with httpx.AsyncClient() as client:
        body = {"model": "gpt-4o", "messages": HELLO}
        answer = await client.post(f"{simulator.openai_url}/chat/completions", headers=headers, json=body)
    assert answer.status_code == 200
    if name == "error_first_event":
        assert "error" in answer.json()
    else:
        with pytest.raises(json.JSONDecodeError):
            answer.json()


async def test_a_filtered_answer_says_so(openai: AsyncOpenAI, anthropic: AsyncAnthropic) -> None:
    assert (await chat(openai, "content_filter_stop")).choices[0].finish_reason == "content_filter"
    assert (await message(anthropic, "content_filter_stop")).stop_reason == "refusal"


async def test_every_wire_failure_ends_an_exchange_for_good(simulator: SimulatorProcess, openai: AsyncOpenAI) -> None:
    for name in WIRE_FAILURES:
        for stream in (False, True):
            try:
                answer = await chat(openai, f"{name}:0.01", stream=stream, timeout=2)
                if stream:
                    _ = [chunk async for chunk in answer]
            except (openai_sdk.APIError, json.JSONDecodeError, openai_sdk.APIResponseValidationError):
                pass
    total = (await simulator.report())["total"]
    assert total["in_flight"] == 0
    assert total["admitted"] == 2 * len(WIRE_FAILURES)
    assert total["failures"] == dict.fromkeys(WIRE_FAILURES, 2)


# --- how failures are chosen
async def test_a_rule_fails_as_many_matching_requests_as_it_says(
    simulator: SimulatorProcess, openai: AsyncOpenAI, anthropic: AsyncAnthropic
) -> None:
    await simulator.fail("overloaded", count=2, skip=1, organisation="org-a", model="gpt-4o")
    good = [await succeeds(openai, model) for model in ("gpt-4", "gpt-4o", "gpt-4o", "gpt-4", "gpt-4o", "gpt-4o")]
    assert good == [True, True, False, True, False, True]
    assert (await message_kinds(anthropic, "comments"))[-1] == "message_stop"


async def test_a_rule_for_one_key_spares_the_other(simulator: SimulatorProcess, openai: AsyncOpenAI) -> None:
    await simulator.fail("server_error", key="second")
    assert await succeeds(openai, "gpt-4o")
    assert not await succeeds(openai.with_options(api_key="sk-sim-key-number-2"), "gpt-4o")


async def test_a_probability_is_kept_to_and_is_the_same_after_a_reset(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    runs = []
    for _ in range(2):
        await simulator.reset()
        await simulator.fail("server_error", probability=0.5)
        runs.append([await succeeds(openai, "gpt-4o") for _ in range(40)])
    assert runs[0] == runs[1]
    assert 8 <= sum(runs[0]) <= 32


async def test_a_marker_in_the_prompt_fails_each_time_or_only_once(openai: AsyncOpenAI) -> None:
    for text, expected in (
        ("[[fail:server_error]] hi", [False, False]),
        ("[[fail_once:server_error:x1]]", [False, True]),
    ):
        messages = [{"role": "user", "content": text}]
        assert [await succeeds(openai, "gpt-4o", messages=messages) for _ in range(2)] == expected


async def test_scripted_refusals_are_not_counted_as_over_a_limit(
    simulator: SimulatorProcess, openai: AsyncOpenAI
) -> None:
    with pytest.raises(openai_sdk.RateLimitError):
        await chat(openai, "rate_limit")
    with pytest.raises(openai_sdk.InternalServerError):
        await chat(openai, "server_error")
    total = (await simulator.report())["total"]
    assert (total["arrived"], total["admitted"], total["over_limit"], total["failed"]) == (2, 1, 0, 1)
    assert total["rejected"] == {"failure:rate_limit_requests": 1}
    assert total["failures"] == {"rate_limit_requests": 1, "server_error": 1}
    assert total["cost_nanousd"] == 0


async def succeeds(client: AsyncOpenAI, model: str, **options: Any) -> bool:
    """Whether a chat is answered."""
    try:
        await client.chat.completions.create(**{"model": model, "messages": HELLO, **options})
    except openai_sdk.APIStatusError:
        return False
    return True
