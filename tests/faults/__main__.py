"""The fault laboratory: `python -m tests.faults [--reservations N | --runs N] [--from SEED]`, or `--seed N` again.

`--record FILE` keeps what was run, `--recorded FILE` adds it up.

Runs seed after seed, until so many reservations were made, and prints every promised figure. A seed that breaks an
invariant is run again with ever fewer faults and callers; the shortest history that still fails is printed. Ends with 1
then.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.faults.records import note, told_records
from tests.faults.report import Report, told
from tests.faults.shrinking import shortest
from tests.faults.simulation import plan_of, run

RESERVATIONS = 100_000


def main(words: list[str] | None = None) -> int:
    """Run what is asked for; 0 when every invariant held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="replay one seed, and shrink its history if it fails")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--reservations", type=int, default=RESERVATIONS, help="until so many were made")
    parser.add_argument("--runs", type=int, default=0, help="so many seeds, whatever they made")
    parser.add_argument("--record", type=Path, help="add what was run to this file, with the commit")
    parser.add_argument("--recorded", type=Path, help="only say what such a file comes to")
    asked = parser.parse_args(words)
    if asked.recorded is not None:
        print(*told_records(asked.recorded), sep="\n")
        return 0
    if asked.seed is not None:
        return replay(asked.seed)
    report, seeds = many(asked.first, asked.runs, asked.reservations)
    if asked.record is not None:
        note(asked.record, seeds, report)
    return 1 if report.failures else 0


def replay(seed: int) -> int:
    """One seed, with its story."""
    outcome = run(plan_of(seed))
    print(*told(outcome), sep="\n")
    if outcome.violation is None:
        return 0
    print("\nthe shortest history that fails alike:", *told(shortest(outcome)), sep="\n")
    return 1


def many(first: int, runs: int, reservations: int) -> tuple[Report, range]:
    """Seed after seed."""
    report, began, seed = Report(), time.monotonic(), first
    while report.runs.total() < runs if runs else report.sums["reservations"] < reservations:
        outcome = run(plan_of(seed))
        report.add(outcome)
        if outcome.violation is not None:
            print(
                f"\nseed {seed} fails: {outcome.violation}; python -m tests.faults --seed {seed} replays it", flush=True
            )
            print(*told(shortest(outcome)), sep="\n", flush=True)
        seed += 1
    print(f"\nseeds {first} to {seed - 1}, in {time.monotonic() - began:.0f} s\n")
    print(*report.lines(), sep="\n")
    return report, range(first, seed)


if __name__ == "__main__":
    sys.exit(main())
