"""From a history that fails to the shortest one that still does: faults and callers are left out, halves first."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.faults.simulation import Outcome, Plan, run

RUNS_MAX = 120
_T = TypeVar("_T")


def same_failure(one: Outcome, other: Outcome) -> bool:
    """Whether both break the same invariant."""
    return other.violation is not None and _name(one) == _name(other)


def _name(outcome: Outcome) -> str:
    return str(outcome.violation).split(" ", 1)[0]


def shortest(failed: Outcome, *, again: Callable[[Plan], Outcome] = run) -> Outcome:
    """The shortest history found that breaks the same invariant, in at most `RUNS_MAX` runs."""
    best, left = failed, RUNS_MAX

    def fails(plan: Plan) -> bool:
        nonlocal best, left
        if left == 0:
            return False
        left -= 1
        tried = again(plan)
        if same_failure(failed, tried):
            best = tried
            return True
        return False

    while True:
        before = best.plan
        cut = min(before.horizon_us, best.ended_us + 1)
        if cut < before.horizon_us:
            fails(replace(before, horizon_us=cut, faults=tuple(f for f in before.faults if f.at_us < cut)))
        without(best.plan.faults, lambda kept: fails(replace(best.plan, faults=kept)))
        without(best.plan.callers, lambda kept: fails(replace(best.plan, callers=kept)))
        if best.plan == before or left == 0:
            return best


def without(items: Sequence[_T], fails: Callable[[tuple[_T, ...]], bool]) -> tuple[_T, ...]:
    """What is left of `items` when everything is taken out without which it still `fails`: halves first, then less."""
    kept, size = tuple(items), max(1, len(items) // 2)
    while True:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if fails(fewer):
                kept = fewer
            else:
                at += size
        if size == 1:
            return kept
        size = max(1, size // 2)
