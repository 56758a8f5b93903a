"""Whatever an upstream sends, its client gets the answer or an error in its dialect, the books close, others go on.

The examples are the same in every run; AKR_LONG=1 tries twenty times as many.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apikeyrouter.simulator import SimulatorProcess
from tests.adapters.raw_upstream import upstream
from tests.servers import Server
from tests.service.hostile import ANSWERS, MODELS, TEXT, Asked, Hostile, hostile, told
from tests.service.running import Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

LONG = bool(os.environ.get("AKR_LONG"))
ASKED = [Asked(dialect=dialect, stream=stream) for dialect in MODELS for stream in (False, True)]
LENIENT = {"failures": 10_000}
SCOPE = "global:all"


@dataclass(slots=True)
class Rig:
    """A service, its one hostile upstream, and how that answers next."""

    service: Running
    client: httpx.AsyncClient
    answer: list[bytes]
    closes: bool = True
    holds: asyncio.Event | None = None

    async def ask(self, asked: Asked, how: Hostile) -> httpx.Response:
        """One client's answer, read to its end."""
        self.answer, self.closes = how.written(asked), how.closes()
        return await self.client.post(asked.path, json=asked.body)

    async def at_rest(self) -> None:
        """Nothing is held, nothing is in flight, every counter equals what is open."""
        router = self.service.runtime.router
        async with asyncio.timeout(20):
            while router.in_flight:
                await asyncio.sleep(0.005)
        assert await router.books.flush(seconds=20)
        lanes = router.catalogue.lane_ids()
        assert [lane.id for lane in await router.ledger.lanes(lanes) if lane.in_flight] == []
        scopes = [scope.id for scope in router.catalogue.budgets()]
        states = await router.ledger.scopes(scopes)
        assert [(state.held, state.suspense) for state in states] == [(0, 0)] * len(states)
        assert await router.ledger.audit(lanes=lanes, scopes=scopes) == []


@asynccontextmanager
async def rigged(server: Server, healthy: str) -> AsyncIterator[Rig]:
    rig: Any = None

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in rig.answer:
            writer.write(piece)
            await asyncio.sleep(0)
        await writer.drain()
        if rig.holds is not None:
            await rig.holds.wait()
        if rig.closes:
            writer.close()

    async with upstream(answer) as (url, _):
        config = {
            "providers": {
                name: {"adapter": name, "base_url": url + ("/v1" if name == "openai" else "")} for name in MODELS
            }
            | {"healthy": {"adapter": "openai", "base_url": healthy}},
            "keys": [
                {"id": name, "provider": name, "key": f"sk-{name}-key", "models": [model]}
                for name, model in MODELS.items()
            ]
            + [{"id": "well", "provider": "healthy", "key": "sk-sim-service-1", "models": ["gpt-4o"]}],
            "limits": [{"key": name, "concurrency": 100, "tpm": 10_000_000} for name in MODELS],
            "budgets": [{"name": "all", "scope": "global", "limit_usd": 1000, "period": "total"}],
            "prices": [{"model": "gpt-4o", "input": 2.5, "output": 10}],
            "routing": {
                "attempts_max": 1,
                "timeouts": {"first_byte_ms": 10_000, "idle_ms": 10_000},
                "breakers": {"key": LENIENT, "provider": dict(LENIENT)},
                "correlated_failures": {"keys": 1000},
            },
        }
        async with running_service(server.url, config) as service, service.http() as client:
            rig = Rig(service, client, [])
            yield rig


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def rig(service_valkey: Server, shared_simulator: SimulatorProcess) -> AsyncIterator[Rig]:
    """One for all examples: what one leaves behind, the next would find."""
    await shared_simulator.reset()
    async with rigged(service_valkey, shared_simulator.openai_url) as made:
        yield made


def checked(asked: Asked, how: Hostile, answer: httpx.Response) -> None:
    """What a client may be told: all of the answer, or an error that its SDK reads as one."""
    if not answer.is_success:
        assert not how.harmless, answer.text
        assert error_of(asked, answer.json()), answer.text
        assert answer.headers["content-type"].startswith("application/json")
        assert "sk-" not in answer.text
    elif asked.stream:
        text, complete, wrong = told(asked, answer.content)
        assert complete or wrong, answer.content[-300:]
        assert not how.harmless or (complete and not wrong)
        if complete and not wrong and not how.alters_text and how.body in ("good", "padded"):
            assert text == TEXT
    elif how.body in ("good", "padded"):
        assert TEXT in answer.text
        assert json.loads(answer.content)["routing_metadata"]["provider_id"] == asked.dialect


def error_of(asked: Asked, body: dict[str, Any]) -> bool:
    """Whether it is an error as the dialect has it (`providers.md` §5.1)."""
    error: dict[str, Any] = body["error"]
    if asked.dialect == "openai":
        return {"message", "type", "param", "code"} <= error.keys()
    if asked.dialect == "anthropic":
        return {"type", "message"} <= error.keys() and bool(body["request_id"]) and bool(body["type"] == "error")
    return {"code", "message", "status"} <= error.keys()


@settings(max_examples=2000 if LONG else 60, derandomize=True, database=None)
@given(asked=st.sampled_from(ASKED), how=hostile())
@example(asked=ASKED[1], how=Hostile(body="padded", pieces=(1,)))
@example(asked=ASKED[0], how=Hostile(header_bytes=1 << 20))
@example(asked=ASKED[3], how=Hostile(coding="gzip", pieces=(1, 2)))
@example(asked=ASKED[5], how=Hostile(prelude=b"HTTP/1.1 100 Continue\r\n\r\n" * 3, framing="chunked", pieces=(3,)))
async def test_a_client_gets_the_answer_or_an_error_and_nothing_is_held(rig: Rig, asked: Asked, how: Hostile) -> None:
    checked(asked, how, await rig.ask(asked, how))
    await rig.at_rest()


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.dialect}-{'stream' if asked.stream else 'whole'}")
async def test_an_answer_cut_at_any_byte_is_whole_or_an_error(rig: Rig, asked: Asked) -> None:
    size = len(b"".join(Hostile(framing="chunked").written(asked)))
    at = range(size) if LONG else sorted({*range(0, size, 23), *range(size - 12, size)})
    for place in at:
        how = Hostile(framing="chunked", cut=(place + 0.5) / size)
        checked(asked, how, await rig.ask(asked, how))
    await rig.at_rest()


async def test_nobody_else_notices(rig: Rig, shared_simulator: SimulatorProcess) -> None:
    good = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}

    async def others() -> list[str]:
        answers = [await rig.client.post("/v1/chat/completions", json=good) for _ in range(15)]
        return [answer.text for answer in answers if not answer.is_success]

    async def rubbish() -> None:
        for body in ("giant line", "page", "rubbish inside", "deep", "empty"):
            for asked in ASKED:
                await rig.ask(asked, Hostile(body=body, pieces=(7, 3), framing="too short"))

    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(others())
        tasks.create_task(rubbish())
    assert served.result() == []
    await rig.at_rest()


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.dialect}-{'stream' if asked.stream else 'whole'}")
async def test_who_falls_silent_is_given_up_when_the_client_says_so_and_nothing_stays_held(
    rig: Rig, asked: Asked
) -> None:
    said = b"".join(Hostile(framing="chunked").written(asked))
    rig.answer, rig.closes, rig.holds = [said[: len(said) * 2 // 3]], True, asyncio.Event()
    try:
        answer = await rig.client.post(asked.path, json=asked.body, headers={"x-akr-timeout-ms": "400"})
    finally:
        rig.holds.set()
        rig.holds = None
    if answer.status_code == 200:
        _, complete, wrong = told(asked, answer.content)
        assert asked.stream
        assert (complete, wrong) == (False, True)
    else:
        assert answer.status_code == 504
        assert error_of(asked, answer.json())
    await rig.at_rest()


async def test_the_good_answers_are_good() -> None:
    for asked in ASKED:
        body = ANSWERS[asked.dialect](asked.stream)
        if asked.stream:
            assert told(asked, body) == (TEXT, True, False)
        else:
            assert TEXT in body.decode()
