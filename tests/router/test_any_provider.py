"""One intent, in OpenAI's words, served by each family of providers: what the caller got, what was booked, what was
billed."""

import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import SOFT_BUDGET, House, house

pytestmark = pytest.mark.asyncio(loop_scope="package")

BYTES = (bytes, bytearray, memoryview)
SHARED = "shared-model"
EMBEDDING = "text-embedding-3-small"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "forecast", "description": "The weather.", "parameters": SCHEMA}}


class Family(NamedTuple):
    """A provider: `embeds` if it has embeddings."""

    name: str
    embeds: bool

    @property
    def key(self) -> str:
        """Its key's material."""
        return f"sk-any-{self.name}-0123456789"


FAMILIES = [
    Family("openai", True), Family("anthropic", False), Family("gemini", True), Family("azure", True),
    Family("groq", False), Family("mistral", True), Family("deepseek", False), Family("openrouter", False),
]  # fmt: skip
PRICE = {"input": "1", "output": "5"}
SIMULATED = {
    "organisations": [
        {"id": family.name, "dialect": family.name, "keys": [family.key], "output_tokens": 20,
         "prices": {SHARED: PRICE, EMBEDDING: PRICE}}
        for family in FAMILIES
    ]
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def shared_providers() -> AsyncIterator[SimulatorProcess]:
    """One child with every dialect."""
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package")
async def providers(shared_providers: SimulatorProcess) -> SimulatorProcess:
    """The same, untouched."""
    await shared_providers.control(clear_failures=True)
    await shared_providers.reset()
    return shared_providers


@asynccontextmanager
async def serving(
    simulator: SimulatorProcess, *families: Family, store: StateStore | None = None, **parts: Any
) -> AsyncIterator[House]:
    """A house with one key at each of these."""
    models = [SHARED, EMBEDDING]
    config = {
        "providers": {
            family.name: {"adapter": family.name, "base_url": simulator.base_url(family.name)} for family in families
        },
        "prices": [{"model": model, "input": 1, "output": 5} for model in models],
        "keys": [
            {"id": family.name, "provider": family.name, "key": family.key, "models": models} for family in families
        ],
        "budgets": [SOFT_BUDGET],
        **parts,
    }
    async with house(simulator, store or InMemoryStateStore(), []) as made:
        await made.router.apply(compile_config(read_config(config), environ={}))
        yield made


async def same_books(made: House) -> int:
    """Nothing is held any more, and what was booked is what was billed; that sum."""
    booked, billed = await made.at_rest(), await made.billed()
    assert booked == billed
    assert booked > 0
    return booked


@every_family
async def test_a_chat_is_answered_counted_and_paid_by_every_family(providers: SimulatorProcess, family: Family) -> None:
    async with serving(providers, family) as made:
        answer = await made.route("what is up?", model=SHARED, parameters={"max_tokens": 50, "temperature": 0.5})
        assert answer.content
        assert answer.metadata.finish_reason == "stop"
        assert answer.metadata.tokens_used.output_tokens == 20
        assert answer.cost is not None
        booked = await same_books(made)
        assert int(answer.cost.amount * 10**9) == booked
        assert (await made.seen(family.name))["keys"][f"{family.name}/1"]["arrived"] == 1


@every_family
@pytest.mark.parametrize("quality", [False, True], ids=["", "with-its-quality-judged"])
async def test_an_answer_is_decoded_once_whoever_looks_at_it(
    providers: SimulatorProcess, family: Family, quality: bool
) -> None:
    async with serving(providers, family) as made:
        intent = {"model": SHARED, "messages": [{"role": "user", "content": "once"}]}
        objective = "quality" if quality else None
        await made.router.route(intent, objective)
        decoded: list[bytes] = []

        def called(frame: FrameType, event: str, what: Any) -> None:
            if event == "c_call" and what.__name__ in ("decode", "json_decode", "loads"):
                decoded.extend(bytes(value) for value in frame.f_locals.values() if isinstance(value, BYTES))

        sys.setprofile(called)
        try:
            answer = await made.router.route(intent, objective)
        finally:
            sys.setprofile(None)
        assert answer.content
        assert answer.metadata.tokens_used.output_tokens == 20
        assert [json.loads(body) for body in decoded if body.lstrip()[:1] == b"{"].count(answer.raw) == 1


@every_family
async def test_a_cap_reaches_every_family_and_its_stop_is_length(providers: SimulatorProcess, family: Family) -> None:
    async with serving(providers, family) as made:
        answer = await made.route("go on", model=SHARED, parameters={"max_tokens": 5})
        assert answer.metadata.finish_reason == "length"
        assert answer.metadata.tokens_used.output_tokens == 5
        await same_books(made)


@every_family
async def test_a_stream_of_every_family_is_one_text_with_its_usage(providers: SimulatorProcess, family: Family) -> None:
    async with serving(providers, family) as made:
        whole = await made.route("the same", model=SHARED)
        chunks = await made.stream("the same", model=SHARED)
        assert len(chunks) > 2
        assert len("".join(str(chunk) for chunk in chunks)) == len(whole.content)
        last = chunks[-1]
        assert (last.last, last.finish_reason, last.key_used) == (True, "stop", family.name)
        assert last.usage is not None
        assert last.usage.output_tokens == 20
        await same_books(made)


@every_family
async def test_a_stream_that_nobody_reads_to_its_end_is_booked_as_billed(
    providers: SimulatorProcess, family: Family
) -> None:
    async with serving(providers, family) as made:
        stream = made.router.route_stream(
            {"model": SHARED, "messages": [{"role": "user", "content": "and on"}], "parameters": {"max_tokens": 30}}
        )
        assert isinstance(stream, AsyncGenerator)
        async for chunk in stream:
            if str(chunk):
                break
        await stream.aclose()
        booked, billed = await made.at_rest(), await made.billed()
        assert booked >= billed > 0


@every_family
async def test_a_forced_tool_is_called_by_every_family_whole_and_streamed(
    providers: SimulatorProcess, family: Family
) -> None:
    tools = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "forecast"}}, "max_tokens": 99}
    async with serving(providers, family) as made:
        answer = await made.route("rain?", model=SHARED, parameters=tools)
        assert answer.tool_calls is not None
        (call,) = answer.tool_calls
        assert (call["type"], call["function"]["name"]) == ("function", "forecast")
        assert json.loads(call["function"]["arguments"]) == {"city": "sample", "days": 1}
        assert answer.metadata.finish_reason == "tool_calls"
        chunks = await made.stream("rain?", model=SHARED, parameters=tools)
        pieces = [piece["function"] for chunk in chunks for piece in chunk.tool_calls or ()]
        assert [piece["name"] for piece in pieces if piece.get("name")] == ["forecast"]
        arguments = "".join(piece.get("arguments") or "" for piece in pieces)
        assert json.loads(arguments) == {"city": "sample", "days": 1}
        assert chunks[-1].finish_reason == "tool_calls"
        await same_books(made)


@every_family
async def test_a_conversation_with_results_and_a_picture_goes_to_every_family(
    providers: SimulatorProcess, family: Family
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "forecast", "arguments": '{"city":"Rome"}'}}
    picture = {"type": "image_url", "image_url": {"url": PIXEL}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ]
    async with serving(providers, family) as made:
        answer = await made.router.route({"model": SHARED, "messages": messages, "parameters": {"tools": [TOOL]}})
        assert answer.content
        await same_books(made)


@every_family
async def test_a_schema_for_the_answer_is_taken_by_every_family(providers: SimulatorProcess, family: Family) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA, "strict": True}}
    async with serving(providers, family) as made:
        answer = await made.route("rain?", model=SHARED, parameters={"response_format": wanted})
        assert answer.metadata.finish_reason == "stop"
        await same_books(made)


@pytest.mark.parametrize("family", FAMILIES[:-1], ids=lambda family: family.name)  # not simulated at OpenRouter
async def test_embeddings_come_from_families_that_have_them_and_others_refuse(
    providers: SimulatorProcess, family: Family
) -> None:
    wanted = {"model": EMBEDDING, "operation": "embedding", "payload": {"input": ["one", "two"]}}
    async with serving(providers, family) as made:
        if not family.embeds:
            with pytest.raises(InvalidRequestError, match="operation"):
                await made.router.route(wanted)
            assert (await made.at_rest(), await made.billed()) == (0, 0)
            return
        answer = await made.router.route(wanted)
        assert answer.embeddings is not None
        assert [len(vector) > 0 for vector in answer.embeddings] == [True, True]
        booked, billed = await made.at_rest(), await made.billed()
        assert booked == billed


async def test_a_request_moves_from_family_to_family_until_one_serves_it(
    providers: SimulatorProcess, store: StateStore
) -> None:
    async with serving(providers, *FAMILIES, store=store, routing={"attempts_max": len(FAMILIES)}) as made:
        failing: set[str] = set()
        while len(failing) < len(FAMILIES):
            answer = await made.route("who is there?", model=SHARED)
            assert answer.content
            assert answer.key_used not in failing
            failing.add(answer.key_used)
            await providers.fail("invalid_api_key" if answer.key_used != "gemini" else "api_key_invalid",
                                 organisation=answer.key_used)  # fmt: skip
        with pytest.raises(ProviderError):
            await made.route("nobody", model=SHARED)
        await same_books(made)
