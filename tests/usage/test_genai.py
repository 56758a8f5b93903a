"""google-genai, unmodified, in this process: over httpx and httpx2, async and not, as Google would serve it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import pytest
import pytest_asyncio
from google import genai
from google.genai import errors, types

from apikeyrouter.infrastructure.adapters.gemini_adapter import GeminiAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.integrations.httpx import BlockingRouterTransport as HttpxBlocking
from apikeyrouter.integrations.httpx import RouterTransport as HttpxTransport
from apikeyrouter.integrations.httpx2 import BlockingRouterTransport as Httpx2Blocking
from apikeyrouter.integrations.httpx2 import RouterTransport as Httpx2Transport
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
MODEL = "gemini-2.5-flash"
SIMULATED = {"organisations": [{"id": "proj-g", "dialect": "gemini", "keys": ["AIza-sim-in-process"],
                                "output_tokens": 12}]}  # fmt: skip
Over = Callable[[ApiKeyRouter], genai.Client]


@pytest_asyncio.fixture(loop_scope="package")
async def google() -> AsyncIterator[SimulatorProcess]:
    """Gemini alone."""
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@contextlib.asynccontextmanager
async def routing(google: SimulatorProcess, **limits: Any) -> AsyncIterator[ApiKeyRouter]:
    """A router with one key at Google's."""
    async with ApiKeyRouter(InMemoryStateStore(), config={"encryption_key": MASTER_KEY}) as router:
        await router.register_provider("google", GeminiAdapter(google.base_url("gemini")))
        await router.register_key("AIza-sim-in-process", "google", {"limits": limits} if limits else {})
        yield router


def _over_httpx(router: ApiKeyRouter) -> genai.Client:
    both: Any = {"httpx_async_client": httpx.AsyncClient(transport=HttpxTransport(router)),
            "httpx_client": httpx.Client(transport=HttpxBlocking(router))}  # fmt: skip
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url="http://router", **both))


def _over_httpx2(router: ApiKeyRouter) -> genai.Client:
    both: Any = {"httpx_async_client": httpx2.AsyncClient(transport=Httpx2Transport(router)),
                 "httpx_client": httpx2.Client(transport=Httpx2Blocking(router))}  # fmt: skip
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url="http://router", **both))


@pytest.fixture(params=[_over_httpx, _over_httpx2], ids=["httpx", "httpx2"])
def over(request: pytest.FixtureRequest) -> Over:
    """The SDK over either package."""
    made: Over = request.param
    return made


async def booked(router: ApiKeyRouter, google: SimulatorProcess) -> None:
    """Wait until the books equal the bill, and nothing is held."""
    await router.drain(10)

    async def equal() -> bool:
        billed = int((await google.report())["total"]["cost_nanousd"])
        spent = (await router.get_state_summary()).costs.total_spent
        return 0 < billed == int(spent * 10**9)

    await until(equal)
    assert router.books.open == {}


async def test_it_generates_streams_counts_and_embeds(google: SimulatorProcess, over: Over) -> None:
    async with routing(google) as router:
        models = over(router).aio.models
        answer = await models.generate_content(model=MODEL, contents="hello there")
        stream = await models.generate_content_stream(model=MODEL, contents="hello there")
        text = "".join([chunk.text or "" async for chunk in stream])
        counted = await models.count_tokens(model=MODEL, contents="hello there")
        embedded = await models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
        assert answer.text == text
        assert text.startswith("You said: hello there")
        assert answer.usage_metadata is not None
        assert (answer.usage_metadata.prompt_token_count or 0) > 0
        assert (counted.total_tokens, len(embedded.embeddings or [])) == (10, 2)
        await booked(router, google)


async def test_threads_use_it_without_a_loop_of_their_own(google: SimulatorProcess, over: Over) -> None:
    async with routing(google) as router:
        models = over(router).models

        def ask() -> tuple[str | None, str]:
            answer = models.generate_content(model=MODEL, contents="hello there")
            pieces = models.generate_content_stream(model=MODEL, contents="hello there")
            return answer.text, "".join(piece.text or "" for piece in pieces)

        for whole, streamed in await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4))):
            assert whole == streamed
        await booked(router, google)


async def test_its_own_exceptions_are_raised(google: SimulatorProcess, over: Over) -> None:
    async with routing(google, rpd=1, kind="fixed", headroom=0) as router:
        models = over(router).aio.models
        with pytest.raises(errors.ClientError) as missing:
            await models.generate_content(model="no-such-model", contents="hi")
        with pytest.raises(errors.ClientError) as wrong:
            await models.generate_content(model=MODEL, contents="hi", config={"max_output_tokens": -1})
        assert (await models.generate_content(model=MODEL, contents="hi")).text
        with pytest.raises(errors.ClientError) as limited:
            await models.generate_content(model=MODEL, contents="hi")
    found = [(each.value.code, each.value.status) for each in (missing, wrong, limited)]
    assert found == [(404, "NOT_FOUND"), (400, "INVALID_ARGUMENT"), (429, "RESOURCE_EXHAUSTED")]


async def test_a_stream_that_breaks_raises_and_is_charged_for_what_came(google: SimulatorProcess, over: Over) -> None:
    async with routing(google) as router:
        await google.fail("cut_mid_stream")
        received = ""
        with pytest.raises(errors.APIError):
            async for chunk in await over(router).aio.models.generate_content_stream(model=MODEL, contents="hello"):
                received += chunk.text or ""
        assert received
        await router.drain(10)
        assert (await router.get_state_summary()).costs.total_spent > 0
        assert router.books.open == {}


async def test_nobody_serves_without_a_key(google: SimulatorProcess, over: Over) -> None:
    async with routing(google) as router:
        await google.fail("api_key_invalid")
        for code, status in ((503, "UNAVAILABLE"), (429, "RESOURCE_EXHAUSTED")):  # refused; then there is no other
            with pytest.raises(errors.APIError) as refused:
                await over(router).aio.models.generate_content(model=MODEL, contents="hello")
            assert (refused.value.code, refused.value.status) == (code, status)
            assert "AIza" not in str(refused.value)
