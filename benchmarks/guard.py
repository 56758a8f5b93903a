"""A guard against dearer requests: `make guard`. It counts what fixed requests make the worker execute.

Counted are bytecodes, and calls into C, of the worker's own thread, from the first byte of a request until everything
that it caused has been done: through the real server, protocol, router and ledger, over real sockets, to a real Valkey
and a real upstream. Counts do not depend on how fast a machine is or what else it does, so that a regression of a tenth
stands out where times would drown it. They depend on Python's minor version: each has its own line in `guard.json`.

Not seen: what a call into C costs (a slower library, a larger copy), waiting, memory, and the store's own work, which
`benchmarks/scripts.py` measures; what runs by the clock instead of by the request; and of streams, whose events come
together on a busy machine, what is less than a third more.
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from benchmarks.counting import Counted
from benchmarks.processes import python_module, root

__all__ = ["MORE_MAX", "compare", "least", "main"]

KEPT = Path(__file__).with_suffix(".json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MORE_MAX = 0.10
"""How much more than what is kept may be executed."""
COUNT_SECONDS_MAX = 120.0
ATTEMPTS = 3
"""What is too much is counted again, so often at most."""
MODULES_SHOWN = 8
_STREAM = "a stream"
"""Its events come together on a busy machine and then cost less, so that the dearest count is kept."""

Counts = dict[str, Counted]


def main() -> int:
    """Count and compare; with `--keep`, keep instead. Returns 1 when something is dearer than MORE_MAX allows."""
    parser = argparse.ArgumentParser(description="what requests make the worker execute")
    parser.add_argument("--keep", action="store_true", help="keep what is counted now as what is allowed")
    options = parser.parse_args()
    everything = msgspec.json.decode(KEPT.read_bytes(), type=dict[str, Counts]) if KEPT.exists() else {}
    if options.keep:
        counts = [_count() for _ in range(ATTEMPTS)]
        counted = functools.reduce(least, counts)
        counted[_STREAM] = max((count[_STREAM] for count in counts), key=lambda one: one.bytecodes)
        everything[PYTHON] = counted
        KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(everything)) + b"\n")
        print(f"kept for Python {PYTHON}: " + "; ".join(f"{name}: {one.bytecodes:,}" for name, one in counted.items()))
        return 0
    kept = everything.get(PYTHON)
    if kept is None:
        print(f"nothing is kept for Python {PYTHON}, so nothing was compared; `make guard-keep` keeps it")
        return 0
    counted = _count()
    lines, dearer = compare(kept, counted)
    for _ in range(ATTEMPTS - 1):
        if dearer:
            counted = least(counted, _count())
            lines, dearer = compare(kept, counted)
    print("\n".join(lines))
    return int(dearer)


def least(one: Mapping[str, Counted], other: Mapping[str, Counted]) -> Counts:
    """Of each kind of request the cheaper count: what else a busy machine makes a worker do only adds to it."""
    return {name: min(one[name], other[name], key=lambda counted: counted.bytecodes) for name in one}


def compare(kept: Mapping[str, Counted], counted: Mapping[str, Counted]) -> tuple[list[str], bool]:
    """What to print, and whether anything has become dearer than is allowed. Both have the same kinds of request."""
    lines, any_dearer = [], False
    for name, now in counted.items():
        before = kept[name]
        ratios = now.bytecodes / before.bytecodes, now.c_calls / before.c_calls
        dearer = max(ratios) > 1 + MORE_MAX
        any_dearer |= dearer
        lines.append(
            f"{name}: {now.bytecodes:,} bytecodes ({ratios[0] - 1:+.1%}), {now.c_calls:,} calls into C"
            f" ({ratios[1] - 1:+.1%}){' TOO MANY' if dearer else ''}"
        )
        if dearer:
            lines += _moved(before.modules, now.modules)
        elif max(ratios) < 1 - MORE_MAX:
            lines.append("    that much less is worth keeping: `make guard-keep`")
    if any_dearer:
        lines.append(f"more than {MORE_MAX:.0%} over what is kept in {KEPT.name}; if it is worth it: `make guard-keep`")
    return lines, any_dearer


def _moved(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """The modules that have become dearer, most first."""
    more = {name: now.get(name, 0) - before.get(name, 0) for name in now}
    found = sorted((pair for pair in more.items() if pair[1] > 0), key=lambda pair: -pair[1])[:MODULES_SHOWN]
    return [f"    {name}: {before.get(name, 0):,} → {now[name]:,} bytecodes" for name, _ in found]


def _count() -> Counts:
    """Each kind in a worker of its own, side by side. Errors: RuntimeError when a request was not served."""
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    commands = [python_module("benchmarks.counting", which) for which in ("whole", "stream")]
    running = [
        subprocess.Popen(command, cwd=root(), env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command in commands
    ]
    told: Counts = {}
    for process in running:
        output, complaints = process.communicate(timeout=COUNT_SECONDS_MAX)
        if process.returncode:
            raise RuntimeError(f"a request was not served, so nothing was counted: {complaints.decode()}")
        told |= msgspec.json.decode(output, type=Counts)
    return told


if __name__ == "__main__":
    sys.exit(main())
