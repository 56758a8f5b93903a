"""`apikeyrouter serve` with a file of many keys: served right, changed under way, and after a worker was killed.

With AKR_LONG=1 they are ten thousand.
"""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest
import yaml

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server, free_port
from tests.service.running import MANAGEMENT_KEY, environ_for
from tests.service.test_service_life import worker_processes

pytestmark = pytest.mark.asyncio(loop_scope="package")

KEYS = 10_000 if os.environ.get("AKR_LONG") else 400
CHANGED, GROUPS = 10, 50
IN_A_ROW = 16
"""Fresh connections that must all find a change: both workers are among them, but for once in 65,536 times."""


def configuration(simulator: SimulatorProcess, changed: str = "") -> str:
    """Keys of GROUPS organisations; the last CHANGED of them serve another model besides, where one is named."""
    keys = [
        {
            "id": f"k{n}", "provider": "openai", "key": f"sk-sim-{n}", "quota_group": f"g{n % GROUPS}",
            "models": ["gpt-4o-mini", *([changed] if changed and n >= KEYS - CHANGED else [])],
        }
        for n in range(KEYS)
    ]  # fmt: skip
    providers = {"openai": {"adapter": "openai", "base_url": simulator.openai_url}}
    return yaml.dump({"providers": providers, "keys": keys}, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))


async def ask(url: str, model: str) -> httpx.Response:
    """One request over a connection of its own, which any worker may get."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await client.post("/v1/chat/completions", json=body)


async def until_everywhere(url: str, model: str, status: int) -> None:
    """Wait until every worker answers so."""
    async with asyncio.timeout(120):
        row = 0
        while row < IN_A_ROW:
            row = row + 1 if (await ask(url, model)).status_code == status else 0


async def keys_known(operator: httpx.AsyncClient) -> int:
    """How many keys there are, by the worker that answers."""
    answer = await operator.get("/health")
    return int(answer.json()["keys_registered"])


async def test_many_keys_are_served_changed_and_found_again_by_a_worker_that_takes_anothers_place(
    service_valkey: Server, tmp_path: Path
) -> None:
    groups = [{"id": f"g{g}", "keys": [f"sk-sim-{n}" for n in range(g, KEYS, GROUPS)]} for g in range(GROUPS)]
    path, port = tmp_path / "config.yaml", free_port()
    environ = environ_for(service_valkey.url, path, tmp_path / "access.log") | {"HOME": str(tmp_path)}
    url = f"http://127.0.0.1:{port}"
    command = ["apikeyrouter.cli", "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    used: Counter[str] = Counter()

    def put(changed: str) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(configuration(simulator, changed))
        os.replace(fresh, path)

    async with SimulatorProcess({"organisations": groups}) as simulator:
        put("")
        async with (
            worker_processes(command, environ, url) as supervisor,
            httpx.AsyncClient(base_url=url, timeout=60, headers={"X-API-Key": MANAGEMENT_KEY}) as operator,
        ):
            assert await keys_known(operator) == KEYS
            for _ in range(20):
                answer = await ask(url, "gpt-4o-mini")
                assert answer.status_code == 200, answer.text
                used[answer.headers["x-akr-key-id"]] += 1
            assert (await ask(url, "gpt-4o")).status_code == 404
            put("gpt-4o")
            supervisor.send_signal(signal.SIGHUP)
            await until_everywhere(url, "gpt-4o", 200)
            serving = {(await ask(url, "gpt-4o")).headers["x-akr-key-id"] for _ in range(CHANGED)}
            assert serving <= {f"k{n}" for n in range(KEYS - CHANGED, KEYS)}
            assert await keys_known(operator) == KEYS
            worker = children(supervisor.pid)[0]
            os.kill(worker, signal.SIGKILL)
            async with asyncio.timeout(120):
                while worker in (now := children(supervisor.pid)) or len(now) < 2:
                    await asyncio.sleep(0.02)
            await until_everywhere(url, "gpt-4o", 200)
            assert await keys_known(operator) == KEYS
            told = (await operator.get(f"/api/v1/keys/k{KEYS - 1}/transitions")).json()["transitions"]
            assert [each["reason"] for each in told].count("registered") == 1
    assert len(used) > 10


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
