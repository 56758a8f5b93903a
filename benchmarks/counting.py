"""A worker that counts what it executes, for `benchmarks.guard`: `python -m benchmarks.counting whole|stream`."""

import http.client
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec
from tests.servers import free_port, running

from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter_proxy import worker
from benchmarks.payload import PATH, request_body
from benchmarks.upstream import running_streaming_upstream, running_upstream
from benchmarks.workers import OURS, TOKEN, environment

__all__ = ["Counted", "main"]

WARM_UP = 5
QUIET_SECONDS, QUIET_SECONDS_MAX = 0.015, 1.0
START_SECONDS_MAX = 60.0
STORE_SECONDS_MAX = 10.0
"""The store's deadline here: a worker that counts is many times slower, and must not take that for an outage."""
IDLE_SECONDS = 3.0
CLOCK_SHARE = 0.5
"""What executes so much of its count when nobody asks anything belongs to the clock, not to a request."""
_BEGIN = signal.SIGUSR1
_LOOP_RUNS_IN = ("run", "asyncio_run")
"""The innermost function of this name runs the event loop: what it calls is what the loop calls."""


class Counted(msgspec.Struct, kw_only=True):
    """What one kind of request makes the worker execute. `modules`: bytecodes by module, the dearest first."""

    bytecodes: int
    c_calls: int
    modules: dict[str, int]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that are counted together: `at_once` of them, `rounds` times."""

    name: str
    at_once: int
    rounds: int
    stream: bool = False


KINDS = (
    Kind(name="one at a time", at_once=1, rounds=40),
    Kind(name="32 at a time", at_once=32, rounds=11),
    Kind(name="a stream", at_once=1, rounds=9, stream=True),
)


class Window:
    """What was executed in one stretch of time, by what the event loop called."""

    def __init__(self) -> None:
        self.bytecodes: dict[CodeType, Counter[CodeType]] = {}
        self.c_calls: Counter[CodeType] = Counter()
        self.seen = 0
        """Counts on with whatever happens: it stands still while the worker is quiet."""
        self.seconds = 0.0

    def executed(self, entry: CodeType) -> int:
        """Bytecodes under one of what the loop called."""
        found = self.bytecodes.get(entry)
        return 0 if found is None else found.total()


class _Counter:
    """Counts what the worker's thread executes, window by window."""

    def __init__(self) -> None:
        self.window = Window()
        self._loop: FrameType | None = None
        self._entry: CodeType = self.enable.__code__
        self._counts: Counter[CodeType] = Counter()

    def enable(self, _: int, frame: FrameType | None) -> None:
        """Begin to count, as a signal's handler."""
        while frame is not None and frame.f_code.co_name not in _LOOP_RUNS_IN:
            frame = frame.f_back
        self._loop = frame
        sys.setprofile(self._called)
        sys.settrace(self._entered)

    def _entered(self, frame: FrameType, _: str, __: object) -> Any:
        if frame.f_back is self._loop:
            self._entry = frame.f_code
            self._counts = self.window.bytecodes.setdefault(frame.f_code, Counter())
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._executed

    def _executed(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            self._counts[frame.f_code] += 1
            self.window.seen += 1
        return self._executed

    def _called(self, _: FrameType, event: str, __: object) -> None:
        if event == "c_call":
            self.window.c_calls[self._entry] += 1


class _Driver(threading.Thread):
    """Another thread of the worker's process, which is not counted: sends the requests, waits until all is quiet."""

    def __init__(self, counter: _Counter, *, stream: bool) -> None:
        super().__init__(daemon=True)
        self.port = free_port()
        self.counted: dict[str, Counted] = {}
        self.failed = ""
        self._counter, self._kinds = counter, [kind for kind in KINDS if kind.stream is stream]
        self._body = request_body(stream=stream)
        self._mark = b"data: [DONE]" if stream else b'"routing_metadata"'

    def run(self) -> None:
        try:
            self._until_served()
            os.kill(os.getpid(), _BEGIN)
            idle = self._window(lambda: time.sleep(IDLE_SECONDS))
            for kind in self._kinds:
                connections = [self._connection() for _ in range(kind.at_once)]
                for _ in range(WARM_UP):
                    self._ask(connections)
                rounds = [self._window(lambda: self._ask(connections)) for _ in range(kind.rounds)]  # noqa: B023
                self.counted[kind.name] = _counted(rounds, idle, kind.at_once)
        except Exception:
            self.failed = traceback.format_exc()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def _window(self, work: Callable[[], None]) -> Window:
        """What is executed while this is done, and until all is quiet afterwards."""
        self._until_quiet()
        self._counter.window, since = Window(), time.monotonic()
        work()
        self._until_quiet()
        window, self._counter.window = self._counter.window, Window()
        window.seconds = time.monotonic() - since
        return window

    def _ask(self, connections: list[http.client.HTTPConnection]) -> None:
        headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
        for connection in connections:
            connection.request("POST", PATH, self._body, headers)
        for connection in connections:
            with connection.getresponse() as answer:
                body = answer.read()
            if answer.status != 200 or self._mark not in body:
                raise RuntimeError(f"{answer.status}: {body[:300]!r}")

    def _until_quiet(self) -> None:
        deadline = time.monotonic() + QUIET_SECONDS_MAX
        seen = -1
        while seen != self._counter.window.seen and time.monotonic() < deadline:
            seen = self._counter.window.seen
            time.sleep(QUIET_SECONDS)

    def _until_served(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                return self._ask([self._connection()])
            except ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)


def _counted(rounds: Sequence[Window], idle: Window, at_once: int) -> Counted:
    """The sum of what the loop called for the requests."""
    modules: Counter[str] = Counter()
    c_calls = 0
    for entry in {entry for window in rounds for entry in window.bytecodes}:
        window = _typical(entry, rounds, idle)
        if window is None:
            continue
        for code, times in window.bytecodes.get(entry, Counter()).items():
            modules["/".join(Path(code.co_filename).parts[-2:])] += times
        c_calls += window.c_calls[entry]
    return Counted(
        bytecodes=round(modules.total() / at_once),
        c_calls=round(c_calls / at_once),
        modules={name: round(times / at_once) for name, times in modules.most_common() if times >= at_once},
    )


def _typical(entry: CodeType, rounds: Sequence[Window], idle: Window) -> Window | None:
    """A round at the lower quartile; of what also runs by the clock, the cheapest; None: it runs by the clock."""
    in_order = sorted(rounds, key=lambda window: window.executed(entry))
    while_idle = idle.executed(entry) / idle.seconds
    if not while_idle:
        return in_order[len(rounds) // 4]
    least = in_order[0]
    return None if while_idle * least.seconds >= CLOCK_SHARE * least.executed(entry) else least


def main() -> None:
    """Run the worker in this process, count, end it, and print what was counted as one JSON line."""
    stream = sys.argv[1] == "stream"
    assert RedisEngine.__init__.__kwdefaults__ is not None
    RedisEngine.__init__.__kwdefaults__["timeout_s"] = STORE_SECONDS_MAX
    counter = _Counter()
    driver = _Driver(counter, stream=stream)
    signal.signal(_BEGIN, counter.enable)
    upstreams = running_streaming_upstream if stream else running_upstream
    with (
        tempfile.TemporaryDirectory(prefix="akr-bench-") as folder,
        running("valkey") as server,
        upstreams() as upstream,
    ):
        os.environ.update(environment(upstream, server.unix_url, Path(folder), "guard"))
        driver.start()
        worker.main([*OURS[1:], "--port", str(driver.port)])
        sys.settrace(None)
        sys.setprofile(None)
        driver.join(timeout=10)
    if driver.failed:
        sys.exit(driver.failed)
    sys.stdout.buffer.write(msgspec.json.encode(driver.counted) + b"\n")


if __name__ == "__main__":
    main()
