"""Callers: what each asks, what each got, when. Arrivals do not wait for answers (an open loop), and are seeded."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from benchmarks.payload import MODEL, PATH

__all__ = ["Answers", "Caller", "call_all", "jain"]

ANSWER_SECONDS_MAX = 30.0
_BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 16}


@dataclass(frozen=True, slots=True)
class Caller:
    """One client of the gateway at one of its processes, which asks `rate` times a second."""

    name: str
    url: str
    token: str
    rate: float
    weight: float = 1.0


@dataclass(slots=True)
class Answers:
    """What came back. `statuses`: 0 is no answer. `served`: by caller. Times are seconds since the beginning."""

    statuses: Counter[int] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    served_at: Counter[str] = field(default_factory=Counter)
    """By the process that was asked."""
    times: list[float] = field(default_factory=list)
    """When each served answer came."""
    longest_seconds: float = 0.0
    stuck: int = 0
    """Requests without any answer within ANSWER_SECONDS_MAX."""


async def call_all(callers: Sequence[Caller], seconds: float, *, seed: int = 1) -> Answers:
    """Let all of them ask for so long, and wait for every answer."""
    answers = Answers()
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(_ask_on(session, caller, answers, began, seconds, random.Random(f"{seed}/{caller}")))
    return answers


async def _ask_on(
    session: aiohttp.ClientSession, caller: Caller, answers: Answers, began: float, seconds: float, luck: random.Random
) -> None:
    at = luck.expovariate(caller.rate)
    async with asyncio.TaskGroup() as group:
        while at < seconds:
            await asyncio.sleep(began + at - time.monotonic())
            group.create_task(_ask(session, caller, answers, began))
            at += luck.expovariate(caller.rate)


async def _ask(session: aiohttp.ClientSession, caller: Caller, answers: Answers, began: float) -> None:
    since = time.monotonic()
    headers = {"authorization": f"Bearer {caller.token}"}
    status = 0
    try:
        async with session.post(caller.url + PATH, json=_BODY, headers=headers) as answer:
            await answer.read()
            status = answer.status
    except TimeoutError:
        answers.stuck += 1
    except aiohttp.ClientError:
        pass  # a process that was killed: no answer, counted as status 0
    now = time.monotonic()
    answers.statuses[status] += 1
    answers.longest_seconds = max(answers.longest_seconds, now - since)
    if status == 200:
        answers.served[caller.name] += 1
        answers.served_at[caller.url] += 1
        answers.times.append(now - began)


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0
