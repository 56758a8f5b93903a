"""Where a script's time goes: `python -m benchmarks.profile_scripts [--script reserve|settle] [--inside FUNCTION …]`.

The library is loaded again and again, each time with an end put in at another line: of the script, or of functions
that it uses. Its server time until then is measured with real arguments. Sorted by that time, the lines tell what was
spent between one and the next. Then the commands that the whole script gives the server, by MONITOR.
"""

import argparse
import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import hiredis
from lupa.lua51 import LuaRuntime, LuaSyntaxError
from redis.asyncio import Redis
from tests.servers import Server, running

from apikeyrouter.domain.models.accounting import ReserveRequest
from apikeyrouter.infrastructure.ledger.arguments import reserve_args, settle_args
from apikeyrouter.infrastructure.ledger.engine import cell_keys, encoded
from apikeyrouter.infrastructure.ledger.scripts import load_library
from benchmarks.round_trips import commands_of_scripts
from benchmarks.scripts import Cell, next_request, open_cell, reserved, settlement_of

__all__ = ["main"]

CALLS, ROUNDS = 320, 5
LEASE_US = 3_600_000_000
"""Longer than a profile takes: a script cut in the middle of its writes leaves what no sweep may see."""
_WHOLE = "(the end)"
_CUT = "error('cut')"
_NAMESPACE = "scripts-100-2"
_NOT_A_STATEMENT = re.compile(r"\s*(?:else|elseif|end|[})])")


@dataclass(frozen=True, slots=True)
class _Cut:
    """One variant of the library: where it ends, its text, and the name of its function."""

    line: str
    text: str
    function: str


def main() -> None:
    """Measure one script, or both."""
    parser = argparse.ArgumentParser(description="where a script's time goes")
    parser.add_argument("--script", nargs="+", default=["reserve", "settle"], choices=("reserve", "settle"))
    parser.add_argument("--inside", nargs="+", default=[], help="functions whose lines are looked at too")
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"))
    parser.add_argument("--page", type=int, default=1, help="settlements at a time")
    parser.add_argument("--least", type=float, default=0.4, help="show steps of at least so many µs")
    options = parser.parse_args()
    with running(options.server) as server:
        for name in options.script:
            server.flush()
            page = options.page if name == "settle" else 1
            asyncio.run(_profile(server, name, options.inside, page, options.least))


async def _profile(server: Server, name: str, inside: Sequence[str], page: int, least: float) -> None:
    async with open_cell(server, 100, 2) as cell:
        times: dict[str, float] = {}
        for _ in range(ROUNDS):
            for cut in _cuts(name, inside):
                us = await _time(cell.client, cell, name, cut, page)
                times[cut.line] = min(us, times.get(cut.line, us))
        _print(name, times, least)
        await _print_commands(server, cell, name)


async def _time(client: "Redis", cell: Cell, name: str, cut: _Cut, page: int) -> float:
    """µs of server time per request."""
    requests = [next_request(cell, lease_us=LEASE_US) for _ in range(CALLS)]
    if name == "settle":
        for request in requests:
            await reserved(cell, request)
    await client.execute_command("FUNCTION", "FLUSH")  # type: ignore[no-untyped-call]
    await client.execute_command("FUNCTION", "LOAD", cut.text)  # type: ignore[no-untyped-call]
    pipeline = client.pipeline(transaction=False)
    for at in range(0, CALLS, page):
        some = requests[at : at + page]
        settled = [word for request in some for word in settle_args(settlement_of(request))]
        args = reserve_args(some[0]) if name == "reserve" else settled
        keys = cell_keys(_NAMESPACE, "main", load_library().scripts[name].keys, pool=some[0].pool)
        pipeline.execute_command("FCALL", cut.function, len(keys), *keys, *encoded(args))
    await client.config_resetstat()
    failed = sum(isinstance(reply, hiredis.ReplyError | Exception) for reply in await pipeline.execute(False))
    stats = (await client.info("commandstats"))["cmdstat_fcall"]
    await client.execute_command("FUNCTION", "FLUSH")  # type: ignore[no-untyped-call]
    return float(stats["usec"]) / CALLS if failed or cut.line == _WHOLE else float("inf")


def _cuts(name: str, inside: Sequence[str]) -> list[_Cut]:
    """The library ended at each line of a script and of the functions named; only what compiles."""
    library = load_library()
    lines = library.text.split("\n")
    compiles = LuaRuntime().compile
    cuts = []
    for at in (at for function in (f"script_{name}", *inside) for at in _statements(lines, function)):
        function = f"cut_{at}_{name}"
        text = "\n".join([*lines[:at], _CUT, *lines[at:]]).replace(library.name, f"cut_{at}")
        try:
            compiles(text.partition("\n")[2])
        except LuaSyntaxError:
            continue
        cuts.append(_Cut(f"{at + 1:4} {lines[at]}", text, function))
    return [*cuts, _Cut(_WHOLE, library.text, library.scripts[name].function)]


def _statements(lines: Sequence[str], function: str) -> list[int]:
    """The lines of a function where a statement may begin."""
    start = next(at for at, line in enumerate(lines) if line.startswith(f"local function {function}("))
    is_script = function.startswith("script_")  # its last statement stands at the margin, as its file has it
    end = next(
        at for at in range(start + 1, len(lines))
        if lines[at] == "end" and (lines[at - 1].startswith("return ") if is_script else True)
    )  # fmt: skip
    return [at for at in range(start + 1, end) if not _NOT_A_STATEMENT.match(lines[at])]


def _print(name: str, times: dict[str, float], least: float) -> None:
    """An error costs more than a reply, so that the last lines come out above the whole."""
    print(f"\n{name}: {times[_WHOLE]:.1f} µs of server time; until each line (and the error there), then the step")
    shown = 0.0
    for line, us in sorted(times.items(), key=lambda pair: pair[1]):
        if us < float("inf") and (us - shown >= least or line == _WHOLE):
            print(f"{us:8.1f} {us - shown:+7.1f}  {line[:110]}")
            shown = us


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
