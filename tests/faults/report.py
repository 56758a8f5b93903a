"""What runs came to, added up: each figure that is promised, and the seeds that broke a promise."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.auditor import shown
from tests.faults.faults import Profile, profile_of
from tests.faults.simulation import Outcome

TRACE_SHOWN = 40


@dataclass
class Report:
    """Sums and maxima of many runs."""

    runs: Counter[Profile] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Take in one run."""
        profile, tally, facts = profile_of(outcome.plan.seed), outcome.tally, outcome.facts
        self.runs[profile] += 1
        self.faults.update(str(fault.kind) for fault in outcome.plan.faults)
        self.sums.update(
            {
                "reservations": outcome.reservations, "slabs": outcome.slabs, "from_slabs": outcome.from_slabs,
                "denials": tally.denied, "asked": facts.asked, "refused": facts.refused,
                "scripts": tally.scripts.total(), "steps": outcome.steps, "checks": outcome.checks,
                "settlements": tally.settled, "late": tally.settled_late, "expired": tally.expired,
                "probes": tally.probes, "replayed": tally.replayed, "reasserted": tally.reasserted,
                "losses_noted": tally.losses_noted, "cautiously": tally.admitted_cautiously,
                "drift": outcome.drift, "stuck": outcome.stuck, "lost": outcome.lost_settlements,
                "leaked": outcome.leaked, "forgotten": outcome.forgotten_settlements,
                "forgotten_nanousd": outcome.forgotten_nanousd, "aborted": facts.aborted, "calls": outcome.calls,
                "virtual_s": outcome.ended_us // 1_000_000,
                "over_limit": str(outcome.violation).startswith(("I1", "I8")),
            }
        )  # fmt: skip
        lossless = profile is not Profile.LOSSES
        self._at_most("slowest_us", facts.slowest_us)
        self._at_most("over_budget" if lossless else "over_budget_lossy", outcome.over_budget_nanousd)
        self._at_most("stranded", outcome.stranded_nanousd)
        self._at_most("over_bound", outcome.over_bound_nanousd)
        self._at_most("beyond", outcome.calls_beyond)
        if profile is Profile.KILLS:
            self._at_most("late_us", tally.expired_late_us_max)
        if outcome.violation is not None:
            self.failures.append(outcome)

    def _at_most(self, name: str, value: int) -> None:
        self.most[name] = max(self.most[name], value)

    def lines(self) -> Iterable[str]:
        """The report as text."""
        sums, most = self.sums, self.most
        runs = ", ".join(f"{count} {profile}" for profile, count in sorted(self.runs.items()))
        yield f"runs                       {self.runs.total()} ({runs}), {sums['virtual_s']:,} s of virtual time"
        yield f"faults                     {', '.join(f'{n} {kind}' for kind, n in self.faults.most_common())}"
        yield f"requests                   {sums['asked']:,}; {sums['refused']:,} did not reach the store"
        yield f"reservations               {sums['reservations']:,}; denials {sums['denials']:,}"
        yield (
            f"  from slabs               {sums['from_slabs']:,}, of {sums['slabs']:,} slabs;"
            f" at most {_dollars(most['stranded'])} held for no call at once"
        )
        yield f"scripts, steps, checks     {sums['scripts']:,}, {sums['steps']:,}, {sums['checks']:,}"
        yield f"admitted over a limit      {sums['over_limit']}"
        yield f"billed over a hard budget  {_dollars(most['over_budget'])} at most, without lost writes"
        yield (
            f"  where writes were lost   {_dollars(most['over_budget_lossy'])} at most;"
            f" beyond the computed bound {_dollars(most['over_bound'])};"
            f" the store forgot {_dollars(sums['forgotten_nanousd'])} in all"
        )
        yield f"drift                      {sums['drift']}"
        yield f"stuck requests             {sums['stuck']}; the slowest reserve took {most['slowest_us'] / 1000:.0f} ms"
        yield (
            f"settlements                {sums['settlements']:,}, {sums['late']:,} of them after the lease;"
            f" lost {sums['lost']}; with a store that forgot {sums['forgotten']:,}"
        )
        yield (
            f"leaked holds               {sums['leaked']} after lease and sweep;"
            f" {sums['expired']:,} leases ended, those of the killed at most {most['late_us'] / 1e6:.2f} s late"
        )
        yield (
            f"calls beyond concurrency   {most['beyond']} at most, of workers away for longer than their lease;"
            f" {sums['aborted']:,} calls were aborted for that"
        )
        yield (
            f"cautious after a loss      {sums['losses_noted']:,} times;"
            f" {sums['cautiously']:,} reservations were made then"
        )
        yield f"replays, probes, re-told   {sums['replayed']:,}, {sums['probes']:,}, {sums['reasserted']:,}"
        yield f"broken invariants          {len(self.failures)}"


def _dollars(nanousd: int) -> str:
    return f"${max(0, nanousd) / 1e9:.9f}"


def told(outcome: Outcome) -> Iterable[str]:
    """A run in words: its seed, its faults, what broke, and what came last."""
    plan = outcome.plan
    yield f"seed {plan.seed}, history {outcome.digest}: {outcome.violation or 'every invariant holds'}"
    order = "in order" if plan.ordered else "in any order"
    yield f"{len(plan.callers)} callers for {plan.horizon_us / 1e6:.3f} s, messages {order}, {len(plan.faults)} faults:"
    yield from (f"  {fault}" for fault in plan.faults)
    if outcome.violation is not None:
        yield f"the last of {len(outcome.trace)} events:"
        yield from (f"  {shown(event)}" for event in outcome.trace[-TRACE_SHOWN:])
