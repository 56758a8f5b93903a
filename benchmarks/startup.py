"""What it costs to begin: the import of the library."""

import os
import subprocess
import sys

from benchmarks.processes import root
from benchmarks.report import Figure, Section
from benchmarks.samples import Spread

__all__ = ["measure_startup"]

IMPORT_SECONDS_MAX = 0.35
RUNS, RUNS_QUICK = 9, 3
SLOWEST_SHOWN = 6
_TIMED = (
    "import time; t, c = time.perf_counter(), time.process_time(); import apikeyrouter;"
    " print(time.perf_counter() - t, time.process_time() - c)"
)


def measure_startup(*, quick: bool = False) -> Section:
    """Import time in fresh interpreters, with warm files, and which modules take most of it."""
    _python("-c", _TIMED)  # what is compiled is kept from now on
    runs = [_python("-c", _TIMED).stdout.split() for _ in range(RUNS_QUICK if quick else RUNS)]
    times, cpu = (Spread.of([float(run[place]) for run in runs]) for place in (0, 1))
    figures = [
        Figure(
            name="import apikeyrouter", measured=times.text("s", digits=3), budget=f"≤ {IMPORT_SECONDS_MAX} s",
            holds=times.median <= IMPORT_SECONDS_MAX,
        ),
        Figure(name="CPU of the import", measured=cpu.text("s", digits=3)),
    ]  # fmt: skip
    return Section(title="Import", figures=figures, notes=[f"slowest by themselves: {_slowest()}"])


def _slowest() -> str:
    """Own time of the slowest packages, from `-X importtime`."""
    own: dict[str, int] = {}
    for line in _python("-X", "importtime", "-c", "import apikeyrouter").stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdigit():
            package = fields[2].strip().partition(".")[0]
            own[package] = own.get(package, 0) + int(fields[0])
    ordered = sorted(own.items(), key=lambda pair: -pair[1])[:SLOWEST_SHOWN]
    return ", ".join(f"{package} {us / 1000:.0f} ms" for package, us in ordered)


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60, cwd=root(), env=environ
    )
