"""The demo's client process: a bounded load over HTTP, told as JSON lines on standard output.

`ready` once it could begin; it begins at the first line on standard input and ends when that closes. Then a line of
totals twice a second; `offered` when the time is over and nothing new is sent; `done` when all answers are in.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

__all__ = ["main"]

PAUSE_SECONDS = (0.04, 0.12)
"""After a denial; a client that honours retry-after would offer less than this load wants to."""
TELL_SECONDS = 0.5
ANSWER_SECONDS_MAX = 60.0
SAMPLES_MAX = 200_000
STREAM_SHARE = 0.2
ANTHROPIC_SHARE = 0.25
PROMPTS = (
    "Say hello.",
    "Name three rivers of Europe.",
    "Why is the sky blue? Keep it short.",
    "Write a haiku on queues.",
)


@dataclass(slots=True)
class Totals:
    """What the clients saw. `lost` broke off without an answer; `failed_over` took more than one attempt."""

    sent: int = 0
    answered: int = 0
    denied: int = 0
    failed: int = 0
    lost: int = 0
    failed_over: int = 0
    overheads_us: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; the added latency as percentiles in milliseconds."""
        ordered = sorted(self.overheads_us)
        told = {name: getattr(self, name) for name in ("sent", "answered", "denied", "failed", "lost", "failed_over")}
        for name, share in (("overhead_ms_p50", 0.5), ("overhead_ms_p99", 0.99)):
            told[name] = round(ordered[int(len(ordered) * share)] / 1_000, 2) if ordered else None
        return told


class Load:
    """`connections` clients, each with one request at a time, until the time or the count is used up."""

    def __init__(self, options: argparse.Namespace, session: aiohttp.ClientSession) -> None:
        self._options = options
        self._session = session
        self._random = random.Random(options.seed)  # noqa: S311 (a load, not a secret)
        self._ends = time.monotonic() + options.seconds
        self.totals = Totals()

    async def run(self) -> None:
        """All of it."""
        telling = asyncio.create_task(self._tell_regularly())
        clients = [asyncio.create_task(self._client()) for _ in range(self._options.connections)]
        try:
            await asyncio.gather(*clients)
        finally:
            telling.cancel()
            for client in clients:
                client.cancel()
        _tell("done", self.totals.as_dict())

    async def _client(self) -> None:
        while time.monotonic() < self._ends and self.totals.sent < self._options.requests_max:
            self.totals.sent += 1
            if await self._one() != 200:
                await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))

    async def _one(self) -> int:
        path, headers, body = self._request()
        try:
            async with self._session.post(self._options.url + path, headers=headers, json=body) as answer:
                await answer.read()
                self._count(answer)
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            self.totals.lost += 1
            return 0

    def _request(self) -> tuple[str, dict[str, str], dict[str, Any]]:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": self._random.choice(PROMPTS)}],
            "max_tokens": 64,
            "stream": self._random.random() < STREAM_SHARE,
        }
        if self._random.random() < self._options.anthropic_share:
            body["model"] = "claude-haiku-5"
            return "/v1/messages", {"x-api-key": self._options.key, "anthropic-version": "2023-06-01"}, body
        body["model"] = "gpt-4o-mini"
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        return "/v1/chat/completions", {"authorization": f"Bearer {self._options.key}"}, body

    def _count(self, answer: aiohttp.ClientResponse) -> None:
        totals = self.totals
        if answer.status == 200:
            totals.answered += 1
        elif answer.status == 429:
            totals.denied += 1
        else:
            totals.failed += 1
        totals.failed_over += answer.headers.get("x-akr-attempts", "1") != "1"
        overhead = answer.headers.get("x-akr-overhead-us", "")
        if overhead.isdigit() and len(totals.overheads_us) < SAMPLES_MAX:
            totals.overheads_us.append(int(overhead))

    async def _tell_regularly(self) -> None:
        offered = False
        while True:
            left = self._ends - time.monotonic()
            await asyncio.sleep(min(TELL_SECONDS, left) if left > 0 else TELL_SECONDS)
            if not offered and time.monotonic() >= self._ends:
                offered = True
                _tell("offered", self.totals.as_dict())
            else:
                _tell("progress", self.totals.as_dict())


def main(argv: Sequence[str] | None = None) -> int:
    """Wait for the word, make the load, tell. The exit code."""
    options = _parse(argv)
    _tell("ready", {})
    if not sys.stdin.readline():
        return 1
    asyncio.run(_run(options))
    return 0


async def _run(options: argparse.Namespace) -> None:
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    connector = aiohttp.TCPConnector(limit=options.connections)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        load = asyncio.create_task(Load(options, session).run())
        closing = asyncio.create_task(_wait_for_the_end_of_input())
        await asyncio.wait({load, closing}, return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        load.cancel()  # a no-op on what is done
        await asyncio.gather(load, closing, return_exceptions=True)


async def _wait_for_the_end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass


def _tell(event: str, facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the demo's load")
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", default="any")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--requests-max", type=int, default=100_000)
    parser.add_argument("--anthropic-share", type=float, default=ANTHROPIC_SHARE)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
