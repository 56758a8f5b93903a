"""`make bench`: every figure, each proven. `--quick` for a minute's run; `--write` keeps it in RESULTS.md."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator

from tests.servers import binaries, running

from benchmarks.forecast import measure_forecast
from benchmarks.library import measure_library
from benchmarks.load_client import running_load
from benchmarks.many_keys import measure_many_keys
from benchmarks.objectives import measure_objectives
from benchmarks.proof import ProofError
from benchmarks.proxy import Plan, measure_proxy, measure_streams
from benchmarks.ranking import measure_ranking
from benchmarks.report import RESULTS, Section, machine_facts, print_sections, write_results
from benchmarks.scripts import measure_scripts
from benchmarks.startup import measure_startup
from benchmarks.stickiness import measure_stickiness

__all__ = ["main"]

PARTS = ("proxy", "scripts", "library", "ranking", "streams", "startup", "forecast", "objectives", "many_keys")
_FULL = Plan(rounds=15, requests=3_000, paced_rounds=9, paced_seconds=2.0, streams=256)
_SECOND = Plan(rounds=9, requests=3_000, paced_rounds=0, paced_seconds=0.0, streams=0)
_QUICK = Plan(rounds=3, requests=1_500, paced_rounds=1, paced_seconds=1.0, streams=96)
_SCRIPT_ROUNDS, _SCRIPT_REQUESTS = 15, 512
_SCRIPT_ROUNDS_QUICK, _SCRIPT_REQUESTS_QUICK = 3, 256


def main() -> int:
    """Measure, show, keep. Returns 1 when a proof failed: then there is no figure. A missed budget is no failure."""
    options = _parse()
    facts = machine_facts()
    sections: list[Section] = []
    try:
        for section in _measured(options):
            sections.append(section)
            print_sections([section])
    except ProofError as exc:
        print(f"no figure: the work was not done as asked: {exc}", file=sys.stderr)
        return 1
    if options.write:
        command = shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]])
        write_results(
            RESULTS, sections, command=command, facts=[*facts, f"load average at the end: {os.getloadavg()[0]:.1f}"]
        )
        print(f"written: {RESULTS.relative_to(RESULTS.parents[1])}")
    return 0


def _measured(options: argparse.Namespace) -> Iterator[Section]:
    """The sections, one after the other; the first server gets all of them, the others the main figures."""
    if "forecast" in options.only:
        yield measure_forecast(quick=options.quick)
    if "objectives" in options.only:
        yield measure_objectives(quick=options.quick)
        yield measure_stickiness()
    for place, flavour in enumerate(binaries()):
        if place and options.quick:
            return
        with running(flavour) as server, running_load() as load:
            if "proxy" in options.only:
                yield measure_proxy(server, load, _QUICK if options.quick else _SECOND if place else _FULL)
            if "scripts" in options.only:
                rounds = _SCRIPT_ROUNDS_QUICK if options.quick else _SCRIPT_ROUNDS
                requests = _SCRIPT_REQUESTS_QUICK if options.quick else _SCRIPT_REQUESTS
                yield measure_scripts(flavour, rounds=rounds, requests=requests)
            if place:
                continue
            if "library" in options.only:
                yield measure_library(server, quick=options.quick)
            if "ranking" in options.only:
                yield measure_ranking(quick=options.quick)
            if "streams" in options.only:
                yield measure_streams(server, load, _QUICK if options.quick else _FULL)
            if "startup" in options.only:
                yield measure_startup(quick=options.quick)
            if "many_keys" in options.only:
                yield measure_many_keys(server, quick=options.quick)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's run on one server, with wider spreads")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
