"""The trials: overload, a killed process, a silent Redis. What the simulated providers counted is the judge."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apikeyrouter.simulator import SimulatorProcess
from benchmarks.exactness.callers import Answers, Caller, call_all, jain
from benchmarks.payload import MODEL
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section

__all__ = ["KEYS", "KEY_RPM", "Gateway", "overload", "process_killed", "providers", "redis_silent"]

KEYS = tuple(f"sk-exactness-{number}" for number in range(1, 7))
KEY_RPM, WINDOW_SECONDS = 200, 60
SLOTS_PER_KEY = 4
LATENCY_MS, LATENCY_MS_BY_SLOTS = 200, 500
OVERLOAD = 2.0
CLIENTS = 8
JAIN_MIN, USED_MIN, SHARE_OFF_MAX = 0.99, 0.97, 0.03
SILENT_SECONDS = 15.0
RATE_SHARE_BACK = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """What is measured: the URLs of its processes, which share one Redis; tokens by client, their weights."""

    name: str
    urls: Sequence[str]
    tokens: Sequence[str]
    weights: Sequence[float] = ()
    pids: Sequence[int] = ()
    """Of the processes, in the order of the URLs; none: nothing is killed."""
    redis_pid: int = 0

    def callers(self, rate: float, urls: Sequence[str] = ()) -> list[Caller]:
        """CLIENTS clients, each at every process, which together ask `rate` times a second."""
        urls = urls or self.urls
        weights = self.weights or [1.0] * CLIENTS
        return [
            Caller(f"client {number}", url, self.tokens[number % len(self.tokens)], rate / CLIENTS / len(urls),
                   weights[number])
            for number, url in itertools.product(range(CLIENTS), urls)
        ]  # fmt: skip


def providers(*, by_slots: bool = False) -> dict[str, Any]:
    """Six keys of six organisations, so that every gateway can express their limits: so many requests in each minute
    of the clock, or so many at once."""
    limit = {"concurrency": SLOTS_PER_KEY} if by_slots else {"rpm": KEY_RPM, "kind": "fixed"}
    latency_ms = LATENCY_MS_BY_SLOTS if by_slots else LATENCY_MS
    return {
        "organisations": [
            {"id": f"org-{number}", "keys": [key], "limits": [limit], "latency_ms": latency_ms, "output_tokens": 16,
             "models": [MODEL]}
            for number, key in enumerate(KEYS, start=1)
        ]
    }  # fmt: skip


async def overload(gateway: Gateway, simulator: SimulatorProcess, *, minutes: int = 2) -> Section:
    """Twice what the keys allow, for whole minutes of the clock. Errors: ProofError when the counts do not agree."""
    capacity = len(KEYS) * KEY_RPM * minutes
    await asyncio.sleep(WINDOW_SECONDS - time.time() % WINDOW_SECONDS)
    await simulator.reset()
    rate = OVERLOAD * len(KEYS) * KEY_RPM / WINDOW_SECONDS * (1.5 if gateway.weights else 1.0)
    answers = await call_all(gateway.callers(rate), minutes * WINDOW_SECONDS - 1.0)
    total = (await simulator.report())["total"]
    _prove(answers, total)
    used = total["admitted"] / capacity
    served = [answers.served[f"client {number}"] for number in range(CLIENTS)]
    figures = [
        Figure(name="sent over the limit", measured=_of(total["over_limit"], total["arrived"]), budget="0",
               holds=total["over_limit"] == 0),
        Figure(name="of the allowed requests used", measured=f"{used:.1%}", budget=f"≥ {USED_MIN:.0%}",
               holds=used >= USED_MIN),
        *_fair(gateway, answers, served),
        *_told(answers),
    ]  # fmt: skip
    weights = f", clients of weights {', '.join(f'{w:g}' for w in gateway.weights)}" if gateway.weights else ""
    title = f"{gateway.name}: {rate * 60:,.0f} requests a minute on keys that allow {capacity // minutes:,}{weights}"
    return Section(title=title, figures=figures)


async def process_killed(gateway: Gateway, simulator: SimulatorProcess, *, seconds: float = 40.0) -> Section:
    """Keys that take so many at once, all slots wanted; one process is killed with its requests under way, and its
    clients go to the others. Errors: ProofError."""
    await simulator.reset()
    full = len(KEYS) * SLOTS_PER_KEY * 1000 / LATENCY_MS_BY_SLOTS
    rate = full * 1.3
    before = await call_all(gateway.callers(rate), 8.0)
    peak = max(part["peak_concurrency"] for part in _keys(await simulator.report()))
    doomed = asyncio.create_task(call_all(gateway.callers(rate), 3.0, seed=2))
    await asyncio.sleep(2.0)
    os.kill(gateway.pids[0], signal.SIGKILL)
    killed_at = time.monotonic()
    await doomed
    late = time.monotonic() - killed_at
    after = await call_all(gateway.callers(rate, gateway.urls[1:]), seconds, seed=3)
    report = await simulator.report()
    usual = sum(1 for at in before.times if at >= 3.0) / 5.0
    back = _back_after(after, usual, seconds)
    figures = [
        Figure(name="sent over the limit", measured=_of(report["total"]["over_limit"], report["total"]["arrived"]),
               budget="0", holds=report["total"]["over_limit"] == 0),
        Figure(name="most at once on one key", measured=f"{peak}, allowed {SLOTS_PER_KEY}"),
        Figure(name="served before", measured=f"{usual:.0f} a second"),
        Figure(name="served after",
               measured=f"{sum(1 for at in after.times if at > seconds - 10) / 10:.0f} a second at the end; "
               + (f"again {RATE_SHARE_BACK:.0%} of before {back + late:.0f} s after the kill" if back is not None
                  else f"not again {RATE_SHARE_BACK:.0%} of before within {seconds:.0f} s")),
        *_told(after),
    ]  # fmt: skip
    return Section(title=f"{gateway.name}: a process killed", figures=figures)


async def redis_silent(gateway: Gateway, simulator: SimulatorProcess) -> Section:
    """Redis answers nobody for a while, in the middle of a minute, under overload. Errors: ProofError."""
    await asyncio.sleep(WINDOW_SECONDS - time.time() % WINDOW_SECONDS)
    await simulator.reset()
    rate = OVERLOAD * len(KEYS) * KEY_RPM / WINDOW_SECONDS
    started = asyncio.create_task(call_all(gateway.callers(rate), 2 * WINDOW_SECONDS - 1.0))
    await asyncio.sleep(10.0)
    os.kill(gateway.redis_pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(SILENT_SECONDS)
    finally:
        os.kill(gateway.redis_pid, signal.SIGCONT)
    answers = await started
    total = (await simulator.report())["total"]
    silent = sum(1 for at in answers.times if 11.0 <= at < 10.0 + SILENT_SECONDS)
    figures = [
        Figure(name="sent over the limit", measured=_of(total["over_limit"], total["arrived"]), budget="0",
               holds=total["over_limit"] == 0),
        Figure(name=f"served in the last {SILENT_SECONDS - 1:.0f} s of the silence", measured=f"{silent:,}"),
        Figure(name="served in the minute after",
               measured=f"{sum(1 for at in answers.times if at >= WINDOW_SECONDS):,} of {len(KEYS) * KEY_RPM:,}"),
        Figure(name="longest request", measured=f"{answers.longest_seconds:.2f} s"),
        *_told(answers),
    ]  # fmt: skip
    return Section(title=f"{gateway.name}: Redis silent for {SILENT_SECONDS:g} s, from second 10 on", figures=figures)


def _prove(answers: Answers, total: dict[str, Any]) -> None:
    """What callers got is what the providers served: nothing came out of a cache, nothing was served twice."""
    if answers.statuses[200] != total["completed"]:
        raise ProofError(f"{answers.statuses[200]} served to callers, {total['completed']} by the providers")


def _fair(gateway: Gateway, answers: Answers, served: Sequence[int]) -> list[Figure]:
    figures = []
    if gateway.weights:
        entitled = [weight / sum(gateway.weights) for weight in gateway.weights]
        shares = [count / max(1, sum(served)) for count in served]
        off = max(abs(share / due - 1) for share, due in zip(shares, entitled, strict=True))
        figures.append(
            Figure(name="shares by weight, the one farthest off", measured=f"{off:.1%} off what it is entitled to",
                   budget=f"≤ {SHARE_OFF_MAX:.0%}", holds=off <= SHARE_OFF_MAX)
        )  # fmt: skip
    else:
        index = jain(served)
        figures.append(
            Figure(name=f"Jain's index between {CLIENTS} equal clients", measured=f"{index:.4f}",
                   budget=f"≥ {JAIN_MIN}", holds=index >= JAIN_MIN)
        )  # fmt: skip
    if len(gateway.urls) > 1:
        index = jain([answers.served_at[url] for url in gateway.urls])
        figures.append(Figure(name=f"Jain's index between {len(gateway.urls)} processes", measured=f"{index:.4f}"))
    return figures


def _told(answers: Answers) -> list[Figure]:
    told = ", ".join(f"{count:,} × {status or 'no answer'}" for status, count in sorted(answers.statuses.items()))
    return [
        Figure(name="what callers were told", measured=told),
        Figure(name="stuck", measured=str(answers.stuck), budget="0", holds=answers.stuck == 0),
    ]


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"


def _keys(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [key for organisation in report["organisations"].values() for key in organisation["keys"].values()]


def _back_after(answers: Answers, usual: float, seconds: float) -> int | None:
    """The first second from which on three seconds bring what they did before; None: never."""
    for second in range(int(seconds) - 3):
        if sum(1 for at in answers.times if second <= at < second + 3) >= RATE_SHARE_BACK * usual * 3:
            return second
    return None
