"""The same program, run by the SDKs of today and by those of two majors before, against a running service.

The older ones are installed from the package index, once, into `build/sdks`; where there is none, they are skipped.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.conformance import CHECKS, GPT, POOR, TOKEN
from tests.service.running import Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

HERE = Path(__file__)
BUILT = HERE.parents[2] / "build" / "sdks"
INSTALL_SECONDS_MAX = 240
VERSIONS = {
    "current": {},
    "previous": {"openai": "2.54.0", "anthropic": "1.17.0", "google-genai": "2.34.0"},
    "older": {"openai": "1.109.1", "anthropic": "0.125.0", "google-genai": "1.75.0"},
}
SIMULATED: dict[str, Any] = {
    "organisations": [
        {"id": "a", "keys": ["sk-sim-a"], "output_tokens": 12},
        {"id": "b", "dialect": "anthropic", "keys": ["sk-ant-sim-b"], "output_tokens": 12},
        {"id": "c", "dialect": "gemini", "keys": ["AIza-sim-c"], "output_tokens": 12},
        {"id": "slow", "keys": ["sk-sim-slow"], "tokens_per_second": 40, "output_tokens": 2000},
        {"id": "late", "keys": ["sk-sim-late"], "latency_ms": 30_000},
        {"id": "tight", "keys": ["sk-sim-tight"], "output_tokens": 12},
        *(
            {"id": f"{how}-{dialect}", "dialect": dialect, "keys": [f"sk-sim-{how}-{dialect}"]}
            for how in ("down", "broken", "unpaid")
            for dialect in ("openai", "anthropic", "gemini")
        ),
    ]
}
FAILURES = {"down": "overloaded", "broken": "error_mid_stream", "unpaid": "billing"}
FAILING = {
    "down": {"openai": "gpt-4.1-mini", "anthropic": "claude-opus-4-1", "gemini": "gemini-2.5-pro"},
    "broken": {"openai": "gpt-4.1-nano", "anthropic": "claude-3-5-haiku-latest", "gemini": "gemini-2.0-flash"},
    "unpaid": {"openai": "gpt-5", "anthropic": "claude-sonnet-4"},
}
WELL = [GPT, "gpt-3.5-turbo-instruct", "text-embedding-3-small", "omni-moderation-latest", "gpt-4o-audio"]


def configured(simulator: SimulatorProcess) -> dict[str, Any]:
    """What the program expects: models that fail in a way of their own, a client without money."""
    keys: list[dict[str, Any]] = [
        {"id": "a", "provider": "openai", "key": "sk-sim-a", "models": WELL},
        {"id": "slow", "provider": "openai", "key": "sk-sim-slow", "models": ["gpt-4o"]},
        {"id": "late", "provider": "openai", "key": "sk-sim-late", "models": ["o3"]},
        {"id": "tight", "provider": "openai", "key": "sk-sim-tight", "models": ["gpt-4.1"]},
        {"id": "b", "provider": "anthropic", "key": "sk-ant-sim-b", "models": ["claude-haiku-4-5"]},
        {"id": "c", "provider": "gemini", "key": "AIza-sim-c", "models": ["gemini-2.5-flash", "gemini-embedding-001"]},
    ]
    keys += [
        {"id": f"{how}-{name}", "provider": name, "key": f"sk-sim-{how}-{name}", "models": [model]}
        for how, models in FAILING.items()
        for name, model in models.items()
    ]
    every = {"no-such", *(model for key in keys for model in key["models"])} - {"gpt-4o-audio"}
    budget = {"name": "poor", "scope": "client", "scope_id": "poor", "limit_usd": 0.000001, "period": "daily"}
    lenient = {"failures": 10_000}
    return {
        "providers": {
            "openai": {"adapter": "openai", "base_url": simulator.openai_url},
            "anthropic": {"adapter": "anthropic", "base_url": simulator.anthropic_url},
            "gemini": {"adapter": "gemini", "base_url": simulator.base_url("gemini")},
        },
        "keys": keys,
        "limits": [{"key": "tight", "rpm": 30, "kind": "bucket", "burst": 1}],
        "clients": [
            {"name": "app", "token": TOKEN, "models": sorted(every)},
            {"name": "poor", "token": POOR, "models": sorted(every)},
        ],
        "budgets": [budget],
        "routing": {
            "translate": True,
            "breakers": {"key": lenient, "provider": dict(lenient)},
            "correlated_failures": {"keys": 1000},
        },
    }


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def running(service_valkey: Server) -> AsyncIterator[Running]:
    """A service over simulated providers some of which fail for ever."""
    async with SimulatorProcess(SIMULATED) as simulator:
        for how, models in FAILING.items():
            for name in models:
                await simulator.fail(FAILURES[how], organisation=f"{how}-{name}")
        async with running_service(service_valkey.url, configured(simulator)) as started:
            yield started


def installed(which: str) -> Path:
    """The folder with the SDKs of some age, filled from the index on first use. Skips where there is no index."""
    wanted = [f"{name}=={version}" for name, version in VERSIONS[which].items()]
    folder = BUILT / "-".join(wanted).replace("==", "-")
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{which}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = folder.with_suffix(f".{os.getpid()}")
            command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    [*command, "--target", str(made), *wanted],
                    capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS_MAX,
                )  # fmt: skip
                if done.returncode == 0:
                    made.rename(folder)
                    return folder
            pytest.skip(f"the package index gives no {', '.join(wanted)}")
    return folder


@pytest.mark.parametrize("which", VERSIONS)
async def test_sdks_of_every_age_get_what_their_provider_would_give(running: Running, which: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "ANTHR"))}
    command = [sys.executable]
    if VERSIONS[which]:
        environ["PYTHONPATH"] = str(await asyncio.to_thread(installed, which))
        command.append("-S")  # nothing of this environment gets in
    process = await asyncio.create_subprocess_exec(
        *command, str(HERE.with_name("conformance.py")), running.url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ,
    )  # fmt: skip
    told, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    report = json.loads(told.splitlines()[-1])
    for name, version in VERSIONS[which].items():
        assert report["versions"][name] == version
    assert sorted(report["checks"]) == sorted(check.__name__ for check in CHECKS)
    wrong = {name: outcome for name, outcome in report["checks"].items() if outcome != "ok"}
    assert not wrong, "\n".join(f"{report['versions']} {name}: {outcome}" for name, outcome in wrong.items())
    await at_rest(running)


async def at_rest(running: Running) -> None:
    """What was left or cancelled is held no longer, and the counters equal what is open."""
    router = running.runtime.router

    async def idle() -> bool:
        return router.in_flight == 0

    await wait_until(idle)
    assert await router.books.flush(seconds=20)
    lanes = router.catalogue.lane_ids()
    assert [lane.id for lane in await router.ledger.lanes(lanes) if lane.in_flight] == []
    assert await router.ledger.audit(lanes=lanes, scopes=[scope.id for scope in router.catalogue.budgets()]) == []
