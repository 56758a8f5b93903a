"""Law 3 under faults: a clock that jumps is found out, one that does not is not blamed, and the doubt ends."""

import pytest

from tests.faults.faults import Fault, Kind
from tests.faults.simulation import HORIZON_US, WORKERS, Outcome, Plan, run
from tests.ledger.support import DAY, HOUR, SECOND

JUMP_US = 20 * SECOND
KILLED = tuple(Fault(JUMP_US + SECOND, Kind.CRASH, number, SECOND // 2) for number in range(WORKERS))


def after(*faults: Fault, seed: int = 0) -> Outcome:
    """A run with these faults only."""
    return run(Plan(seed, faults, callers=tuple(range(6)), horizon_us=HORIZON_US // 2))


@pytest.mark.parametrize("seed", range(2))
def test_a_worker_that_is_stopped_does_not_blame_the_stores_clock(seed: int) -> None:
    stopped = [Fault(at * SECOND, Kind.PAUSE, number, 3 * SECOND) for at, number in ((4, 1), (9, 2), (14, 3), (19, 0))]
    outcome = after(*stopped, seed=seed)
    assert outcome.violation is None
    assert outcome.tally.suspected == 0


@pytest.mark.parametrize("step_us", [DAY, -DAY, 3 * SECOND, -3 * SECOND])
def test_a_clock_that_jumps_is_found_out_in_the_time_that_a_disagreement_takes(step_us: int) -> None:
    """Two seconds of it, when the clock stands still, and then a second look."""
    outcome = after(Fault(JUMP_US, Kind.STORE_CLOCK, -1, 0, step_us))
    assert outcome.violation is None
    assert outcome.tally.suspected > 0
    assert outcome.suspected_after_us < 4 * SECOND


def test_the_doubt_ends_when_all_who_had_it_are_dead() -> None:
    outcome = after(Fault(JUMP_US, Kind.STORE_CLOCK, -1, 0, HOUR), *KILLED)
    assert outcome.tally.suspected > 0
    assert outcome.violation is None
