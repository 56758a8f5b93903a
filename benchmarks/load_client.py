"""The load: a process of its own that keeps N connections busy, slice by slice, as it is told on standard input.

In: one JSON line per slice (`Slice`). Out: one JSON line per slice (`SliceResult`). `Load` is the pipe's other end.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import cast

import httptools
import msgspec
import uvloop

from benchmarks.payload import PATH, request_body
from benchmarks.processes import python_module, running_process

__all__ = ["Load", "Slice", "SliceResult", "running_load"]

SLICE_SECONDS_MAX = 120.0
ERRORS_SHOWN_MAX = 3
_MARK_FOR_STREAM_END = b"data: [DONE]"


class Slice(msgspec.Struct, kw_only=True):
    """`requests` over `connections` at `port`. `expect`: text that every answer must hold. `rate`: starts per second,
    0 for as fast as answers come. `headers`: more of them."""

    port: int
    requests: int
    connections: int = 32
    token: str = ""
    stream: bool = False
    expect: str = ""
    rate: float = 0.0
    kilobytes: int = 1
    headers: dict[str, str] = {}


class SliceResult(msgspec.Struct, kw_only=True):
    """What came of it. `errors` counts answers that are not what was expected; `shown` are the first of them.

    `first_…`: until the first byte of an answer's body.
    """

    answered: int
    errors: int
    seconds: float
    p50_us: float
    p99_us: float
    p999_us: float = 0.0
    first_p50_us: float = 0.0
    first_p99_us: float = 0.0
    shown: list[str]


class Load:
    """Tells a load process what to do."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def run(self, slice_: Slice) -> SliceResult:
        """Run one slice to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(slice_) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load process ended")
        return msgspec.json.decode(line, type=SliceResult)


@contextlib.contextmanager
def running_load() -> Iterator[Load]:
    """A load process, ended at exit."""
    command = python_module("benchmarks.load_client")
    with running_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Load(process)


class _Connection(asyncio.Protocol):
    """One keep-alive connection: sends a request, takes the answer apart, sends the next."""

    def __init__(self, work: "_Work") -> None:
        self._work = work
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._since = self._first = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self._work.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._since:
            self._work.answered(self, 0.0, 0.0, f"connection lost: {exc}")
            self._since = 0.0

    def send(self, request: bytes, since: float) -> None:
        assert self._transport is not None
        self._since = since
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = []

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._first = time.perf_counter() - self._since
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._body), self._parser.get_status_code()
        took, self._since = time.perf_counter() - self._since, 0.0
        wrong = "" if status == 200 and self._work.is_expected(body) else f"{status}: {body[:300]!r}"
        self._work.answered(self, took, self._first, wrong)


class _Work:
    """One slice under way."""

    def __init__(self, slice_: Slice) -> None:
        self._slice = slice_
        self._request = _request(slice_)
        self._expect = slice_.expect.encode()
        self._left = slice_.requests
        self._idle: list[_Connection] = []
        self._late: list[float] = []
        self._took: list[float] = []
        self._first: list[float] = []
        self._errors: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._running = False

    async def run(self) -> SliceResult:
        connections = [
            (await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._slice.port))[1]
            for _ in range(self._slice.connections)
        ]
        started = time.perf_counter()
        self._running = True
        if self._slice.rate:
            self._pace(started, 0)
        else:
            for connection in self._idle[:]:
                self._next(connection)
        async with asyncio.timeout(SLICE_SECONDS_MAX):
            await self._done
        seconds = time.perf_counter() - started
        for connection in connections:
            connection.close()
        return self._result(seconds)

    def free(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def is_expected(self, body: bytes) -> bool:
        return self._expect in body and (not self._slice.stream or _MARK_FOR_STREAM_END in body)

    def answered(self, connection: _Connection, took: float, first: float, wrong: str) -> None:
        self._took.append(took)
        self._first.append(first)
        if wrong:
            self._errors.append(wrong)
        if len(self._took) == self._slice.requests:
            if not self._done.done():
                self._done.set_result(None)
        elif not self._slice.rate:
            self._next(connection)
        elif self._late:
            connection.send(self._request, self._late.pop(0))
        else:
            self._idle.append(connection)

    def _next(self, connection: _Connection) -> None:
        if self._left > 0:
            self._left -= 1
            connection.send(self._request, time.perf_counter())

    def _pace(self, started: float, at: int) -> None:
        """Start what is due by now. What finds no free connection waits, and its waiting counts; that this process
        itself was late (its timers have steps of a millisecond) does not."""
        now = time.perf_counter()
        while at < self._slice.requests and started + at / self._slice.rate <= now:
            due = started + at / self._slice.rate
            at += 1
            if self._idle:
                self._idle.pop().send(self._request, time.perf_counter())
            else:
                self._late.append(due)
        if at < self._slice.requests:
            self._loop.call_later(started + at / self._slice.rate - now, self._pace, started, at)

    def _result(self, seconds: float) -> SliceResult:
        took, first = sorted(self._took), sorted(self._first)
        return SliceResult(
            answered=len(took),
            errors=len(self._errors),
            seconds=seconds,
            p50_us=took[len(took) // 2] * 1e6,
            p99_us=took[len(took) * 99 // 100] * 1e6,
            p999_us=took[len(took) * 999 // 1000] * 1e6,
            first_p50_us=first[len(first) // 2] * 1e6,
            first_p99_us=first[len(first) * 99 // 100] * 1e6,
            shown=self._errors[:ERRORS_SHOWN_MAX],
        )


def _request(slice_: Slice) -> bytes:
    body = request_body(stream=slice_.stream, kilobytes=slice_.kilobytes)
    lines = [
        f"POST {PATH} HTTP/1.1",
        f"host: 127.0.0.1:{slice_.port}",
        "user-agent: OpenAI/Python 3.0.0",
        "accept: application/json",
        "accept-encoding: identity",
        f"authorization: Bearer {slice_.token or 'none'}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in slice_.headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def main() -> None:
    """Slices from standard input until it ends."""
    for line in sys.stdin.buffer:
        slice_ = msgspec.json.decode(line, type=Slice)
        try:
            result = uvloop.run(_run(slice_))
        except OSError as exc:
            result = SliceResult(answered=0, errors=1, seconds=0.0, p50_us=0.0, p99_us=0.0, shown=[str(exc)])
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()


async def _run(slice_: Slice) -> SliceResult:
    return await _Work(slice_).run()


if __name__ == "__main__":
    main()
