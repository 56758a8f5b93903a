"""Routers replaced one after the other behind a real HAProxy and a real nginx, under load: what ends within the drain
ends whole."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.cli.processes import wait_until
from tests.deploy.stack import OPERATOR, TOKEN, Stack, nginx_up, stack_up

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None or shutil.which("nginx") is None, reason="haproxy or nginx is not installed"
)

BEARER = {"authorization": f"Bearer {TOKEN}"}
WAYS: dict[str, dict[str, Any]] = {
    "chat": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]},
    "completion": {"model": "gpt-4o-mini", "prompt": "hello"},
}
"""What clients ask, by the name that metrics have for it: through HAProxy the first, through nginx the second."""
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
SHORT = {"stream": True, "max_tokens": 200}
"""A second or two."""
LONG = {"stream": True, "max_tokens": 9000}
"""Longer than any drain here."""
DRAIN_SECONDS = 10
LANES = ["g:alpha:*", "g:beta:*", "g:gamma:*", "k:alpha-1", "k:beta-1", "k:gamma-1", "p:openai", "p:anthropic"]
Ask = Callable[[httpx.AsyncClient, str], Coroutine[Any, Any, str]]


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


@pytest.fixture
def nginx(stack: Stack, tmp_path: Path) -> Iterator[str]:
    with nginx_up(stack, tmp_path) as url:
        yield url


async def _stream(http: httpx.AsyncClient, way: str, told: dict[str, Any]) -> str:
    """How a stream ended: whole, cut with an event that says so, refused in a way that asks to be tried again."""
    async with http.stream("POST", PATHS[way], json={**WAYS[way], **told}) as answer:
        text = (await answer.aread()).decode()
    if answer.status_code != 200:
        return _refusal(answer, text)
    last = text.rstrip().rpartition("data: ")[2]
    if last == "[DONE]" and '"error"' not in text:
        return "whole"
    error = json.loads(last).get("error", {}) if last.startswith("{") else {}
    return "cut" if error.get("code") == "shutting_down" else f"broken: {text[-300:]}"


async def _whole(http: httpx.AsyncClient, way: str) -> str:
    answer = await http.post(PATHS[way], json={**WAYS[way], "max_tokens": 4})
    await asyncio.sleep(0.5)
    return "whole" if answer.status_code == 200 else _refusal(answer, answer.text)


def _refusal(answer: httpx.Response, text: str) -> str:
    tried_again = answer.status_code in (408, 409, 429) or answer.status_code >= 500
    if tried_again and answer.headers.get("x-should-retry") != "false":
        return "refused"
    return f"{answer.status_code} {text[-300:]}"


async def test_a_rolling_restart_under_load_loses_no_stream_and_leaks_no_hold(stack: Stack, nginx: str) -> None:
    over = asyncio.Event()
    ends: dict[str, Counter[str]] = {"short": Counter(), "long": Counter(), "unary": Counter()}
    doors = {"chat": stack.url, "completion": nginx}

    async def client(kind: str, ask: Ask, way: str) -> None:
        async with httpx.AsyncClient(base_url=doors[way], headers=BEARER, timeout=90) as http:
            while not over.is_set():
                try:
                    ends[kind][await ask(http, way)] += 1
                except httpx.TransportError as exc:
                    ends[kind][f"{way}: {exc!r}"] += 1

    kinds: dict[str, tuple[int, Ask]] = {
        "short": (3, lambda http, way: _stream(http, way, SHORT)),
        "long": (2, lambda http, way: _stream(http, way, LONG)),
        "unary": (2, _whole),
    }
    clients = [
        asyncio.create_task(client(kind, ask, way))
        for kind, (count, ask) in kinds.items() for way in WAYS for _ in range(count)
    ]  # fmt: skip
    await asyncio.to_thread(wait_until, lambda: _open_reservations(stack) >= 10)
    for name in ("router-1", "router-2"):
        assert await asyncio.to_thread(stack.down, name) == 0
        await asyncio.to_thread(stack.up, name)
        before = await asyncio.to_thread(_served, stack, name)
        await asyncio.to_thread(wait_until, partial(_both_balancers_are_back, stack, name, before))
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
    ended = ends["short"] + ends["unary"]
    assert ended["refused"] * 10 <= ended.total(), ends
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


def _both_balancers_are_back(stack: Stack, name: str, before: dict[str, float]) -> bool:
    """Each sends requests to the router again."""
    return all(count > before[way] for way, count in _served(stack, name).items())


def _served(stack: Stack, name: str) -> dict[str, float]:
    """How many requests a router has ended, by what was asked."""
    text = httpx.get(f"{stack.router_url(name)}/metrics").text
    counted = [line for line in text.splitlines() if line.startswith("apikeyrouter_requests_total{")]
    return {
        way: sum(float(line.split()[-1]) for line in counted if f'route="{way}"' in line and 'outcome="ok"' in line)
        for way in WAYS
    }


async def _drift(stack: Stack) -> list[Any]:
    ledger = ScriptLedger(RedisEngine(f"redis://127.0.0.1:{stack.ports['redis']}/0"))
    await ledger.open()
    try:
        return await ledger.audit(lanes=LANES, scopes=["global:all"])
    finally:
        await ledger.close()
