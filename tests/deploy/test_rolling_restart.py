"""Routers replaced one after the other behind a real HAProxy, under load: what ends within the drain ends whole."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.cli.processes import wait_until
from tests.deploy.stack import OPERATOR, TOKEN, Stack, stack_up

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")

BEARER = {"authorization": f"Bearer {TOKEN}"}
BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
SHORT = {**BODY, "stream": True, "max_tokens": 200}
"""A second or two."""
LONG = {**BODY, "stream": True, "max_tokens": 9000}
"""Longer than any drain here."""
DRAIN_SECONDS = 10
LANES = ["g:alpha:*", "g:beta:*", "g:gamma:*", "k:alpha-1", "k:beta-1", "k:gamma-1", "p:openai", "p:anthropic"]
Ask = Callable[[httpx.AsyncClient], Coroutine[Any, Any, str]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two routers of two workers each."""
    told = {
        "ROUTER_CONFIG": "./deploy/simulated.yaml", "ROUTER_WORKERS": "2", "PROXY_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }  # fmt: skip
    with stack_up(tmp_path_factory.mktemp("stack"), told) as up:
        lengths = {"settings": {"output_tokens": 9000}}
        assert httpx.post(f"{up.router_url('simulator')}/_sim/control", json=lengths).status_code == 200
        yield up


async def _stream(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """How a stream ended: whole, cut with an event that says so, refused in a way that asks to be tried again."""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        text = (await answer.aread()).decode()
    if answer.status_code != 200:
        return _refusal(answer, text)
    last = text.rstrip().rpartition("data: ")[2]
    if last == "[DONE]" and '"error"' not in text:
        return "whole"
    told = json.loads(last).get("error", {}) if last.startswith("{") else {}
    return "cut" if told.get("code") == "shutting_down" else f"broken: {text[-300:]}"


async def _whole(http: httpx.AsyncClient) -> str:
    answer = await http.post("/v1/chat/completions", json={**BODY, "max_tokens": 4})
    await asyncio.sleep(0.5)
    return "whole" if answer.status_code == 200 else _refusal(answer, answer.text)


def _refusal(answer: httpx.Response, text: str) -> str:
    tried_again = answer.status_code in (408, 409, 429) or answer.status_code >= 500
    if tried_again and answer.headers.get("x-should-retry") != "false":
        return "refused"
    return f"{answer.status_code} {text[-300:]}"


async def test_a_rolling_restart_under_load_loses_no_stream_and_leaks_no_hold(stack: Stack) -> None:
    over = asyncio.Event()
    ends: dict[str, Counter[str]] = {"short": Counter(), "long": Counter(), "unary": Counter()}

    async def client(kind: str, ask: Ask) -> None:
        async with httpx.AsyncClient(base_url=stack.url, headers=BEARER, timeout=90) as http:
            while not over.is_set():
                try:
                    ends[kind][await ask(http)] += 1
                except httpx.TransportError as exc:
                    ends[kind][repr(exc)] += 1

    clients = [
        *(asyncio.create_task(client("short", lambda http: _stream(http, SHORT))) for _ in range(6)),
        *(asyncio.create_task(client("long", lambda http: _stream(http, LONG))) for _ in range(4)),
        *(asyncio.create_task(client("unary", _whole)) for _ in range(3)),
    ]
    await asyncio.to_thread(wait_until, lambda: _open_reservations(stack) >= 10)
    for name in ("router-1", "router-2"):
        assert await asyncio.to_thread(stack.down, name) == 0
        await asyncio.to_thread(stack.up, name)
        await asyncio.to_thread(wait_until, partial(_is_served_by, stack, name))
    over.set()
    names = ("router-1", "router-2")  # what is long is still under way: both stop for good
    assert await asyncio.gather(*(asyncio.to_thread(stack.down, name) for name in names)) == [0, 0]
    await asyncio.gather(*clients)
    await asyncio.to_thread(stack.up, "router-1")
    await asyncio.to_thread(wait_until, partial(_answers, stack))
    assert set(ends["short"]) - {"refused"} == {"whole"}, ends
    assert set(ends["unary"]) - {"refused"} == {"whole"}, ends
    assert set(ends["long"]) - {"refused"} == {"cut"}, ends
    assert ends["long"]["cut"] >= 4
    assert (ends["short"] + ends["unary"])["refused"] <= 3, ends
    await asyncio.to_thread(wait_until, lambda: _held(stack) == [0.0, 0.0])
    assert _open_reservations(stack) == 0
    assert await _drift(stack) == []


def _answers(stack: Stack) -> bool:
    return httpx.get(stack.operators_url + "/health/ready").status_code == 200


def _state(stack: Stack, path: str) -> Any:
    return httpx.get(stack.operators_url + path, headers={"X-API-Key": OPERATOR}).json()


def _open_reservations(stack: Stack) -> int:
    return len(_state(stack, "/api/v1/reservations")["reservations"])


def _held(stack: Stack) -> list[float]:
    (budget,) = _state(stack, "/api/v1/budgets")["budgets"]
    return [budget["held_usd"], budget["suspense_usd"]]


def _is_served_by(stack: Stack, name: str) -> bool:
    """HAProxy has taken it back: requests come to it."""
    text = httpx.get(f"{stack.router_url(name)}/metrics").text
    return any(line.startswith("apikeyrouter_inflight ") and float(line.split()[1]) > 0 for line in text.splitlines())


async def _drift(stack: Stack) -> list[Any]:
    ledger = ScriptLedger(RedisEngine(f"redis://127.0.0.1:{stack.ports['redis']}/0"))
    await ledger.open()
    try:
        return await ledger.audit(lanes=LANES, scopes=["global:all"])
    finally:
        await ledger.close()
