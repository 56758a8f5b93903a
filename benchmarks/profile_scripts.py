"""Where a script's time goes: `python -m benchmarks.profile_scripts [--script reserve|settle]`.

The script is loaded again and again, each time with an error raised at another line, and its server time until then is
measured with real arguments. Sorted by that time, the lines tell what was spent between one and the next. Then the
commands that the whole script gives the server, by MONITOR.
"""

import argparse
import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import hiredis
from lupa.lua51 import LuaRuntime, LuaSyntaxError
from redis.asyncio import Redis
from tests.servers import Server, running

from apikeyrouter.domain.models.accounting import ReserveRequest
from apikeyrouter.infrastructure.ledger.engine import cell_keys
from apikeyrouter.infrastructure.ledger.ledger import _reserve_args, _settle_args
from apikeyrouter.infrastructure.ledger.scripts import load_scripts
from benchmarks.round_trips import commands_of_scripts
from benchmarks.scripts import Cell, make_cell, next_request, reserved, settlement_of

__all__ = ["main"]

CALLS, ROUNDS = 150, 7
LINES_MAX = 400
LEASE_US = 3_600_000_000
"""Longer than a profile takes: a script cut in the middle of its writes leaves what no sweep may see."""
INSIDE = ("commit", "load", "settle")
"""Functions whose lines are looked at too."""
_CUT = "error('cut')"
_FUNCTION = re.compile(r"^local function (\w+)")


@dataclass(frozen=True, slots=True)
class _Cut:
    """One variant of a script: where it ends, and its text; the whole script has no line."""

    line: str
    text: str

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def main() -> None:
    """Measure one script, or both."""
    parser = argparse.ArgumentParser(description="where a script's time goes")
    parser.add_argument("--script", nargs="+", default=["reserve", "settle"], choices=("reserve", "settle"))
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"))
    parser.add_argument("--least", type=float, default=0.4, help="show steps of at least so many µs")
    options = parser.parse_args()
    with running(options.server) as server:
        for name in options.script:
            server.flush()
            asyncio.run(_profile(server, name, options.least))


async def _profile(server: Server, name: str, least: float) -> None:
    cell = await make_cell(server, 100, 2)
    cuts = _cuts(load_scripts()[name].text)
    samples: dict[str, list[float]] = {cut.line: [] for cut in cuts}
    async with Redis.from_url(server.unix_url) as client:
        for _ in range(ROUNDS):
            for cut in cuts:
                us = await _time(client, server, cell, name, cut)
                if us is not None:
                    samples[cut.line].append(us)
    _print(name, {line: min(values) for line, values in samples.items() if len(values) == ROUNDS}, least)
    await _print_commands(server, cell, name)
    await cell.ledger.close()


async def _time(client: "Redis", server: Server, cell: Cell, name: str, cut: _Cut) -> float | None:
    """µs of server time per call; None when the line is never reached."""
    calls = await _calls(cell, name)
    await client.script_flush()  # a server full of scripts is slower: its Lua has more to collect
    await client.script_load(cut.text)
    connection = await asyncio.open_unix_connection(server.unix_url.removeprefix("unix://").partition("?")[0])
    await client.config_resetstat()
    for call in calls:
        connection[1].write(_packed(name, cut.sha, call))
    failed = await _replies(connection[0], len(calls))
    connection[1].close()
    if failed != (len(calls) if cut.line != _WHOLE else 0):
        return None
    stats = (await client.info("commandstats"))["cmdstat_evalsha"]
    return float(stats["usec"]) / len(calls)


_WHOLE = "(the end)"


async def _replies(reader: asyncio.StreamReader, count: int) -> int:
    """Take that many replies; how many were errors."""
    parser, failed = hiredis.Reader(notEnoughData=Ellipsis), 0
    while count:
        parser.feed(await reader.read(65536))
        while (reply := parser.gets()) is not Ellipsis:
            count -= 1
            failed += isinstance(reply, hiredis.ReplyError)
    return failed


async def _calls(cell: Cell, name: str) -> list[tuple[str, Sequence[str | bytes | int]]]:
    """Pool and arguments of calls that succeed; a settlement's reservation is made first."""
    requests = [next_request(cell, lease_us=LEASE_US) for _ in range(CALLS)]
    if name == "reserve":
        return [(request.pool, _reserve_args(request)) for request in requests]
    for request in requests:
        await reserved(cell, request)
    return [("", _settle_args(settlement_of(request))) for request in requests]


def _packed(name: str, sha: str, call: tuple[str, Sequence[str | bytes | int]]) -> bytes:
    pool, args = call
    keys = cell_keys(_NAMESPACE, "main", load_scripts()[name].keys, pool=pool)
    packed: bytes = hiredis.pack_command(("EVALSHA", sha, str(len(keys)), *keys, *args))  # type: ignore[arg-type]
    return packed


_NAMESPACE = "scripts-100-2"


def _cuts(text: str) -> list[_Cut]:
    """The script ended at each line of its main part, and of the functions named above; only what compiles."""
    lines = text.split("\n")
    compiles = LuaRuntime().compile
    cuts = [_Cut(_WHOLE, text)]
    for at in _places(lines):
        variant = "\n".join([*lines[:at], _CUT, *lines[at:]])
        try:
            compiles(variant.partition("\n")[2])
        except LuaSyntaxError:
            continue
        cuts.append(_Cut(f"{at + 1:4} {lines[at]}", variant))
    return cuts[:LINES_MAX]


def _places(lines: Sequence[str]) -> list[int]:
    """Where to look: the beginning of statements that run, not of definitions that follow one another."""
    places = []
    inside, was_definition = "", True
    for at, line in enumerate(lines):
        if at < 2 or not line or line.startswith("end"):
            continue
        if not line.startswith(" "):
            found = _FUNCTION.match(line)
            inside = found.group(1) if found else "*"
            if not (found and was_definition):
                places.append(at)
            was_definition = bool(found)
        elif inside == "*" or inside in INSIDE:
            places.append(at)
    return places


def _print(name: str, times: dict[str, float], least: float) -> None:
    ordered = sorted(times.items(), key=lambda pair: pair[1])
    print(f"\n{name}: {times[_WHOLE]:.1f} µs of server time; until each line (and the error there), then the step")
    shown = [ordered[0]]
    for line, us in ordered[1:]:
        if us - shown[-1][1] >= least or line == _WHOLE:
            shown.append((line, us))
    for (line, us), (_, following) in pairwise(shown):
        print(f"{us:8.1f} {following - us:+7.1f}  {line[:110]}")


async def _print_commands(server: Server, cell: Cell, name: str) -> None:
    request: ReserveRequest = next_request(cell)
    if name == "settle":
        await reserved(cell, request)

    async def work() -> None:
        await (reserved(cell, request) if name == "reserve" else cell.ledger.settle(settlement_of(request)))

    commands = await commands_of_scripts(server, work)
    counts = Counter(command.split()[0] for command in commands)
    print(f"{name} gives {len(commands)} commands: {dict(counts)}")
    for command in commands:
        print(f"    {command[:100]}")


if __name__ == "__main__":
    main()
