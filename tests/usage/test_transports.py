"""The official SDKs, unmodified, in this process: over httpx and httpx2, as they would be served by a provider."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from google import genai
from google.genai import types
from openai import AsyncOpenAI

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.integrations.httpx import BlockingRouterTransport as HttpxBlocking
from apikeyrouter.integrations.httpx import RouterTransport as HttpxTransport
from apikeyrouter.integrations.httpx2 import BlockingRouterTransport as Httpx2Blocking
from apikeyrouter.integrations.httpx2 import RouterTransport as Httpx2Transport
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, House, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
TINY = {"name": "all", "scope": "global", "limit_usd": 1e-9, "period": "total", "enforcement": "hard"}
OpenAIOver = Callable[..., contextlib.AbstractAsyncContextManager[AsyncOpenAI]]


@contextlib.asynccontextmanager
async def _over_httpx(router: ApiKeyRouter, *, max_retries: int = 0, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    async with httpx.AsyncClient(transport=HttpxTransport(router, **options)) as http:
        legacy: Any = http  # taken by the SDK, though its annotations name httpx2 only
        yield AsyncOpenAI(api_key="any", http_client=legacy, max_retries=max_retries)


@contextlib.asynccontextmanager
async def _over_httpx2(router: ApiKeyRouter, *, max_retries: int = 0, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    async with httpx2.AsyncClient(transport=Httpx2Transport(router, **options)) as http:
        yield AsyncOpenAI(api_key="any", http_client=http, max_retries=max_retries)


@contextlib.asynccontextmanager
async def anthropic_over(router: ApiKeyRouter, **options: Any) -> AsyncIterator[AsyncAnthropic]:
    """The Anthropic SDK; it takes clients of httpx2 only."""
    async with httpx2.AsyncClient(transport=Httpx2Transport(router, **options)) as http:
        yield AsyncAnthropic(api_key="any", http_client=http, max_retries=0)


@pytest.fixture(params=[_over_httpx, _over_httpx2], ids=["httpx", "httpx2"])
def over(request: pytest.FixtureRequest) -> OpenAIOver:
    """The OpenAI SDK over either package."""
    made: OpenAIOver = request.param
    return made


async def test_openai_chats_and_the_books_equal_the_bill(
    simulator: SimulatorProcess, store: StateStore, over: OpenAIOver
) -> None:
    async with house(simulator, store, ["a1"]) as made, over(made.router) as client:
        raw = await client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
        answer = raw.parse()
        assert (answer.choices[0].message.content or "").startswith("You said: hello there")
        assert answer.model_extra is not None
        assert answer.model_extra["routing_metadata"]["key_used"] == raw.headers["x-akr-key-id"] == "a1"
        assert raw.headers["x-request-id"] == answer._request_id == made.finished[0].request_id
        assert await made.at_rest() == await made.billed() > 0


async def test_openai_streams_and_the_books_equal_the_bill(
    simulator: SimulatorProcess, store: StateStore, over: OpenAIOver
) -> None:
    async with house(simulator, store, ["a1"]) as made, over(made.router) as client:
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("You said: hello there")
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert await made.at_rest() == await made.billed() > 0


async def test_openai_has_embeddings_responses_completions_and_models(
    simulator: SimulatorProcess, over: OpenAIOver
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made, over(made.router) as client:
        embedding = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
        response = await client.responses.create(model="gpt-4o", input="hello there", max_output_tokens=3)
        kinds = [
            event.type async for event in await client.responses.create(model="gpt-4o", input="hello", stream=True)
        ]
        completion = await client.completions.create(model="gpt-4o", prompt="hello there", max_tokens=3)
        models = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("gpt-4o-mini")
        assert len(embedding.data) == 2
        assert response.output_text == "You said: he"
        assert kinds[-1] == "response.completed"
        assert completion.choices[0].text
        assert one.id in models
        assert await made.at_rest() == await made.billed() > 0


async def test_anthropic_sends_streams_and_counts(simulator: SimulatorProcess, store: StateStore) -> None:
    options: Any = {"model": "claude-haiku-5", "max_tokens": 12, "messages": HELLO}
    async with house(simulator, store, ["c1"]) as made, anthropic_over(made.router) as client:
        message = await client.messages.create(**options)
        async with client.messages.stream(**options) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        counted = await client.messages.count_tokens(model="claude-haiku-5", messages=HELLO)
        assert message.content[0].type == "text"
        assert text.startswith("You said: hello there")
        assert counted.input_tokens == message.usage.input_tokens
        assert message._request_id == made.finished[0].request_id
        assert await made.at_rest() == await made.billed() > 0


async def test_each_sdk_is_served_by_providers_of_other_dialects(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "c1"]) as made:
        async with over(made.router) as client:
            answer = await client.chat.completions.create(model="claude-haiku-5", messages=HELLO, max_tokens=9)
            stream = await client.chat.completions.create(model="claude-haiku-5", messages=HELLO, stream=True)
            chunks = [chunk async for chunk in stream]
        async with anthropic_over(made.router) as other:
            message = await other.messages.create(model="gpt-4o-mini", max_tokens=9, messages=HELLO)
        assert answer.choices[0].finish_reason == "length"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("You said: hello there")
        assert message.stop_reason == "max_tokens"
        assert [facts.provider_id for facts in made.finished] == ["anthropic", "anthropic", "openai"]
        assert await made.at_rest() == await made.billed() > 0


async def test_responses_completions_and_counts_are_served_by_providers_without_them(
    simulator: SimulatorProcess, over: OpenAIOver
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "c1"]) as made:
        async with over(made.router) as client:
            response = await client.responses.create(model="claude-haiku-5", input="hello there")
            async with client.responses.stream(model="claude-haiku-5", input="hello there") as stream:
                streamed = await stream.get_final_response()
            completion = await client.completions.create(model="claude-haiku-5", prompt="hello there", max_tokens=9)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(response.id)
        async with anthropic_over(made.router) as other:
            counted = await other.messages.with_raw_response.count_tokens(model="gpt-4o-mini", messages=HELLO)
        assert response.output_text == streamed.output_text
        assert response.output_text.startswith("You said: hello there")
        assert completion.choices[0].finish_reason == "length"
        assert counted.headers["x-akr-token-count"] == "estimate"
        assert await made.at_rest() == await made.billed() > 0


async def test_intents_of_other_operations_are_served_by_providers_without_them(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "c1"]) as made:
        asked = {"model": "claude-haiku-5", "operation": "responses", "payload": {"input": "hello there"}}
        answer = await made.router.route(asked)
        pieces = "".join([piece.text async for piece in made.router.route_stream(asked)])
        text = await made.router.route(
            {"model": "claude-haiku-5", "operation": "completion", "payload": {"prompt": "hello there"}}
        )
        with pytest.raises(InvalidRequestError) as refused:
            await made.router.route({**asked, "payload": {"input": "hi", "previous_response_id": "resp_1"}})
        assert answer.content == pieces
        assert answer.content.startswith(text.content)
        assert text.content.startswith("You said: hello there")
        assert refused.value.field == "previous_response_id"
        assert await made.at_rest() == await made.billed() > 0


async def test_google_genai_is_served_in_process(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        http = httpx2.AsyncClient(transport=Httpx2Transport(made.router))
        options = types.HttpOptions(base_url="http://router", httpx_async_client=http)
        client = genai.Client(api_key="any", http_options=options)
        answer = await client.aio.models.generate_content(model="gpt-4o-mini", contents="hello there")
        stream = await client.aio.models.generate_content_stream(model="gpt-4o-mini", contents="hello there")
        text = "".join([chunk.text or "" async for chunk in stream])
        assert answer.text == text
        assert text.startswith("You said: hello there")
        assert await made.at_rest() == await made.billed() > 0


async def test_what_goes_on_stays_where_it_began(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made, over(made.router) as client:
        for _ in range(3):
            first = await client.responses.create(model="gpt-4o-mini", input="hi", max_output_tokens=3)
            on = await client.responses.create(
                model="gpt-4o-mini", input="hi", max_output_tokens=3, previous_response_id=first.id
            )
            assert (await client.responses.retrieve(on.id)).id == on.id
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_of_nobody")
        assert {facts.provider_id for facts in made.finished} == {"openai", "other"}


async def test_a_translated_stream_that_is_left_is_settled(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    async with house(simulator, InMemoryStateStore(), ["c1"]) as made, over(made.router) as client:
        stream = await client.chat.completions.create(model="claude-haiku-5", messages=HELLO, stream=True)
        async for _ in stream:
            break
        await stream.close()
        assert await made.at_rest() > 0


async def test_any_base_url_will_do(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made, over(made.router) as client:
        for base_url in ("https://api.openai.com/v1", "http://router", "https://gateway.example/api/v1"):
            answer = await client.with_options(base_url=base_url).chat.completions.create(
                model="gpt-4o-mini", messages=HELLO
            )
            assert answer.choices[0].finish_reason == "stop"


async def test_errors_are_those_that_the_service_answers(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    limits = [{"quota_group": "org-a", "rpm": 60, "burst": 1, "kind": "bucket", "headroom": 0}]
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limits) as made, over(made.router) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.BadRequestError, match="messages"):
            await client.post("/chat/completions", body={"model": "gpt-4o-mini", "messages": 3}, cast_to=object)
        with pytest.raises(openai.NotFoundError, match="no such path"):
            await client.vector_stores.create()
        with pytest.raises(openai.APIStatusError, match="use POST"):
            await client.get("/embeddings", cast_to=object)
        await create(model="gpt-4o-mini", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as limited:
            await create(model="gpt-4o-mini", messages=HELLO)
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.response.headers["x-should-retry"] == "true"
        assert 0 < int(limited.value.response.headers["retry-after-ms"]) <= 2000
        assert await made.at_rest() == await made.billed()


async def test_a_model_that_no_key_serves_is_not_found(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    async with house(simulator, InMemoryStateStore(), ["s1"]) as made, over(made.router) as client:
        with pytest.raises(openai.NotFoundError, match="no key serves model"):
            await client.chat.completions.create(model="no-such-model", messages=HELLO)


async def test_an_sdk_retries_where_the_answer_says_so_and_only_there(
    simulator: SimulatorProcess, over: OpenAIOver
) -> None:
    limits = [{"quota_group": "org-a", "rpm": 600, "burst": 1, "kind": "bucket", "headroom": 0}]
    async with (
        house(simulator, InMemoryStateStore(), ["a1"], limits=limits) as made,
        over(made.router, max_retries=2) as client,
    ):
        for _ in range(3):
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert len(made.finished) > 3, "it was denied in between, and came back"
        await made.apply(["a1"], budgets=[TINY])
        before = len(made.finished)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert refused.value.code == "budget_exceeded"
        assert len(made.finished) == before + 1


@pytest.mark.parametrize("failure", ["error_mid_stream", "cut_mid_stream", "truncate"])
async def test_a_stream_that_breaks_raises_in_the_sdk(
    simulator: SimulatorProcess, over: OpenAIOver, failure: str
) -> None:
    await simulator.fail(failure)
    async with house(simulator, InMemoryStateStore(), ["a1", "c1"]) as made:
        async with over(made.router) as client:
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError):
                _ = [chunk async for chunk in stream]
        async with anthropic_over(made.router) as other:
            with pytest.raises(anthropic.APIError):
                async with other.messages.stream(model="claude-haiku-5", max_tokens=12, messages=HELLO) as events:
                    await events.get_final_message()
        assert await made.at_rest() >= await made.billed() > 0


async def test_the_clients_own_timeout_ends_the_call_and_the_estimate_is_charged(
    simulator: SimulatorProcess, over: OpenAIOver
) -> None:
    await simulator.fail("stall_before_first_byte")
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made, over(made.router) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, timeout=1.0)
        await simulator.control(clear_failures=True)
        await simulator.fail("stall_mid_stream")
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True, timeout=1.0)
        with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout, httpx2.ReadTimeout)):
            _ = [chunk async for chunk in stream]
        assert await made.at_rest() > 0
        assert [facts.outcome for facts in made.finished] == ["timeout_error", "disconnected"]


async def test_a_stream_may_take_longer_than_the_clients_read_timeout_as_long_as_it_goes_on(
    simulator: SimulatorProcess, over: OpenAIOver
) -> None:
    async with house(simulator, InMemoryStateStore(), ["s1"]) as made, over(made.router) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, stream=True, max_tokens=70, timeout=1.5
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert made.finished[0].total_us > 1_500_000


async def test_a_cancelled_call_and_a_stream_that_is_left_hold_nothing(
    simulator: SimulatorProcess, store: StateStore, over: OpenAIOver
) -> None:
    async with house(simulator, store, ["s1"]) as made, over(made.router) as client:
        create = client.chat.completions.create
        waiting = asyncio.create_task(create(model="gpt-4o-mini", messages=HELLO))
        await until(lambda: made.router.in_flight == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with await create(model="gpt-4o-mini", messages=HELLO, stream=True) as stream:
            async for _ in stream:
                break
        assert await made.at_rest() > 0
        assert [facts.outcome for facts in made.finished] == ["cancelled", "disconnected"]


async def test_team_client_objective_and_provider_apply(simulator: SimulatorProcess, over: OpenAIOver) -> None:
    team = {"name": "eng", "scope": "team", "scope_id": "eng", "limit_usd": 1, "period": "total", "enforcement": "soft"}
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"], budgets=[team]) as made:
        options = {"team": "eng", "client": "batch", "objective": "cost", "provider_id": "other"}
        async with over(made.router, **options) as client:
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
            pinned = {"x-akr-provider": "openai", "x-akr-objective": "latency"}
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, extra_headers=pinned)
            with pytest.raises(openai.PermissionDeniedError, match="another team"):
                await client.chat.completions.create(
                    model="gpt-4o-mini", messages=HELLO, extra_headers={"x-akr-team": "sales"}
                )
            with pytest.raises(openai.BadRequestError, match="x-akr-provider"):
                await client.chat.completions.create(
                    model="gpt-4o-mini", messages=HELLO, extra_headers={"x-akr-provider": "nobody"}
                )
        first, second = made.finished
        assert (first.team, first.client, first.objective, first.provider_id) == ("eng", "batch", "cost", "other")
        assert (second.objective, second.provider_id) == ("latency", "openai")
        await made.router.books.flush(seconds=5)
        (state,) = await made.router.ledger.scopes(["team:eng:eng"])
        assert state.settled > 0


async def test_a_wrong_objective_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequestError):
        Httpx2Transport(ApiKeyRouter(), objective="cheapest")


async def test_another_event_loop_gets_a_clear_error(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:

        async def elsewhere(owner: House) -> None:
            async with _over_httpx2(owner.router) as client:
                await client.models.list()

        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(elsewhere(made)))


def _sync_over_httpx(router: ApiKeyRouter) -> openai.OpenAI:
    legacy: Any = httpx.Client(transport=HttpxBlocking(router))
    return openai.OpenAI(api_key="any", http_client=legacy, max_retries=0)


def _sync_over_httpx2(router: ApiKeyRouter) -> openai.OpenAI:
    http = httpx2.Client(transport=Httpx2Blocking(router))
    return openai.OpenAI(api_key="any", http_client=http, max_retries=0)


@pytest.mark.parametrize("made_with", [_sync_over_httpx, _sync_over_httpx2], ids=["httpx", "httpx2"])
async def test_sdks_that_are_not_async_are_served_in_threads(
    simulator: SimulatorProcess, store: StateStore, made_with: Callable[[ApiKeyRouter], openai.OpenAI]
) -> None:
    async with house(simulator, store, ["a1"]) as made:

        def work() -> None:
            with made_with(made.router) as client:
                answer = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
                assert (answer.choices[0].message.content or "").startswith("You said: hello there")
                stream = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
                assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
                with client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True) as left:
                    next(left)
                with pytest.raises(openai.BadRequestError, match="messages"):
                    client.post("/chat/completions", body={"model": "gpt-4o-mini", "messages": 3}, cast_to=object)

        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(3)))
        assert await made.at_rest() >= await made.billed() > 0
        assert sorted(facts.outcome for facts in made.finished).count("ok") >= 6


async def test_a_program_without_async_keeps_its_sdk(redis_url: str) -> None:
    router = ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})

    def work() -> None:
        with router.sync, _sync_over_httpx2(router) as client:
            assert client.models.list().data == []
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)

    await asyncio.to_thread(work)


async def test_a_client_that_is_not_async_is_refused_on_the_routers_own_loop(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        with _sync_over_httpx2(made.router) as client, pytest.raises(ConfigurationError, match="use await"):
            client.models.list()
