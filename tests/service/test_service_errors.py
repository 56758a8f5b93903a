"""What clients are told when a request fails: the right exception of their SDK, and whether to try again."""

from typing import Any

import anthropic
import openai
import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

REQUESTS_MAX = 40
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]


async def ask_openai(service: Running, **options: Any) -> openai.APIStatusError:
    async with service.openai() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**{"model": "gpt-4o-mini", "messages": HELLO, **options})
    return caught.value


async def ask_anthropic(service: Running, **options: Any) -> anthropic.APIStatusError:
    async with service.anthropic() as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**{"model": "claude-haiku-4-5", "max_tokens": 5, "messages": HELLO, **options})
    return caught.value


@pytest.mark.parametrize(
    ("failure", "kind", "code", "retry"),
    [
        ("auth", openai.InternalServerError, "upstream_credentials", "true"),
        ("permission", openai.InternalServerError, "upstream_credentials", "true"),
        ("billing", openai.RateLimitError, "all_keys_exhausted", "false"),
        ("rate_limit", openai.RateLimitError, "rate_limit_exceeded", "true"),
        ("overloaded", openai.InternalServerError, "server_is_overloaded", "true"),
        ("server_error", openai.InternalServerError, "server_is_overloaded", "true"),
        ("timeout", openai.InternalServerError, "upstream_timeout", "false"),
        ("disconnect", openai.InternalServerError, "upstream_unreachable", "false"),
        ("context_length", openai.BadRequestError, "context_length_exceeded", "false"),
        ("model_not_found", openai.NotFoundError, "model_not_found", "false"),
        ("request_too_large", openai.BadRequestError, "request_too_large", "false"),
    ],
)
async def test_an_upstream_failure_becomes_the_right_exception_of_openai(
    simulator: SimulatorProcess, service: Running, failure: str, kind: type[Exception], code: str, retry: str
) -> None:
    await simulator.fail(failure, organisation="org-alpha")
    error = await ask_openai(service)
    assert isinstance(error, kind)
    assert error.code == code
    assert error.response.headers["x-should-retry"] == retry
    assert error.response.headers["x-request-id"]
    assert "sk-sim" not in error.response.text
    assert "org-alpha" not in error.response.text


@pytest.mark.parametrize(
    ("failure", "kind", "status", "type_"),
    [
        ("auth", anthropic.InternalServerError, 529, "overloaded_error"),
        ("billing", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("overloaded", anthropic.InternalServerError, 529, "overloaded_error"),
        ("timeout", anthropic.InternalServerError, 504, "timeout_error"),
        ("context_length", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("model_not_found", anthropic.NotFoundError, 404, "not_found_error"),
    ],
)
async def test_an_upstream_failure_becomes_the_right_exception_of_anthropic(
    simulator: SimulatorProcess, service: Running, failure: str, kind: type[Exception], status: int, type_: str
) -> None:
    await simulator.fail(failure, organisation="org-beta")
    error = await ask_anthropic(service)
    assert isinstance(error, kind)
    assert error.status_code == status
    assert error.response.json()["error"]["type"] == type_
    assert error.request_id == error.response.headers["request-id"]


async def test_the_providers_own_codes_do_not_multiply_the_reasons(
    simulator: SimulatorProcess, service: Running
) -> None:
    await simulator.fail("context_length", organisation="org-alpha")
    await ask_openai(service)
    assert await service.count('apikeyrouter_denials_total{reason="refused_by_provider"}') == 1
    assert await service.count("apikeyrouter_denials_total") == 1


async def test_a_failing_key_is_passed_over_for_one_that_works(simulator: SimulatorProcess, service: Running) -> None:
    await simulator.fail("auth", key="org-alpha/1")
    async with service.openai() as client:
        keys = set()
        for _ in range(4):
            raw = await client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
            keys.add(raw.headers["x-akr-key-id"])
    assert keys == {"k2"}


async def test_a_stream_that_breaks_ends_with_an_error_event_of_each_dialect(
    simulator: SimulatorProcess, service: Running
) -> None:
    await simulator.fail("error_mid_stream")
    async with service.openai() as client:
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as caught:
            assert [chunk async for chunk in stream]
    assert caught.value.code
    async with (
        service.anthropic() as other,
        other.messages.stream(model="claude-haiku-4-5", max_tokens=9, messages=HELLO) as events,
    ):
        with pytest.raises(anthropic.APIStatusError):
            await events.get_final_message()


async def test_a_client_limit_says_when_to_come_back(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    config["clients"] = [{"name": "app", "token": "token-of-the-app-1", "rpm": 1}]
    async with running_service(service_valkey.url, config) as service, service.openai("token-of-the-app-1") as client:
        await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        await service.runtime._access_log.flush()
        assert '"denied_by":"c:app rpm"' in service.log.read_text()
    headers = caught.value.response.headers
    assert caught.value.code == "tenant_rate_limited"
    assert headers["x-should-retry"] == "true"
    assert 0 < int(headers["retry-after"]) <= 67
    assert 0 < int(headers["retry-after-ms"]) <= int(headers["retry-after"]) * 1000


async def test_a_hard_budget_without_room_is_no_reason_to_retry(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    config["budgets"] = [
        {"name": "all", "scope": "global", "limit_usd": 0.0001, "period": "daily", "enforcement": "hard"}
    ]
    async with running_service(service_valkey.url, config) as service, service.openai() as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await _ask_until_refused(client)
    error = caught.value
    assert (error.code, error.type) == ("budget_exceeded", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert int(error.response.headers["retry-after"]) <= 24 * 3600
    assert 1 <= len(await simulator.journal()) < REQUESTS_MAX


async def _ask_until_refused(client: openai.AsyncOpenAI) -> None:
    for _ in range(REQUESTS_MAX):
        await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=12)


async def test_a_cap_that_was_injected_is_told(service_valkey: Server, config: dict[str, Any]) -> None:
    config["budgets"] = [{"name": "all", "scope": "global", "limit_usd": 100, "period": "daily", "enforcement": "hard"}]
    async with running_service(service_valkey.url, config) as service, service.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
        streamed = await client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=HELLO, stream=True
        )
        async for _ in streamed.parse():
            pass
    assert int(raw.headers["x-akr-token-cap"]) == int(streamed.headers["x-akr-token-cap"]) > 0
    assert streamed.headers["x-accel-buffering"] == "no"


async def test_a_model_without_a_price_is_named_where_a_hard_budget_refuses_it(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    config["keys"] = [{"id": "k", "provider": "openai", "key": "sk-sim-service-1"}]
    config["budgets"] = [{"name": "all", "scope": "global", "limit_usd": 100, "period": "daily", "enforcement": "hard"}]
    async with running_service(service_valkey.url, config) as service, service.openai() as client:
        with pytest.raises(openai.RateLimitError, match="no price is known for openai/gpt-4o-minni") as caught:
            await client.chat.completions.create(model="gpt-4o-minni", messages=HELLO, max_tokens=3)
    assert caught.value.code == "budget_exceeded"
    assert await simulator.journal() == []


async def test_a_lost_store_is_a_503_and_readiness_says_so(config: dict[str, Any]) -> None:
    from tests.servers import default_flavour, running

    with running(default_flavour()) as server:
        async with running_service(server.url, config) as service:
            server.stop()
            error = await ask_openai(service)
            async with service.http() as client:
                ready = await client.get("/health/ready")
                health = await client.get("/health")
                metrics = await client.get("/metrics")
            service.runtime.options = type(service.runtime.options)(drain_seconds=0)
    assert (error.status_code, error.code) == (503, "store_unavailable")
    assert error.response.headers["x-should-retry"] == "true"
    assert ready.status_code == 503
    assert health.json()["status"] == "degraded"
    assert metrics.status_code == 200
