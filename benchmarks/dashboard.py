"""The operator's page with 2,000 keys: how soon it is usable, what a viewer costs, what it costs the workers.

python -m benchmarks.dashboard [--keys 2000] [--rounds 10] [--keep]

What a request costs the workers is their processor time over a fixed number of requests, in rounds that take turns: the
page looks in one, and rests, as a hidden tab does, in the next. `--keep`: into `RESULTS.md`.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import shutil
import statistics
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
from benchmarks.report import Figure, Section, show

KEY = "management-key-of-the-bench"
TICKS = os.sysconf("SC_CLK_TCK")
ORGANISATIONS = 40
CALLERS = 8
REQUESTS = 6_000
"""In a round: some seconds, so that a page that looks every five is in most of them."""
IDLE_SECONDS = 10.0
STARTS = 5
USABLE_SECONDS_MAX, VIEWER_MS_MAX = 2.0, 100.0
TURNS = """(away) => {
  Object.defineProperty(document, 'hidden', {value: away, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""
"""What a browser does when somebody turns to another tab, and back."""


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


async def load(url: str, requests: int) -> None:
    """So many requests, by eight callers."""
    numbers = iter(range(requests))
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}

    async def call(session: aiohttp.ClientSession) -> None:
        for _ in numbers:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                answer.raise_for_status()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(call(session) for _ in range(CALLERS)))


async def sign_in(browser: Browser, url: str) -> Page:
    """A browser in front of the first page."""
    page = await (await browser.new_context()).new_page()
    await page.goto(f"{url}/sign-in")
    await page.fill("#key", KEY)
    await page.click("button[type=submit]")
    await page.wait_for_url(f"{url}/")
    return page


async def all_tiles(page: Page, keys: int) -> None:
    """Until every key can be clicked."""
    await page.wait_for_function(f"document.querySelectorAll('.map .tile').length === {keys}", polling=20)


async def start_seconds(browser: Browser, url: str, keys: int) -> tuple[float, float]:
    """From starting the page's process until it listens, and until every key can be clicked, by its link."""
    page, began = await (await browser.new_context()).new_page(), time.monotonic()
    with running_dashboard(url, KEY) as link:
        listens = time.monotonic() - began
        await page.goto(link, wait_until="commit")
        await all_tiles(page, keys)
        usable = time.monotonic() - began
        await page.context.close()
    return listens, usable


async def reload_seconds(page: Page, keys: int) -> float:
    """From asking for the page anew until every key can be clicked."""
    began = time.monotonic()
    await page.reload(wait_until="commit")
    await all_tiles(page, keys)
    return time.monotonic() - began


async def request_us(url: str, workers: list[int]) -> float:
    """Processor time of the workers for a request, in microseconds, over a round."""
    before = cpu_seconds(workers)
    await load(url, REQUESTS)
    return (cpu_seconds(workers) - before) / REQUESTS * 1e6


async def idle_ms(pids: list[int]) -> float:
    """Processor time of these processes while nobody calls, in milliseconds a second."""
    before = cpu_seconds(pids)
    await asyncio.sleep(IDLE_SECONDS)
    return (cpu_seconds(pids) - before) / IDLE_SECONDS * 1e3


@dataclasses.dataclass(slots=True)
class Measured:
    """What was measured: seconds, microseconds a request, milliseconds of processor time a second."""

    starts: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    reloads: list[float] = dataclasses.field(default_factory=list)
    resting_us: list[float] = dataclasses.field(default_factory=list)
    looking_us: list[float] = dataclasses.field(default_factory=list)
    viewer_ms: float = 0.0
    worker_resting_ms: float = 0.0
    worker_looking_ms: float = 0.0


async def measure(keys: int, rounds: int) -> Measured:
    """All of it."""
    organisations = [
        {"id": f"org-{one}", "keys": [f"sk-sim-{n}" for n in range(one, keys, ORGANISATIONS)], "output_tokens": 5}
        for one in range(ORGANISATIONS)
    ]
    simulated = {"organisations": organisations, "journal_length": 0}
    async with stage.embedded_server() as embedded, SimulatorProcess(simulated) as simulator:
        environ = {"MANAGEMENT_API_KEY": KEY, "PROXY_OPEN": "true", "LOG_LEVEL": "error"}
        config, told = configuration(simulator.url), Measured()
        async with (
            stage.running_service(embedded, config, workers=1, environ=environ) as (_, listening), chromium() as browser
        ):  # fmt: skip
            url, workers = listening["url"], [int(pid) for pid in listening["workers"]]
            await register(url, keys)
            await load(url, REQUESTS)
            told.starts = [await start_seconds(browser, url, keys) for _ in range(STARTS)]
            with running_dashboard(url, KEY) as link:
                page = await sign_in(browser, link.partition("/sign-in")[0])
                told.reloads = [await reload_seconds(page, keys) for _ in range(STARTS)]
                for _ in range(rounds):
                    for seen, figures in ((False, told.resting_us), (True, told.looking_us)):
                        await page.evaluate(TURNS, not seen)
                        figures.append(await request_us(url, workers))
                both = [*workers, page_pid()]
                told.worker_looking_ms, told.viewer_ms = await apart(idle_ms, workers, both)
                await page.evaluate(TURNS, True)
                told.worker_resting_ms = await idle_ms(workers)
            return told


async def apart(measured: Any, workers: list[int], both: list[int]) -> tuple[float, float]:
    """What is of the workers, and what is of the page's process, of one span of time."""
    of_workers, of_both = await asyncio.gather(measured(workers), measured(both))
    return of_workers, of_both - of_workers


def section(keys: int, told: Measured) -> Section:
    """It in figures."""
    listens, usable = (statistics.median(one) for one in zip(*told.starts, strict=True))
    ratio = statistics.fmean(told.looking_us) / statistics.fmean(told.resting_us)
    own_us = (told.worker_looking_ms - told.worker_resting_ms) / 1e3 * told_seconds(told) / REQUESTS * 1e6
    return Section(
        title=f"Operator's page, {keys:,} keys",
        figures=[
            Figure(name="process started until it listens", measured=spread([one for one, _ in told.starts], "s")),
            Figure(
                name="process started until every key can be clicked",
                measured=spread([one for _, one in told.starts], "s"),
                budget=f"≤ {USABLE_SECONDS_MAX:g} s", holds=usable <= USABLE_SECONDS_MAX,
            ),
            Figure(name="of that, from listening", measured=f"{usable - listens:.2f} s"),
            Figure(name="page asked for anew until every key can be clicked", measured=spread(told.reloads, "s")),
            Figure(
                name="page's process for one viewer", measured=f"{told.viewer_ms:.0f} ms of CPU a second",
                budget=f"≤ {VIEWER_MS_MAX:g}", holds=told.viewer_ms <= VIEWER_MS_MAX,
            ),
            Figure(name="workers for a request while the page rests", measured=spread(told.resting_us, "µs")),
            Figure(name="workers for a request while it looks", measured=spread(told.looking_us, "µs")),
            Figure(name="the one over the other, of the means", measured=f"{ratio:.3f} ± {error(told):.3f}"),
            Figure(
                name="workers while nobody calls, page resting and looking",
                measured=f"{told.worker_resting_ms:.1f} and {told.worker_looking_ms:.1f} ms of CPU a second",
            ),
        ],
        notes=[
            f"{len(told.looking_us)} rounds each, of {REQUESTS:,} requests, one worker; the page looks every 5 s",
            f"the page's own management requests are {own_us:.1f} µs of that a request, by what they cost at rest",
        ],
    )  # fmt: skip


def told_seconds(told: Measured) -> float:
    """About how long a round takes: the worker is busy all the time."""
    return statistics.fmean(told.looking_us) * REQUESTS / 1e6


def error(told: Measured) -> float:
    """The standard error of the ratio."""
    parts = [
        statistics.stdev(one) / len(one) ** 0.5 / statistics.fmean(one) for one in (told.resting_us, told.looking_us)
    ]
    return float((parts[0] ** 2 + parts[1] ** 2) ** 0.5)


def spread(figures: list[float], unit: str) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(figures, n=4)
    digits = 2 if unit == "s" else 1
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} … {high:.{digits}f})"


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
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        told = asyncio.run(measure(options.keys, options.rounds))
        os.chdir(here)
    show(section(options.keys, told), keep=options.keep)


if __name__ == "__main__":
    main()
