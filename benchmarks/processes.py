"""Processes that a benchmark starts, watches and ends, each by its own id; nobody else's is ever touched."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = [
    "cpu_seconds",
    "python_module",
    "resident_bytes",
    "root",
    "running_process",
    "tree",
    "tree_cpu_seconds",
    "wait_for",
]

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 20.0
_PR_SET_PDEATHSIG = 1
_CPU_CLOCK_OF_PROCESS = 2
"""Low bits of a Linux clock id that mean "the CPU time of the process in the high bits" (clock_getcpuclockid(3))."""


def root() -> Path:
    """The folder that the repository is checked out in."""
    return Path(__file__).resolve().parent.parent


def python_module(name: str, *arguments: str) -> list[str]:
    """The command line of one of our modules, under this interpreter."""
    return [sys.executable, "-m", name, *arguments]


@contextlib.contextmanager
def running_process(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process; at exit ask it to go, then make it. It dies with us in any case (Linux)."""
    process = subprocess.Popen(
        list(command),
        cwd=root(),
        env=None if environ is None else dict(environ),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        preexec_fn=_die_with_parent,
    )
    try:
        yield process
    finally:
        _end(process)


def cpu_seconds(pid: int) -> float:
    """User and system time that all threads of a process have used so far, in nanosecond steps where Linux tells."""
    try:
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(pid: int) -> float:
    """The same of a process and of all that it started."""
    return sum(cpu_seconds(each) for each in tree(pid))


def tree(pid: int) -> list[int]:
    """A process and all that it started and that still runs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def resident_bytes(pid: int) -> int:
    """Memory that a process holds in RAM now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait_for(fd: int, process: "subprocess.Popen[bytes]", what: str) -> bytes:
    """What a starting process writes when it is ready. Errors: RuntimeError when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS_MAX
    os.set_blocking(fd, False)
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            told = os.read(fd, 256)
            if told:
                return told
            raise RuntimeError(f"{what} ended before it was ready (exit code {process.wait(timeout=STOP_SECONDS_MAX)})")
        time.sleep(0.01)
    raise RuntimeError(f"{what} was not ready within {START_SECONDS_MAX:g} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
