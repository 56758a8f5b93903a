"""Nothing secret leaves: keys are registered, everything fails, and every output is searched for them."""

import asyncio
import contextlib
import gc
import io
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import redis
import structlog
from openai import AsyncOpenAI

from apikeyrouter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import ENTITY_TYPES, StateQuery
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, ProviderError, SystemError
from apikeyrouter.domain.models.system_response import StreamChunk
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.integrations.httpx2 import RouterTransport
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, intent
from tests.usage.test_observability import Recorder
from tests.usage.test_opentelemetry import Collector

pytestmark = pytest.mark.asyncio(loop_scope="package")
FRAGMENT = 8
"""Characters of a secret that give it away."""
ORGANISATIONS = {"org-Xw7QpLm2ZtKd": "sk-proj-8hQ2vN5xT1rW9zB4", "org-Ky3RvBn8HsJf": "sk-svcacct-6dJ0mY7cP3gL5kS2"}
OWN_MODELS = ["raises", "error", "chained", "ours", "breaks", "late", "fine"]
QUICK = [model for model in OWN_MODELS if model != "late"]
UNUSUAL = "zebra.crossing/4711-Qw8ZxTv"
TOKEN = "akr-client-W4xEdR9uTqLm"
FAILURES = [
    "rate_limit_requests", "insufficient_quota", "invalid_api_key", "server_error", "context_length_exceeded",
    "model_not_found", "error_mid_stream", "disconnect", "malformed_json", "organization_spend_limit_exceeded",
]  # fmt: skip
SIMULATED: dict[str, Any] = {
    "organisations": [
        {"id": name, "keys": [key], "output_tokens": 8} for name, key in ORGANISATIONS.items()
    ],
}  # fmt: skip
KEYS = [
    {"id": f"k{number}", "provider": "openai", "key": key, "quota_group": f"group-{number}"}
    for number, key in enumerate(ORGANISATIONS.values())
]


class Blabbermouth(ProviderAdapter):
    """An adapter of the application's own that tells its key to everybody."""

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        if intent.model == "raises":
            raise ValueError(f"the key {str.__str__(key)} did not work")
        if intent.model == "error":
            raise PermissionError(f"401 for {str.__str__(key)}")
        if intent.model == "chained":
            try:
                raise ValueError(f"a bad key: {str.__str__(key)}")
            except ValueError as exc:
                raise ProviderError("not served", category=ErrorCategory.ProviderError) from exc
        if intent.model == "ours":
            raise SystemError(f"not with {str.__str__(key)}", category=ErrorCategory.ProviderError)
        if intent.model == "late":
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError(f"cut off with {str.__str__(key)}")
        return f"answered for {intent.model}"

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        yield StreamChunk(text="answered")
        if intent.model == "breaks":
            raise ValueError(f"the stream of {str.__str__(key)} broke")
        try:
            yield StreamChunk(text=" by ")
        except GeneratorExit:
            raise OSError(f"closed with {str.__str__(key)}") from None
        yield StreamChunk(text=await self.execute_request(intent, key), last=True)

    async def check_health(self, key: str) -> bool:
        raise ConnectionError(f"nobody there for {str.__str__(key)}")


@pytest_asyncio.fixture(loop_scope="package")
async def secretive() -> AsyncIterator[SimulatorProcess]:
    """Providers whose organisations and keys are not to be told."""
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@pytest.fixture
def lines() -> io.StringIO:
    """Everything that structlog is given, as it would be written."""
    stream = io.StringIO()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=stream))
    return stream


class Outputs:
    """Whatever was told, by where."""

    def __init__(self) -> None:
        self.told: dict[str, list[str]] = {}

    def add(self, where: str, *found: object) -> None:
        """Keep it as both of its texts."""
        self.told.setdefault(where, []).extend(text for each in found for text in (repr(each), str(each)))

    def raised(self, error: BaseException) -> None:
        """Everything that an exception shows."""
        details = getattr(error, "details", None)
        self.add("exceptions", error, error.args, details, vars(error))
        self.add("tracebacks", "".join(traceback.format_exception(error)))
        whole = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.add("tracebacks with their variables", "".join(whole.format()))

    def leaks(self) -> set[tuple[str, str]]:
        """Where which fragment of a secret stands."""
        fragments = {
            secret[at : at + FRAGMENT]
            for whole in (*ORGANISATIONS, *ORGANISATIONS.values(), UNUSUAL, TOKEN)
            for secret in [whole.removeprefix("sk-proj-").removeprefix("sk-svcacct-").removeprefix("akr-client-")]
            for at in range(len(secret) - FRAGMENT + 1)
        }
        return {
            (where, fragment)
            for where, texts in self.told.items()
            for fragment in fragments
            if any(fragment in text for text in texts)
        }


async def traffic(router: ApiKeyRouter, simulator: SimulatorProcess, outputs: Outputs) -> None:
    """Requests of every kind, most of which fail."""
    for failure in ("", *FAILURES):
        await simulator.control(clear_failures=True)
        if failure:
            await simulator.fail(failure)
        for model in ("gpt-4o-mini", *QUICK):
            pinned = {} if model == "gpt-4o-mini" else {"provider_id": "mine"}
            for way in (router.route, _streamed(router)):
                try:
                    outputs.add("answers", await way(intent(model=model, **pinned)))
                except Exception as exc:
                    outputs.raised(exc)
        await _lease(router, outputs)
        await _sdk(router, outputs)
        await _probe(router, outputs)
        await _given_up(router, outputs)
        for key in await router.key_manager.list_keys():
            if key.state is not KeyState.Available and key.state is not KeyState.Recovering:
                with contextlib.suppress(Exception):
                    await router.key_manager.update_key_state(key.id, KeyState.Available, "again")
    await simulator.control(clear_failures=True)


def _streamed(router: ApiKeyRouter) -> Any:
    async def read(asked: Mapping[str, Any]) -> list[Any]:
        return [chunk async for chunk in router.route_stream(asked)]

    return read


async def _lease(router: ApiKeyRouter, outputs: Outputs) -> None:
    try:
        async with router.lease("gpt-4o-mini", provider_id="openai", estimated_tokens=20) as lease:
            outputs.add("leases", lease, lease.key, vars(lease))
            client = AsyncOpenAI(api_key=lease.key, base_url=lease.base_url, max_retries=0)
            await client.chat.completions.create(model=lease.model, messages=[{"role": "user", "content": "hello"}])
    except Exception:
        return  # the SDK's own exceptions show what the provider said; they are not ours


async def _given_up(router: ApiKeyRouter, outputs: Outputs) -> None:
    """A request that takes too long and a stream that nobody reads to its end, and then nobody has either any more."""
    try:
        await router.route(intent(model="late", provider_id="mine"), timeout=0.06)
    except Exception as exc:
        outputs.raised(exc)
    stream = router.route_stream(intent(model="fine", provider_id="mine"))
    async for _ in stream:
        break
    assert isinstance(stream, AsyncGenerator)
    await stream.aclose()
    gc.collect()


async def _probe(router: ApiKeyRouter, outputs: Outputs) -> None:
    for key in await router.key_manager.list_keys():
        try:
            outputs.add("probes", await router.key_manager.probe_key(key.id))
        except Exception as exc:
            outputs.raised(exc)


async def _sdk(router: ApiKeyRouter, outputs: Outputs) -> None:
    async with httpx2.AsyncClient(transport=RouterTransport(router, team="eng")) as http:
        client = AsyncOpenAI(api_key=TOKEN, http_client=http, max_retries=0)
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}]
            )
            outputs.add("answers to SDKs", raw.text, dict(raw.headers))
        except Exception as exc:
            response = getattr(exc, "response", None)
            outputs.add("errors to SDKs", exc, None if response is None else (response.text, dict(response.headers)))
            outputs.add("tracebacks of SDKs", "".join(traceback.format_exception(exc)))


async def looked_into(router: ApiKeyRouter, outputs: Outputs) -> None:
    """Every way to ask a router about itself."""
    for facts in router.decisions:
        outputs.add("facts", facts)
        outputs.add("traces", await router.get_trace(facts.request_id))
        with contextlib.suppress(Exception):
            outputs.add("explanations", await router.explain(facts.request_id))
    await router.state_store.flush()
    for kind in ENTITY_TYPES:
        found = await router.state_store.query_state(StateQuery(kind))
        outputs.add(kind, found, [each.model_dump(exclude={"encrypted_material"}) for each in found])
    outputs.add("state", await router.get_state_summary(), await router.key_manager.list_keys())
    parts = (router, vars(router), router.catalogue.keys, router.catalogue.providers, router.settings, router.ledger)
    outputs.add("objects", *parts, router.books.open, router.books, router.sync)


async def test_no_output_shows_a_fragment_of_a_secret(
    secretive: SimulatorProcess, redis_url: str, lines: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs, recorder, collector = Outputs(), Recorder(), Collector()
    settings = {"encryption_key": MASTER_KEY, "log_level": "DEBUG"}
    router = ApiKeyRouter(RedisStateStore(redis_url), recorder, settings)
    collector.listen_to(router)
    router.subscribe_to_events("*", lambda event: outputs.add("events", dict(event)))
    async with router:
        await router.apply(
            compile_config(
                read_config(
                    {"providers": {"openai": {"adapter": "openai", "base_url": secretive.openai_url}}, "keys": KEYS}
                ),
                environ={},
            )
        )
        await router.register_provider("mine", Blabbermouth())
        await router.register_key(UNUSUAL, "mine", {"models": OWN_MODELS})
        await traffic(router, secretive, outputs)
        with pytest.raises(Exception, match="provider") as refused:
            await router.register_key(UNUSUAL, "nobody")
        outputs.add("exceptions", refused.value, vars(refused.value))
        await asyncio.sleep(0.3)
        await looked_into(router, outputs)
        assert await router.observability.flush(5)
    outputs.add("manager", recorder.requests, recorder.decisions, recorder.transitions, recorder.metrics)
    outputs.add("spans and metrics", collector.text())
    outputs.add("lines", lines.getvalue())
    outputs.add("standard output", *capfd.readouterr())
    with redis.Redis.from_url(redis_url) as client:
        outputs.add("redis", {key: client.dump(key) for key in client.scan_iter("*", count=1000)})
    assert {"events", "exceptions", "traces", "leases", "errors to SDKs", "RoutingDecision"} <= set(outputs.told)
    assert len(outputs.told["events"]) > 100
    assert outputs.leaks() == set()


async def test_the_search_would_find_a_secret() -> None:
    outputs = Outputs()
    outputs.add("somewhere", {"message": f"the key ends in {UNUSUAL[-8:]}"})
    assert outputs.leaks() == {("somewhere", UNUSUAL[-8:])}
    assert str(OpenAIAdapter("http://127.0.0.1:1/v1"))
