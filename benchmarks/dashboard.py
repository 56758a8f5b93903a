"""The operator's page with 2,000 keys: how soon it is usable, what a viewer costs, what it costs the workers.

python -m benchmarks.dashboard [--keys 2000] [--seconds 10]
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from playwright.async_api import Browser, Page, async_playwright

from apikeyrouter.commands.dashboard import running_dashboard
from apikeyrouter.commands.demo import stage
from apikeyrouter.simulator import SimulatorProcess

KEY = "management-key-of-the-bench"
TICKS = os.sysconf("SC_CLK_TCK")
ORGANISATIONS = 40
CALLERS = 8


def configuration(url: str) -> dict[str, Any]:
    """Forty organisations with limits."""
    limits = [{"quota_group": f"org-{n}", "rpm": 6000, "kind": "bucket"} for n in range(ORGANISATIONS)]
    return {"providers": {"openai": {"adapter": "openai", "base_url": f"{url}/v1"}}, "keys": [], "limits": limits}


async def register(url: str, keys: int) -> None:
    """So many keys, through the management API."""
    numbers = iter(range(keys))

    async def some(session: aiohttp.ClientSession) -> None:
        for n in numbers:
            told = {"quota_group": f"org-{n % ORGANISATIONS}"}
            body = {"key_material": f"sk-sim-{n}", "provider_id": "openai", "metadata": told}
            async with session.post(f"{url}/api/v1/keys", json=body, headers={"X-API-Key": KEY}) as answer:
                answer.raise_for_status()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(some(session) for _ in range(CALLERS)))


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that these processes have used."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / TICKS


def page_pid() -> int:
    """The child of this process that serves the page."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return next(int(pid) for pid in children if b"dashboard" in Path(f"/proc/{pid}/cmdline").read_bytes())


async def load(url: str, seconds: float) -> int:
    """So many requests as eight callers get answered."""
    ends, done = time.monotonic() + seconds, 0
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}

    async def call(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.monotonic() < ends:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                done += 1

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(call(session) for _ in range(CALLERS)))
    return done


async def sign_in(browser: Browser, url: str) -> Page:
    """A browser in front of the first page."""
    page = await (await browser.new_context()).new_page()
    await page.goto(f"{url}/sign-in")
    await page.fill("#key", KEY)
    await page.click("button[type=submit]")
    await page.wait_for_url(f"{url}/")
    return page


async def first_seconds(page: Page, keys: int) -> float:
    """From asking for the page until every key can be clicked."""
    began = time.monotonic()
    await page.reload(wait_until="commit")
    await page.wait_for_function(f"document.querySelectorAll('.map .tile').length === {keys}", polling=20)
    return time.monotonic() - began


async def worker_us(url: str, workers: list[int], seconds: float) -> float:
    """Processor time of the workers per request, in microseconds."""
    before = cpu_seconds(workers)
    done = await load(url, seconds)
    return (cpu_seconds(workers) - before) / max(1, done) * 1e6


async def idle_ms(workers: list[int], seconds: float) -> float:
    """Processor time of the workers while nobody calls, in milliseconds a second."""
    before = cpu_seconds(workers)
    await asyncio.sleep(seconds)
    return (cpu_seconds(workers) - before) / seconds * 1e3


async def measure(keys: int, seconds: float) -> dict[str, float]:
    """All of it."""
    organisations = [
        {"id": f"org-{one}", "keys": [f"sk-sim-{n}" for n in range(one, keys, ORGANISATIONS)], "output_tokens": 5}
        for one in range(ORGANISATIONS)
    ]
    async with stage.embedded_server() as embedded, SimulatorProcess({"organisations": organisations}) as simulator:
        environ = {"MANAGEMENT_API_KEY": KEY, "PROXY_OPEN": "true", "LOG_LEVEL": "error"}
        config = configuration(simulator.url)
        async with (
            stage.running_service(embedded, config, workers=1, environ=environ) as (_, listening), chromium() as browser
        ):  # fmt: skip
            url, workers = listening["url"], [int(pid) for pid in listening["workers"]]
            await register(url, keys)
            await load(url, 2)
            told = {"worker us a request, no page": await worker_us(url, workers, seconds)}
            told["worker ms of CPU a second, idle"] = await idle_ms(workers, seconds)
            with running_dashboard(url, KEY) as link:
                page = await sign_in(browser, link.partition("/sign-in")[0])
                told["first page usable, s"] = min([await first_seconds(page, keys) for _ in range(3)])
                before, at = [cpu_seconds([page_pid()]), cpu_seconds(workers)], time.monotonic()
                told["worker us a request, page open"] = await worker_us(url, workers, seconds)
                await asyncio.sleep(seconds)
                passed = time.monotonic() - at
                told["page's server, ms of CPU a second and viewer"] = (
                    (cpu_seconds([page_pid()]) - before[0]) / passed * 1e3
                )
                told["worker ms of CPU a second, idle but for the page"] = await idle_ms(workers, seconds)
            return told


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Without a window."""
    async with async_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        await browser.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        told = asyncio.run(measure(options.keys, options.seconds))
    print(json.dumps({name: round(value, 2) for name, value in told.items()}, indent=2))


if __name__ == "__main__":
    main()
