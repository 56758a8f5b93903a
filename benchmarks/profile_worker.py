"""Where a worker's time goes: our worker in this process, the load in another. `python -m benchmarks.profile_worker`.

The default samples: a timer of this process's CPU time stops it a thousand times a second and looks at the stack, which
costs next to nothing and leaves proportions as they are. `--calls` uses cProfile instead: it counts calls, and makes
many small functions look dearer than they are.
"""

import argparse
import contextlib
import cProfile
import gc
import os
import pstats
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType

from tests.servers import free_port, running

from apikeyrouter_proxy import worker
from benchmarks import reference
from benchmarks.load_client import Load, Slice, SliceResult, running_load
from benchmarks.processes import cpu_seconds
from benchmarks.upstream import running_upstream
from benchmarks.workers import OURS, TOKEN, environment

__all__ = ["main"]

INTERVAL_SECONDS = 0.001
WARM_UP_REQUESTS = 1_000
FRAMES_MAX = 120
LINES_DEFAULT = 45
_BEGIN, _END = signal.SIGUSR1, signal.SIGUSR2
_ROOMS = ("apikeyrouter_proxy", "apikeyrouter", "benchmarks", "aiohttp", "uvicorn")
"""Packages that time is charged to; what they call in other packages is charged to the caller."""


class Collections:
    """How often the garbage collector ran, and the CPU time it took. Profiles charge it to whoever allocated."""

    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0
        self._since = 0.0

    def enable(self) -> None:
        """Begin to count."""
        gc.callbacks.append(self._look)

    def disable(self) -> None:
        """Stop counting."""
        gc.callbacks.remove(self._look)

    def _look(self, phase: str, _: object) -> None:
        if phase == "start":
            self._since = time.thread_time()
        else:
            self.runs += 1
            self.seconds += time.thread_time() - self._since


class Sampler:
    """Counts which functions are on the stack, and which is at its top, whenever the CPU timer fires."""

    def __init__(self) -> None:
        self.own: Counter[CodeType] = Counter()
        self.whole: Counter[CodeType] = Counter()
        self.rooms: Counter[str] = Counter()
        self.samples = 0

    def enable(self) -> None:
        """Start the timer."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)

    def disable(self) -> None:
        """Stop the timer."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _look(self, _: int, frame: FrameType | None) -> None:
        self.samples += 1
        seen: set[CodeType] = set()
        room = ""
        for depth in range(FRAMES_MAX):
            if frame is None:
                break
            code = frame.f_code
            if depth == 0:
                self.own[code] += 1
            if code not in seen:
                seen.add(code)
                self.whole[code] += 1
            room = room or _room(code)
            frame = frame.f_back
        self.rooms[room or "the rest"] += 1

    def print(self, us_per_request: float, lines: int) -> None:
        """Three tables: time by module, a function's own time, and its time with all that it calls."""
        print(f"\n{'by module':>20}   µs/request")
        for name, count in self.rooms.most_common(lines):
            share = count / max(1, self.samples)
            print(f"{share:19.1%} {share * us_per_request:12.1f}  {name}")
        for title, counts in (("own time", self.own), ("with what it calls", self.whole)):
            print(f"\n{title:>20}   µs/request")
            for code, count in counts.most_common(lines):
                share = count / max(1, self.samples)
                print(f"{share:19.1%} {share * us_per_request:12.1f}  {_where(code)}")


def main() -> None:
    """Start everything, profile one slice, print, and end."""
    options = _parse()
    profiler: Sampler | cProfile.Profile = cProfile.Profile(time.thread_time) if options.calls else Sampler()
    collections = Collections()
    _listen(_BEGIN, collections.enable, profiler.enable)
    _listen(_END, profiler.disable, collections.disable)
    with (
        tempfile.TemporaryDirectory(prefix="akr-bench-") as folder,
        running(options.server) as server,
        running_load() as load,
        running_upstream() as upstream,
    ):
        os.environ.update(environment(upstream, server.unix_url, Path(folder), "profile"))
        os.environ["UPSTREAM_URL"] = upstream.base_url
        with _driving(load, options.requests) as driver:
            if options.reference:
                reference.main(["--port", str(driver.port)])
            else:
                worker.main([*OURS[1:], "--port", str(driver.port)])
    assert driver.result is not None, "the load did not finish"
    _print(profiler, driver, collections, options)


def _listen(number: signal.Signals, *calls: Callable[[], object]) -> None:
    def heard(_: int, __: FrameType | None) -> None:
        for call in calls:
            call()

    signal.signal(number, heard)


class _Driver(threading.Thread):
    """Waits for the worker to listen, warms it up, and profiles one slice; then tells it to go."""

    def __init__(self, load: Load, requests: int) -> None:
        super().__init__(daemon=True)
        self.port = free_port()
        self.result: SliceResult | None = None
        self.cpu = 0.0
        self._load, self._requests = load, requests

    def run(self) -> None:
        try:
            self._warm_up()
            os.kill(os.getpid(), _BEGIN)
            before = cpu_seconds(os.getpid())
            self.result = self._slice(self._requests)
            self.cpu = cpu_seconds(os.getpid()) - before
            os.kill(os.getpid(), _END)
            time.sleep(0.2)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def _warm_up(self) -> None:
        for _ in range(100):
            time.sleep(0.1)
            with contextlib.suppress(RuntimeError):
                if self._slice(WARM_UP_REQUESTS).errors == 0:
                    return
        raise RuntimeError("the worker did not start")

    def _slice(self, requests: int) -> SliceResult:
        return self._load.run(Slice(port=self.port, requests=requests, token=TOKEN))


@contextlib.contextmanager
def _driving(load: Load, requests: int) -> Iterator[_Driver]:
    driver = _Driver(load, requests)
    driver.start()
    yield driver
    driver.join(timeout=10)


def _print(
    profiler: "Sampler | cProfile.Profile", driver: _Driver, collections: Collections, options: argparse.Namespace
) -> None:
    assert driver.result is not None
    us = driver.cpu / driver.result.answered * 1e6
    what = "profiled by calls" if options.calls else "while sampled"
    print(f"{driver.result.answered} requests, {driver.result.errors} errors, {us:.0f} µs of CPU a request {what}")
    gc_us = collections.seconds / driver.result.answered * 1e6
    print(f"garbage collection: {collections.runs} runs, {gc_us:.1f} µs a request, charged below to whoever allocated")
    if isinstance(profiler, Sampler):
        profiler.print(us, options.lines)
        return
    statistics = pstats.Stats(profiler, stream=sys.stdout)
    statistics.sort_stats("tottime").print_stats(options.lines)


def _room(code: CodeType) -> str:
    parts = Path(code.co_filename).parts
    for place in range(len(parts) - 1, 0, -1):
        if parts[place - 1] in _ROOMS:
            return "/".join(parts[place - 1 :])
    return ""


def _where(code: CodeType) -> str:
    parts = Path(code.co_filename).parts
    return f"{'/'.join(parts[-2:])}:{code.co_firstlineno} {code.co_qualname}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="where a worker's time goes")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--lines", type=int, default=LINES_DEFAULT)
    parser.add_argument("--calls", action="store_true", help="cProfile instead of sampling")
    parser.add_argument("--reference", action="store_true", help="the reference instead of our worker")
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
