"""Many real processes want one scarce thing at once: exactly what there is of it is given, and the rest costs nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pytest

from apikeyrouter.domain.models.accounting import AMOUNT_MAX, LaneConfig, Period, Reason, RetryKind, ScopeConfig
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.engine import Reply
from tests.ledger.cells import VirtualRedis, ledger_over, local_engine, require_same
from tests.ledger.crew import Crew, Job, Told
from tests.ledger.histories import Call
from tests.ledger.oracle import Oracle
from tests.ledger.support import (
    CELL,
    MINUTE,
    NAMESPACE,
    SECOND,
    START_US,
    Clock,
    bucket,
    budget,
    calendar,
    configure,
    in_flight,
    lane,
    local_image,
    redis_image,
    sliding,
    window,
)
from tests.servers import Server

PROCESSES, EACH, LIMIT, COST = 8, 250, 100, 7
NOW_US = START_US + 12_345_678
DAY_ENDS = START_US + 16 * 60 * MINUTE


@dataclass(frozen=True, slots=True)
class Scarce:
    """Something of which there are 100, and what a denial must say about it."""

    configs: tuple[LaneConfig | ScopeConfig, ...]
    reason: Reason
    retry_at: int
    trust: RetryKind
    scopes: tuple[str, ...] = ()


SCARCE = {
    "a fixed window": Scarce((lane("lane", window(LIMIT)),), Reason.LIMIT, START_US + MINUTE, RetryKind.EXACT),
    "a calendar day": Scarce((lane("lane", calendar(LIMIT)),), Reason.LIMIT, DAY_ENDS, RetryKind.EXACT),
    "a sliding window": Scarce(
        (lane("lane", sliding(LIMIT)),), Reason.LIMIT, START_US + 10 * SECOND + 7 * 10 * SECOND, RetryKind.EXACT
    ),
    "a bucket": Scarce((lane("lane", bucket(LIMIT)),), Reason.LIMIT, NOW_US + MINUTE // LIMIT, RetryKind.EXACT),
    "what is in flight": Scarce(
        (lane("lane", in_flight(LIMIT)),), Reason.LIMIT, NOW_US + 10_000, RetryKind.ESTIMATED
    ),
    "a total budget": Scarce(
        (lane(), budget("budget", LIMIT * COST + COST - 1)), Reason.BUDGET, NOW_US + SECOND, RetryKind.ESTIMATED,
        ("budget",),
    ),
    "a day's budget": Scarce(
        (lane(), budget("budget", LIMIT * COST, period=Period.DAILY)), Reason.BUDGET, NOW_US + SECOND,
        RetryKind.ESTIMATED, ("budget",),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Eight processes."""
    made = Crew(PROCESSES)
    yield made
    made.dismiss()


@pytest.mark.parametrize("what", SCARCE)
async def test_of_2000_at_once_exactly_100_are_admitted_and_1900_leave_no_trace(
    any_server: Server, crew: Crew, what: str
) -> None:
    scarce = SCARCE[what]
    clock = Clock(NOW_US)
    server = VirtualRedis(any_server.unix_url or any_server.url, clock)
    await server.open()
    ledger = ledger_over(server)
    await ledger.open()
    await configure(ledger, *scarce.configs)
    await ledger.reserve_nothing_to_learn_calendars() if False else None
    told = [one for member in crew.run(jobs(any_server, scarce)) for one in member]
    assert [code_of(one) for one in told].count(Code.ADMITTED) == LIMIT
    assert [code_of(one) for one in told].count(Code.DENIED) == PROCESSES * EACH - LIMIT
    for one in told:
        if code_of(one) == Code.DENIED:
            reason, _, _, retry_at, trust = one.reply[6:]
            assert (reason, retry_at, trust) == (scarce.reason, scarce.retry_at, scarce.trust)
    await server.close()
