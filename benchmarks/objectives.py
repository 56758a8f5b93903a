"""Each objective against the others, and against random, round-robin and least-used: who wins on which measure.

`python -m benchmarks.objectives`: virtual time, the routing code as it is, over a real ledger in process. Prompt caches
besides, over simulated providers that bill them.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Mapping

from apikeyrouter.domain.models.routing_decision import RoutingObjective
from benchmarks.contenders import BASELINES, Baseline, Routed
from benchmarks.report import RESULTS, Figure, Section, print_sections, replace_sections
from benchmarks.routing_world import RATE_PER_SECOND, WAYS, Told, World
from benchmarks.stickiness import measure_stickiness

__all__ = ["OBJECTIVES", "OWN_MEASURE", "compare", "main", "measure_objectives"]

SEED = 20_260_501
SECONDS, SECONDS_QUICK = 900.0, 180.0
OBJECTIVES: dict[str, RoutingObjective] = {
    **{name: RoutingObjective(name) for name in ("cost", "reliability", "latency", "quality", "fairness")},
    "cost, reliable": RoutingObjective("cost", constraints={"min_reliability": 0.95}),
    "cost + latency": RoutingObjective("cost", weights={"cost": 1, "latency": 1}),
}
"""The five, and two that are made of them."""
OWN_MEASURE: Mapping[str, tuple[str, Callable[[Told], float]]] = {
    "cost": ("dollars for a thousand requests", lambda told: told.cost_per_thousand_usd),
    "reliability": ("requests that their first key did not serve", lambda told: 1.0 - told.at_once),
    "latency": ("99th percentile", lambda told: told.seconds_at(0.99)),
    "quality": ("answers of no use", lambda told: 1.0 - told.good),
    "fairness": ("unevenness per weight", lambda told: 1.0 - told.evenness),
}
"""By objective: what it promises, smaller is better."""


async def compare(seed: int, seconds: float) -> dict[str, Told]:
    """Every contender on the same requests with the same luck."""
    told: dict[str, Told] = {}
    for name, objective in OBJECTIVES.items():
        random.seed(seed)  # turns begin at random, so that workers do not go in step
        world = World(seed)
        told[name] = await world.run(name, await Routed(world, objective).open(), seconds)
    for name, choice in BASELINES.items():
        world = World(seed)
        told[name] = await world.run(name, Baseline(world, seed, choice), seconds)
    return told


def measure_objectives(*, quick: bool = False) -> Section:
    """Who costs, serves, waits and is refused how much."""
    seconds = SECONDS_QUICK if quick else SECONDS
    told = asyncio.run(compare(SEED, seconds))
    section = Section(title="Objectives against each other and against choosing blindly, simulated")
    section.figures = [Figure(name=name, measured=_row(each)) for name, each in told.items()]
    section.figures += [_own_figure(name, told) for name in OWN_MEASURE]
    ours = max(told[name].refused_per_thousand for name in OBJECTIVES)
    blind = min(told[name].refused_per_thousand for name in BASELINES)
    section.figures.append(
        Figure(
            name="429s of providers for a thousand requests: the most of ours, the least of the blind",
            measured=f"{ours:.1f}, {blind:.1f}", budget="fewer", holds=ours < blind,
        )
    )  # fmt: skip
    section.notes = [
        f"{seconds:.0f} virtual seconds, {RATE_PER_SECOND:.0f} requests a second, {len(WAYS)} keys of different price,"
        " latency, failure rate, quality, quota and weight (`benchmarks/routing_world.py`), at most three attempts",
        "the routing code as it is, over a real ledger in process; blind choices retry elsewhere too but know no limit",
        f"`python -m benchmarks.objectives` repeats it to the digit: seed {SEED}",
    ]
    return section


def _own_figure(name: str, told: Mapping[str, Told]) -> Figure:
    what, measure = OWN_MEASURE[name]
    own = measure(told[name])
    rivals = [other for other in (*BASELINES, *OWN_MEASURE) if other != name]
    least, rival = min((measure(told[other]), other) for other in rivals)
    return Figure(
        name=f"{name} on its own measure: {what}", measured=f"{own:.4g}; next is {rival} with {least:.4g}",
        budget="the least of all", holds=own < least,
    )  # fmt: skip


def _row(told: Told) -> str:
    parts = (
        f"${told.cost_per_thousand_usd:.2f} a thousand", f"served {told.success:.2%}", f"at once {told.at_once:.2%}",
        f"p50 {told.seconds_at(0.5):.2f} s", f"p99 {told.seconds_at(0.99):.2f} s",
        f"429s {told.refused_per_thousand:.1f} a thousand", f"of use {told.good:.1%}", f"even {told.evenness:.3f}",
    )  # fmt: skip
    return " · ".join(parts)


def main() -> int:
    """Measure and show. 1 where an objective does not win on its own measure, or a cache saves nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three virtual minutes instead of fifteen")
    parser.add_argument(
        "--write", action="store_true", help="keep them in benchmarks/RESULTS.md, in place of the old ones"
    )
    options = parser.parse_args()
    sections = [measure_objectives(quick=options.quick), measure_stickiness()]
    print_sections(sections)
    if options.write:
        replace_sections(RESULTS, sections)
    return int(any(figure.holds is False for section in sections for figure in section.figures))


if __name__ == "__main__":
    sys.exit(main())
