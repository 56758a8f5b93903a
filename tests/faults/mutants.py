"""Mutants of the scripts: each line taken out, each condition negated, one at a time, and who sees it.

`python -m tests.faults.mutants [--every N] [--first M] [PART …]`: every N-th mutant of the files whose name has one of
these parts. A mutant is seen when it answers a random history otherwise than the oracle, or when a run of the fault
laboratory breaks an invariant; one that does not load is none. Prints the survivors, and what share was seen.
"""

import argparse
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from apikeyrouter.infrastructure.ledger import local_engine as engines
from apikeyrouter.infrastructure.ledger import scripts
from apikeyrouter.infrastructure.ledger.scripts import Library, SourceLine, load_library, lua_root, source_lines
from tests.faults.simulation import plan_of, run
from tests.ledger.cells import local_engine, require_same
from tests.ledger.histories import Call, Flush, History, Schema, Wind
from tests.ledger.oracle import Oracle
from tests.ledger.support import START_US, Clock, cell_key
from tests.ledger.test_differential import what_chance_may_miss

SEEDS, EVENTS = (1_000, 1_001, 1_002), 700
SECOND_LOOK = tuple(range(1_010, 1_018))
"""Histories for what the first ones have not seen."""
LABORATORY_SEEDS = (0, 2)
SECONDS_MAX = 60
SCHEMA = int(
    re.findall(r"^local SCHEMA = (\d+)", (lua_root() / "include" / "numbers.lua").read_text(), re.MULTILINE)[0]
)
_CONDITION = re.compile(r"^(\s*(?:if|elseif|while) )(.+)( (?:then|do))$")
_NO_STATEMENT = re.compile(r"^\s*(--.*|#!.*|end\)?|else|local function .*|function .*|\}|)$")
SEEN, SURVIVED, NONE = 1, 0, 2


@dataclass(frozen=True, slots=True)
class Mutant:
    """The `at`-th line of the library, as it is and as it is put (empty: taken out)."""

    at: int
    line: SourceLine
    text: str

    def __str__(self) -> str:
        what = f"is now: {self.text.strip()}" if self.text else "is gone"
        return f"lua/{self.line.file}:{self.line.number}: `{self.line.text.strip()}` {what}"


def mutants(lines: Sequence[SourceLine]) -> Iterator[Mutant]:
    """All of them, in order."""
    for at, line in enumerate(lines):
        if not line.file or _NO_STATEMENT.match(line.text):
            continue
        condition = _CONDITION.match(line.text)
        if condition is not None:
            head, test, tail = condition.groups()
            yield Mutant(at, line, f"{head}not ({test}){tail}")
        else:
            yield Mutant(at, line, "")


def library_with(mutant: Mutant | None, lines: Sequence[SourceLine]) -> Library:
    """The library as it is loaded, with one mutant in it."""
    changed = list(lines)
    if mutant is not None:
        changed[mutant.at] = mutant.line._replace(text=mutant.text)
    known = scripts.source_lines
    scripts.source_lines = lambda *, virtual_time=False: iter(changed)
    try:
        return load_library.__wrapped__()
    finally:
        scripts.source_lines = known


def judge(library: Library) -> int:
    """In a process of its own: whether anybody sees that this library is not the right one."""
    child = os.fork()
    if child == 0:
        os._exit(_verdict(library))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else SEEN


def _verdict(library: Library) -> int:
    signal.alarm(SECONDS_MAX)
    engines.load_library = lambda: library  # type: ignore[attr-defined, assignment]
    try:
        local_engine(Clock())
    except Exception:
        return NONE
    try:
        for seed in SEEDS:
            as_the_oracle_tells(seed)
        broken = any(run(plan_of(seed)).violation for seed in LABORATORY_SEEDS)
        signal.alarm(2 * SECONDS_MAX)
        for seed in () if broken else SECOND_LOOK:
            as_the_oracle_tells(seed)
    except Exception:
        return SEEN
    return SEEN if broken else SURVIVED


def as_the_oracle_tells(seed: int) -> None:
    """A random history, reply for reply. Errors: AssertionError."""
    clock, oracle = Clock(), Oracle()
    engine, history = local_engine(clock), History(seed, START_US)
    for event in chain(history.events(EVENTS), what_chance_may_miss(history)):
        match event:
            case Wind(now_us):
                clock.now_us = now_us
            case Flush(scripts_only=False):
                engine.flush()
                oracle.forget()
            case Schema(ours):
                mark(engine, oracle, ours=ours)
            case Call():
                answer = oracle.run(event.name, event.args, pool=event.pool, now=clock.now_us)
                reply = engine.run_now(event.name, event.args, pool=event.pool)
                require_same(answer, reply, what=str(event))


def mark(engine: engines.LocalEngine, oracle: Oracle, *, ours: bool) -> None:
    """Make a cell another schema's, or ours again."""
    if not oracle.exists:
        return
    oracle.schema_is_ours = ours
    globals_, key = engine._lua.globals(), cell_key("L").encode()
    cell = bytes(globals_[b"peek"](key)[b""])
    globals_[b"poke"](key, b"", struct.pack("<d", SCHEMA if ours else SCHEMA - 1) + cell[8:])


def main(words: list[str] | None = None) -> int:
    """Judge what is asked for; 0 always: survivors are for people to read."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="parts of names of files below lua/")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args(words)
    lines, began = list(source_lines()), time.monotonic()
    if judge(library_with(None, lines)) != SURVIVED:
        sys.exit("the scripts as they are differ from the oracle already")
    chosen = [m for m in mutants(lines) if not asked.parts or any(part in m.line.file for part in asked.parts)]
    chosen = chosen[asked.first :: asked.every]
    found = {SEEN: 0, SURVIVED: 0, NONE: 0}
    for mutant in chosen:
        verdict = judge(library_with(mutant, lines))
        found[verdict] = found.get(verdict, 0) + 1
        if verdict == SURVIVED:
            print(f"survives  {mutant}", flush=True)
    judged = found[SEEN] + found[SURVIVED]
    share = 100 * found[SEEN] / judged if judged else 100.0
    seconds = time.monotonic() - began
    print(f"{found[SEEN]} of {judged} mutants seen ({share:.1f} %), {found[NONE]} do not load; {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
