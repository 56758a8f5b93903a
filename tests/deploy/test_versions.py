"""Two versions at work on one store: of the same schema they share a cell, of another one nobody writes anything."""

import asyncio
import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.simulator import SimulatorProcess
from tests.house.tree import ROOT
from tests.servers import Server, free_port, running
from tests.service.running import MANAGEMENT_KEY, environ_for, providers_of, until_ready, wait_until

CLIENTS, ROUNDS = 6, 12
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
NAMESPACE = "versions"
CELL = f"{NAMESPACE}:{{c:main}}:L"
SCHEMA = 4
"""Of this version (`lua/include/numbers.lua`)."""


@pytest.fixture
def store() -> Iterator[Server]:
    with running("valkey") as server:
        yield server


def another_version(folder: Path, *, schema: int | None = None) -> Path:
    """A copy of the library and the service whose scripts are others: in a word that changes nothing, or in schema."""
    for part in ("router", "service", "lua"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    settle, numbers = folder / "lua/settle.lua", folder / "lua/include/numbers.lua"
    settle.write_text(settle.read_text().replace("\nlocal ", "\nlocal of_another_version = 1\nlocal ", 1))
    if schema is not None:
        text = numbers.read_text()
        changed = text.replace(f"local SCHEMA = {SCHEMA}", f"local SCHEMA = {schema}")
        assert changed != text
        numbers.write_text(changed)
    return folder


@contextlib.asynccontextmanager
async def worker(tree: Path, environ: dict[str, str]) -> AsyncIterator[str]:
    """A process of that version; its URL, once it is ready."""
    process, url = await started(tree, environ)
    try:
        await until_ready(process, url)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def started(tree: Path, environ: dict[str, str]) -> tuple[asyncio.subprocess.Process, str]:
    port = free_port()
    path = os.pathsep.join(str(tree / part) for part in ("router", "service"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "apikeyrouter_proxy.main:app", "--port", str(port), "--log-level", "warning",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **environ}, cwd=tree, stderr=subprocess.PIPE,
    )  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


def environ_of(store: Server, simulator: SimulatorProcess, folder: Path) -> dict[str, str]:
    path = folder / "config.yaml"
    config: dict[str, Any] = {
        "providers": providers_of(simulator),
        "keys": [{"id": "k1", "provider": "openai", "key": "sk-sim-v", "quota_group": "org"}],
        "limits": [{"quota_group": "org", "rpm": 100_000, "tpm": 10_000_000, "concurrency": 50}],
        "budgets": [{"name": "all", "scope": "global", "limit_usd": 50, "period": "total", "enforcement": "hard"}],
    }
    path.write_text(yaml.safe_dump(config))
    return environ_for(store.url, path, folder / "access.log") | {"APIKEYROUTER_NAMESPACE": NAMESPACE}


async def load(url: str) -> list[int]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return [(await client.post("/v1/chat/completions", json=BODY)).status_code for _ in range(ROUNDS)]


async def told_by(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(headers={"X-API-Key": MANAGEMENT_KEY}, timeout=10) as client:
        told: dict[str, Any] = (await client.get(url)).json()
        return told


def image(store: Server) -> dict[bytes, Any]:
    """The ledger's keys as they are."""
    with store.client() as client:
        return {key: client.dump(key) for key in client.scan_iter(match=f"{NAMESPACE}:{{c:*")}


async def test_workers_of_two_versions_share_a_cell_to_the_nano_dollar(store: Server, tmp_path: Path) -> None:
    other = another_version(tmp_path / "other")
    async with SimulatorProcess({"organisations": [{"id": "org", "keys": ["sk-sim-v"]}]}) as simulator:
        environ = environ_of(store, simulator, tmp_path)
        async with worker(ROOT, environ) as ours, worker(other, environ) as theirs:
            told = await asyncio.gather(*(load(url) for url in (ours, theirs) for _ in range(CLIENTS)))
            assert {status for statuses in told for status in statuses} == {200}
            bill = (await told_by(simulator.url + "/_sim/report"))["total"]
            booked: list[list[float]] = []

            async def agreed() -> bool:
                booked.clear()
                for url in (ours, theirs):
                    (budget,) = (await told_by(f"{url}/api/v1/budgets"))["budgets"]
                    booked.append([round(budget["settled_usd"] * 1e9), budget["held_usd"], budget["suspense_usd"]])
                return booked == [[bill["cost_nanousd"], 0.0, 0.0]] * 2

            await wait_until(agreed)
        with store.client() as client:
            libraries = set(re.findall("apikeyrouter_[0-9a-f]{16}", str(client.execute_command("FUNCTION", "LIST"))))
    assert (bill["arrived"], bill["over_limit"]) == (2 * CLIENTS * ROUNDS, 0)
    assert len(libraries) == 2
    assert await drift(store) == []


async def drift(store: Server) -> list[Any]:
    ledger = ScriptLedger(RedisEngine(store.url, namespace=NAMESPACE))
    await ledger.open()
    try:
        return await ledger.audit(lanes=["g:org:*", "k:k1", "p:openai"], scopes=["global:all"])
    finally:
        await ledger.close()


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1])
async def test_a_worker_of_another_schema_does_not_start_and_does_no_damage(
    store: Server, tmp_path: Path, schema: int
) -> None:
    other = another_version(tmp_path / "other", schema=schema)
    async with SimulatorProcess({"organisations": [{"id": "org", "keys": ["sk-sim-v"]}]}) as simulator:
        environ = environ_of(store, simulator, tmp_path)
        async with worker(ROOT, environ) as ours:
            assert await load(ours) == [200] * ROUNDS
            process, _ = await started(other, environ)
            _, said = await process.communicate()
            assert process.returncode not in (0, None)
            assert "another version" in said.decode()
            assert await load(ours) == [200] * ROUNDS
        before = image(store)
        assert struct.unpack("<d", schema_of(store))[0] == SCHEMA
        process, _ = await started(other, environ)
        await process.communicate()
        assert image(store) == before
        assert await drift(store) == []


def schema_of(store: Server) -> bytes:
    with store.client() as client:
        packed = client.hget(CELL, "")
    assert isinstance(packed, bytes)
    return packed[:8]
