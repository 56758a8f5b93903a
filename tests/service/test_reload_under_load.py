"""Four workers under load, and a configuration that changes all the time: every decision is of one or of the other."""

import asyncio
import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server, free_port
from tests.service.running import MANAGEMENT_KEY, environ_for
from tests.service.test_service_life import worker_processes

pytestmark = pytest.mark.asyncio(loop_scope="package")

CLIENTS, RELOADS, SEEN = 12, 10, 30
PRICES = {"a": 1, "b": 7}
"""Dollars per million tokens, the same in both directions."""
MODELS = {"a": "gpt-4o-mini", "b": "gpt-4o"}
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def configuration(side: str, url: str) -> str:
    """Of one side: where the provider is, its key, the model behind the name, its price, its limit and its budget."""
    return yaml.safe_dump(
        {
            "providers": {"openai": {"adapter": "openai", "base_url": url}},
            "models": {"chat": [{"provider": "openai", "model": MODELS[side]}]},
            "keys": [{"id": f"key-{side}", "provider": "openai", "key": f"sk-sim-{side}", "quota_group": side}],
            "limits": [{"quota_group": side, "rpm": 1_000_000}],
            "prices": [{"model": model, "input": PRICES[side], "output": PRICES[side]} for model in MODELS.values()],
            "budgets": [{"name": side, "scope": "global", "limit_usd": 100, "period": "total", "enforcement": "hard"}],
        }
    )


def side_of(answer: httpx.Response) -> str:
    """Whose an answer is, if key, model and price say the same; else all of them, to be read."""
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text[:300]}"
    told = answer.json()
    routed, tokens = told["routing_metadata"], told["usage"]["total_tokens"]
    price = round(routed["cost"] * 1e6 / tokens, 6)
    for side in ("a", "b"):
        if (routed["key_used"], routed["model"], price) == (f"key-{side}", MODELS[side], PRICES[side]):
            return side if routed["attempts"] == 1 else f"{side} in {routed['attempts']} attempts"
    return f"{routed['key_used']}, {routed['model']}, {price}"


async def test_no_decision_is_of_two_configurations(service_valkey: Server, tmp_path: Path) -> None:
    organisations = {side: {"organisations": [{"id": side, "keys": [f"sk-sim-{side}"]}]} for side in ("a", "b")}
    path, port = tmp_path / "config.yaml", free_port()
    environ = environ_for(service_valkey.url, path, tmp_path / "access.log") | {"HOME": str(tmp_path)}
    url = f"http://127.0.0.1:{port}"
    command = ["apikeyrouter.cli", "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", "4"]
    seen: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                for _ in range(10):
                    answer = await http.post("/v1/chat/completions", json=BODY)
                    side = side_of(answer)
                    seen[side] += 1
                    if side in PRICES:
                        spent[side] += int(Decimal(answer.headers["x-akr-cost-usd"]) * 10**9)

    def put(side: str) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(configuration(side, simulators[side].openai_url))
        os.replace(fresh, path)

    async with (
        SimulatorProcess(organisations["a"]) as first,
        SimulatorProcess(organisations["b"]) as other,
    ):
        simulators = {"a": first, "b": other}
        put("a")
        async with (
            worker_processes(command, environ, url),
            httpx.AsyncClient(base_url=url, timeout=30, headers={"X-API-Key": MANAGEMENT_KEY}) as operator,
        ):
            clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
            for number in range(RELOADS):
                side = "ba"[number % 2]
                put(side)
                answer = await operator.post("/api/v1/config/reload")
                assert answer.status_code == 200, answer.text
                known = seen[side]
                async with asyncio.timeout(30):
                    while seen[side] < known + SEEN:
                        await asyncio.sleep(0.01)
            over.set()
            await asyncio.gather(*clients)
            booked: dict[str, Any] = {}
            for side in ("a", "b"):
                put(side)
                await operator.post("/api/v1/config/reload")
                async with asyncio.timeout(30):
                    while booked.get(side) != spent[side] / 1e9:
                        (budget,) = (await operator.get("/api/v1/budgets")).json()["budgets"]
                        booked[budget["name"]] = budget["settled_usd"]
                        await asyncio.sleep(0.02)
    assert set(seen) == {"a", "b"}, json.dumps(seen, indent=1)
