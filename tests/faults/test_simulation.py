"""The fault laboratory in short: fixed seeds of every profile, the same history again, and a laboratory that sees."""

import subprocess
import sys
from dataclasses import replace

import pytest

from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.serving import slabs
from apikeyrouter.serving.slab import Slab
from tests.faults.faults import Kind, Profile, profile_of
from tests.faults.shrinking import shortest, without
from tests.faults.simulation import Outcome, plan_of, run
from tests.ledger.support import SECOND

SEEDS = (0, 1, 2, 3)
SLAB_SEEDS = (12, 16)
"""The house with slabs, with faults that lose no acknowledged write, and with kills."""
REPLAYED = 2
_AGAIN = "from tests.faults.simulation import plan_of, run; print(run(plan_of({seed})).digest)"


@pytest.fixture(scope="module")
def outcomes() -> dict[int, Outcome]:
    """One run of each seed."""
    plans = [plan_of(seed) for seed in SEEDS] + [plan_of(seed, horizon_us=25 * SECOND) for seed in SLAB_SEEDS]
    return {plan.seed: run(plan) for plan in plans}


@pytest.mark.parametrize("seed", [*SEEDS, *SLAB_SEEDS])
def test_every_invariant_holds_under_the_faults_of_a_seed(outcomes: dict[int, Outcome], seed: int) -> None:
    outcome = outcomes[seed]
    assert outcome.violation is None
    assert (outcome.drift, outcome.leaked, outcome.stuck, outcome.lost_settlements) == (0, 0, 0, 0)
    assert outcome.over_bound_nanousd == 0
    assert outcome.plan.lossy or outcome.over_budget_nanousd == 0


def test_the_short_version_meets_every_profile_and_has_work_to_do(outcomes: dict[int, Outcome]) -> None:
    assert {profile_of(seed) for seed in SEEDS} == set(Profile)
    assert {outcome.plan.ordered for outcome in outcomes.values()} == {True, False}
    small = [outcomes[seed] for seed in SEEDS]
    assert all(outcome.tally.admitted > 500 and outcome.tally.denied > 500 for outcome in small)
    assert all(outcome.checks > 3 for outcome in small)
    together = sum((outcome.tally.scripts for outcome in outcomes.values()), start=outcomes[0].tally.scripts)
    assert set(together) >= {"reserve", "settle", "release", "cancel", "renew", "reassert", "sweep", "acknowledge"}
    assert sum(outcome.tally.settled_late for outcome in outcomes.values())
    assert sum(outcome.tally.probes for outcome in outcomes.values())
    assert sum(outcome.forgotten_nanousd for outcome in outcomes.values())


def test_most_calls_of_the_house_with_slabs_are_admitted_from_them(outcomes: dict[int, Outcome]) -> None:
    for seed in SLAB_SEEDS:
        assert outcomes[seed].from_slabs > outcomes[seed].reservations / 2
        assert outcomes[seed].tally.expired, "no slab was left by a dead worker"


@pytest.mark.parametrize(("place", "broken", "says"), [
    (Slab, {"take": lambda self, rid, charge: self.charges.setdefault(rid, charge) is charge}, "calls, and has"),
    (slabs, {"USE_SECONDS": 6.0}, "after it was held"),
    (slabs, {"window_ends_us": lambda *_: 2**60}, "in another window"),
])  # fmt: skip
def test_a_slab_that_gives_too_much_or_for_too_long_is_found(
    monkeypatch: pytest.MonkeyPatch, place: object, broken: dict[str, object], says: str
) -> None:
    for name, wrong in broken.items():
        monkeypatch.setattr(place, name, wrong)
    outcome = run(replace(plan_of(SLAB_SEEDS[0], horizon_us=50 * SECOND), faults=()))
    assert says in str(outcome.violation)


def test_a_seed_has_the_same_history_in_another_process(outcomes: dict[int, Outcome]) -> None:
    command = [sys.executable, "-c", _AGAIN.format(seed=REPLAYED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == outcomes[REPLAYED].digest


def test_a_ledger_that_settles_twice_is_found_and_its_history_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_who_was_settled(monkeypatch)
    failed = run(plan_of(0, horizon_us=30 * SECOND))
    assert failed.violation is not None
    found = shortest(failed)
    assert found.violation is not None
    assert len(found.plan.faults) + len(found.plan.callers) < len(failed.plan.faults) + len(failed.plan.callers)
    assert found.plan.horizon_us < failed.plan.horizon_us
    assert run(found.plan).digest == found.digest


def _forget_who_was_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger whose tombstones do not hold: a settlement that comes again is a reservation's that is unknown."""
    run_now = LocalEngine.run_now

    def forgetful(self: LocalEngine, name: str, args: object, *, pool: str = "") -> object:
        reply = run_now(self, name, args, pool=pool)  # type: ignore[arg-type]
        if name == "settle":
            reply[5::2] = [5 if code == 2 else code for code in reply[5::2]]
        return reply

    monkeypatch.setattr(LocalEngine, "run_now", forgetful)


def test_without_faults_nothing_is_refused_expired_or_told_twice() -> None:
    outcome = run(replace(plan_of(0), faults=(), horizon_us=10 * SECOND))
    assert outcome.violation is None
    assert (outcome.facts.refused, outcome.tally.expired, outcome.tally.unmatched) == (0, 0, 0)
    assert outcome.events == {}


def test_what_is_not_needed_for_a_failure_is_left_out() -> None:
    assert without(range(50), lambda kept: {7, 31} <= set(kept)) == (7, 31)


def test_each_kind_of_fault_is_drawn() -> None:
    drawn = {fault.kind for seed in range(60) for fault in plan_of(seed).faults}
    assert drawn == set(Kind)
