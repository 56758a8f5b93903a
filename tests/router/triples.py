"""Books of broken streams: a simulated provider a lane, what it billed, what the ledger booked, what an SDK raised."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anthropic
import httpx2
import openai
from anthropic import AsyncAnthropic
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from openai import AsyncOpenAI

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.models.accounting import Result, Settlement, Transition
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.integrations.httpx2 import RouterTransport
from tests.router.gemini_door import GeminiDoor
from tests.router.house import MASTER_KEY, SCOPE, SOFT_BUDGET, until
from tests.router.in_process import LocalSimulator, local_simulator

INPUT_NANOUSD, OUTPUT_NANOUSD = 1_000, 4_000  # a token: $1 and $4 a million
OUTPUT_TOKENS = 3
LANES = 16
"""Organisations, each with one key, that take turns: what one of them billed is told by order."""


class Dialect(NamedTuple):
    """One way to ask for a stream. `wire`: the simulated provider's dialect."""

    wire: str
    model: str
    operation: str = "chat"


DIALECTS = {
    "chat": Dialect("openai", "gpt-4o-mini"),
    "responses": Dialect("openai", "gpt-4o-mini", "responses"),
    "messages": Dialect("anthropic", "claude-haiku-4-5"),
    "gemini": Dialect("gemini", "gemini-2.5-flash"),
}


@dataclass(slots=True)
class Books:
    """One router over one dialect's simulated provider, and what each request did to the books."""

    router: ApiKeyRouter
    simulator: LocalSimulator
    dialect: Dialect
    booked: dict[bytes, int] = field(default_factory=dict)
    finished: dict[str, list[Facts]] = field(default_factory=dict)

    def note(self, facts: Facts) -> None:
        self.finished.setdefault(facts.provider_id, []).append(facts)

    async def at_rest(self) -> None:
        """Everything has ended, nothing is held, and the ledger's sum is that of its settlements."""
        await until(lambda: self.router.in_flight == 0)
        assert await self.router.books.flush(seconds=20)
        (state,) = await self.router.ledger.scopes([SCOPE])
        assert (state.held, state.suspense, state.settled) == (0, 0, sum(self.booked.values()))
        lanes = self.router.catalogue.lane_ids()
        assert [lane.id for lane in await self.router.ledger.lanes(lanes) if lane.in_flight] == []
        assert await self.router.ledger.audit(lanes=lanes, scopes=[SCOPE]) == []

    def pairs(self, lane: int) -> list[tuple[int, int]]:
        """(booked, billed) of each request of a lane, in order."""
        booked = [self.booked[attempt.rid] for facts in self.finished[f"p{lane}"] for attempt in facts.attempts]
        return list(zip(booked, self.simulator.billed(f"org-{lane}"), strict=True))


@asynccontextmanager
async def books(name: str) -> AsyncIterator[Books]:
    """Books of one dialect: as many providers as lanes, none of which has a breaker."""
    async with simulated(name) as (simulator, config):
        router = ApiKeyRouter(config={"encryption_key": MASTER_KEY, "log_level": "ERROR"})
        async with router:
            await router.apply(compile_config(read_config(config), environ={}))
            yield opened(router, simulator, name)


@asynccontextmanager
async def simulated(name: str) -> AsyncIterator[tuple[LocalSimulator, dict[str, Any]]]:
    """Providers of a dialect, as many as lanes, and a configuration file for them without breakers to speak of."""
    dialect = DIALECTS[name]
    keys = [f"sk-sim-triple-{lane:04d}-0123456789" for lane in range(LANES)]
    price = {"input": "1", "output": "4"}
    organisations = [
        {"id": f"org-{lane}", "dialect": dialect.wire, "keys": [key], "output_tokens": OUTPUT_TOKENS,
         "prices": {dialect.model: price}}
        for lane, key in enumerate(keys)
    ]  # fmt: skip
    patient = {"failures": 10_000}
    async with local_simulator({"organisations": organisations, "journal_length": 100_000}) as simulator:
        url = simulator.base_url(dialect.wire)
        yield (
            simulator,
            {
                "providers": {f"p{lane}": {"adapter": dialect.wire, "base_url": url} for lane in range(LANES)},
                "prices": [{"model": dialect.model, "input": 1, "output": 4}],
                "keys": [{"id": f"k{lane}", "provider": f"p{lane}", "key": key} for lane, key in enumerate(keys)],
                "budgets": [SOFT_BUDGET],
                "routing": {"breakers": {"key": {**patient}, "provider": patient}},
            },
        )


def opened(router: ApiKeyRouter, simulator: LocalSimulator, name: str) -> Books:
    """The books of a router that is under way."""
    made = Books(router, simulator, DIALECTS[name])
    router.on_finished.append(made.note)
    _listen(made)
    return made


def _listen(made: Books) -> None:
    """Note what each settlement books, as the ledger takes it."""
    settle_many = made.router.ledger.settle_many

    async def noting(settlements: Any) -> list[Transition]:
        answers = await settle_many(settlements)
        for settlement, answer in zip(settlements, answers, strict=True):
            assert isinstance(settlement, Settlement)
            assert answer.result in (Result.OK, Result.REPLAYED), answer
            made.booked[settlement.rid] = settlement.cost_nanousd
        return answers

    made.router.ledger.settle_many = noting  # type: ignore[method-assign]


# --- how each SDK reads a stream: the text it gave, and the error it raised ---


class ErrorEvent(Exception):
    """The SDK does not raise for an error in a stream of responses: it gives it as an event."""


Read = Callable[[str], Awaitable[tuple[str, BaseException | None]]]


async def _read(stream: Callable[[], AsyncIterator[str]]) -> tuple[str, BaseException | None]:
    text = ""
    try:
        async for piece in stream():
            text += piece
    except Exception as exc:
        return text, exc
    return text, None


@asynccontextmanager
async def sdk(made: Books, name: str, lane: int = 0) -> AsyncIterator[Read]:
    """The official SDK of a dialect, without retries, over one lane of the router."""
    door = GeminiDoor if name == "gemini" else RouterTransport
    transport = door(made.router, provider_id=f"p{lane}")
    async with httpx2.AsyncClient(transport=transport) as http:
        yield reading(made.dialect.model, name, http, "http://door")


def reading(model: str, name: str, http: httpx2.AsyncClient, url: str, headers: dict[str, str] | None = None) -> Read:
    """The official SDK of a dialect, without retries, over a client of HTTP."""
    chat = AsyncOpenAI(api_key="any", http_client=http, max_retries=0, base_url=f"{url}/v1", default_headers=headers)
    claude = AsyncAnthropic(api_key="any", http_client=http, max_retries=0, base_url=url, default_headers=headers)
    options = types.HttpOptions(base_url=url, httpx_async_client=http, headers=headers)
    google = genai.Client(api_key="any", http_options=options).aio

    async def chats(prompt: str) -> AsyncIterator[str]:
        messages: Any = [{"role": "user", "content": prompt}]
        async for chunk in await chat.chat.completions.create(model=model, messages=messages, stream=True):
            yield chunk.choices[0].delta.content or ""

    async def responds(prompt: str) -> AsyncIterator[str]:
        async for event in await chat.responses.create(model=model, input=prompt, stream=True):
            if event.type == "error":
                raise ErrorEvent(event.message)
            yield event.delta if event.type == "response.output_text.delta" else ""

    async def messages(prompt: str) -> AsyncIterator[str]:
        said: Any = [{"role": "user", "content": prompt}]
        async for event in await claude.messages.create(model=model, max_tokens=50, messages=said, stream=True):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text

    async def generates(prompt: str) -> AsyncIterator[str]:
        async for chunk in await google.models.generate_content_stream(model=model, contents=prompt):
            yield chunk.text or ""

    reads = {"chat": chats, "responses": responds, "messages": messages, "gemini": generates}
    return lambda prompt: _read(lambda: reads[name](prompt))


def routed(made: Books, lane: int) -> Read:
    """The library itself."""

    async def chunks(prompt: str) -> AsyncIterator[str]:
        intent: dict[str, Any] = {"model": made.dialect.model, "provider_id": f"p{lane}"}
        if made.dialect.operation == "responses":
            intent |= {"operation": "responses", "payload": {"input": prompt}}
        else:
            intent |= {"messages": [{"role": "user", "content": prompt}]}
        async for chunk in made.router.route_stream(intent):
            yield str(chunk)

    return lambda prompt: _read(lambda: chunks(prompt))


# --- the rows of §3.2 ---

FINE = None
BROKEN = {
    "chat": openai.APIError,
    "responses": ErrorEvent,
    "messages": anthropic.APIStatusError,
    "gemini": genai_errors.ServerError,
}
REFUSED = {
    "chat": openai.InternalServerError,
    "responses": openai.InternalServerError,
    "messages": anthropic.APIStatusError,
    "gemini": genai_errors.ServerError,
}
ROWS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "comments": (FINE, "equal"),
    "unnamed": (FINE, "equal"),
    "crlf": (FINE, "equal"),
    "split_utf8": (FINE, "equal"),
    "truncate_terminator": (FINE, "equal"),
    "truncate": (BROKEN, "equal"),
    "cut_mid_stream": (BROKEN, "equal"),
    "malformed_json": (BROKEN, "equal"),
    "error_mid_stream": (BROKEN, "equal"),
    "error_first_event": (REFUSED, "more"),
    "disconnect": (REFUSED, "more"),
    "empty_body": (REFUSED, "more"),
}
"""Failure → what the SDK raises, and how what was booked compares with what was billed."""
LAST_EVENT_MATTERS = {"responses", "gemini"}
"""Dialects whose last event has the usage and the end in it: without it the answer is not complete."""


# --- every byte ---

SLACK = {"chat": 2, "responses": 2, "messages": 6, "gemini": 4}
"""Bytes at the end of an event that its meaning does not need: line ends, and the padding of Messages."""


def prompt_of(failure: str, at: int) -> str:
    return f"hi [[fail:{failure}::{at:05d}]]"


async def stream_of(made: Books, name: str) -> bytes:
    """The bytes of one whole stream, as the simulated provider sends it to the router."""
    seen = bytearray()
    for provider in made.router.catalogue.providers.values():
        wire = provider.wire
        plain = wire.stream

        def noting(*, hide_usage: bool, operation: str, plain: Any = plain) -> Any:
            reader = plain(hide_usage=hide_usage, operation=operation)
            feed = reader.feed

            class Noting:
                usage = property(lambda _: reader.usage)
                finish_reason = property(lambda _: reader.finish_reason)
                output_bytes = property(lambda _: reader.output_bytes)
                end = staticmethod(reader.end)

                @staticmethod
                def feed(chunk: bytes) -> Any:
                    seen.extend(chunk)
                    return feed(chunk)

            return Noting()

        wire.stream = noting
    text, error = await routed(made, 0)(prompt_of("retry_after_on_200", 0))
    assert (error, bool(text)) == (None, True)
    for provider in made.router.catalogue.providers.values():
        del provider.wire.stream
    return bytes(seen)


def landmarks(name: str, stream: bytes) -> tuple[int, int]:
    """(where the first event with something of the answer ends, where the one that completes it begins)."""
    separator = b"\r\n\r\n" if name == "gemini" else b"\n\n"
    events = [event + separator for event in stream.split(separator) if event]
    first = {"chat": b'"content":"You', "responses": b"response.output_item.added",
             "messages": b"content_block_start", "gemini": b'"text":"You'}[name]  # fmt: skip
    last = {"chat": b'"finish_reason":"stop"', "responses": b"response.completed", "messages": b'"end_turn"',
            "gemini": b'"finishReason"'}[name]  # fmt: skip
    begun = complete = place = 0
    for event in events:
        if not begun and first in event:
            begun = place + len(event)
        if last in event:
            complete = place + len(event)
        place += len(event)
    assert 0 < begun < complete <= len(stream)
    return begun, complete


def check(made: Books, name: str, lane: int, cuts: list[int], told: list[tuple[str, BaseException | None]],
          begun: int, complete: int, broken: type[BaseException], refused: type[BaseException]) -> None:  # fmt: skip
    """The triple of each cut of a lane."""
    outcomes = [facts.outcome for facts in made.finished[f"p{lane}"]]
    slack = SLACK[name]
    for cut, (text, error), (booked, billed), outcome in zip(cuts, told, made.pairs(lane), outcomes, strict=True):
        where = (name, cut, outcome, booked, billed, error)
        if cut < begun - slack:
            assert isinstance(error, refused), where
            assert (text, booked >= billed) == ("", True), where
        elif cut < complete - slack:
            # An event without its blank line is read where the stream ends, and lost where the socket breaks.
            assert isinstance(error, (broken, refused) if cut < begun else broken), where
            # What was on its way when the stream broke is one token here; the provider has counted it.
            assert 0 <= billed - booked <= OUTPUT_NANOUSD or booked >= billed, where
        elif cut < complete and error is not None:
            assert isinstance(error, broken), where
        else:
            assert (error, outcome) == (None, "ok"), where
            assert abs(booked - billed) <= OUTPUT_NANOUSD, where


Door = Callable[[int], AbstractAsyncContextManager[Read]]
"""From a lane to the SDK that reads streams over it."""
STEP = 1 if os.environ.get("AKR_LONG") == "1" else 7
"""Every how manieth byte is tried, and those around the landmarks; with AKR_LONG=1 every single one."""


async def situation(made: Books, name: str, failure: str, read: Read) -> None:
    """The triple of a row of §3.2."""
    raised, relation = ROWS[failure]
    if failure == "truncate_terminator" and name in LAST_EVENT_MATTERS:
        raised = BROKEN
    text, error = await read(f"hello [[fail:{failure}]]")
    await made.at_rest()
    lane = next(int(provider[1:]) for provider in made.finished)
    ((booked, billed),) = made.pairs(lane)
    if raised is None:
        assert error is None
        assert text.removeprefix("naïve café 世界 😀 ") != ""
        assert (made.finished[f"p{lane}"][0].outcome, booked) == ("ok", billed)
    else:
        assert isinstance(error, raised[name]), error
        assert (text != "") is (raised is BROKEN)
        assert booked == billed if relation == "equal" else booked >= billed
    assert booked > 0


async def at_bytes(
    made: Books, name: str, how: str, door: Door, *, broken: type[BaseException], refused: type[BaseException],
    step: int = STEP,
) -> int:  # fmt: skip
    """The triples of a stream that is ended (`end_at_byte`) or cut (`cut_at_byte`); how many bytes were tried."""
    stream = await stream_of(made, name)
    begun, complete = landmarks(name, stream)
    made.finished.clear()
    made.simulator.providers.journal = type(made.simulator.providers.journal)(100_000)
    last = len(stream) + (how == "end_at_byte")
    near = {mark + by for mark in (begun, complete, len(stream)) for by in range(-SLACK[name] - 1, 2)}
    cuts = sorted({*range(0, last, step), *(cut for cut in near if 0 <= cut < last)})

    async def lane_of(lane: int) -> tuple[list[int], list[tuple[str, BaseException | None]]]:
        mine = cuts[lane::LANES]
        async with door(lane) as read:
            return mine, [await read(prompt_of(how, cut)) for cut in mine]

    lanes = await asyncio.gather(*(lane_of(lane) for lane in range(LANES)))
    await made.at_rest()
    for lane, (mine, told) in enumerate(lanes):
        if mine:
            check(made, name, lane, mine, told, begun, complete, broken, refused)
    return len(cuts)
