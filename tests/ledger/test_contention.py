"""Many real processes want one scarce thing at once: exactly what there is of it is given; the rest costs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pytest

from apikeyrouter.domain.models.accounting import LaneConfig, Period, Reason, RetryKind, ScopeConfig
from apikeyrouter.infrastructure.ledger.calendars import boundaries, calendar_number
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.encoding import lane_entry, scope_entry
from apikeyrouter.infrastructure.ledger.engine import Reply
from tests.ledger.cells import VirtualRedis, local_engine, require_same
from tests.ledger.crew import Crew, Job
from tests.ledger.histories import Call, Offer, Wish
from tests.ledger.oracle import Oracle
from tests.ledger.support import (
    CELL,
    MINUTE,
    NAMESPACE,
    SECOND,
    START_US,
    Clock,
    Image,
    bucket,
    budget,
    calendar,
    in_flight,
    lane,
    local_image,
    redis_image,
    sliding,
    window,
)
from tests.servers import Server

EACH, LIMIT, COST = 250, 100, 7
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


@pytest.mark.parametrize("what", SCARCE)
async def test_of_2000_at_once_exactly_100_are_admitted_and_1900_leave_no_trace(
    any_server: Server, crew: Crew, what: str
) -> None:
    scarce, clock = SCARCE[what], Clock(NOW_US)
    server = VirtualRedis(any_server.unix_url or any_server.url, clock)
    await server.open()
    beginning = await begin(server, scarce)
    told = [one for member in crew.run(jobs(any_server, scarce, len(crew))) for one in member]
    admitted = sorted((one for one in told if one.reply[0] == Code.ADMITTED), key=lambda one: seq_of(one.reply))
    denied = [one for one in told if one.reply[0] == Code.DENIED]
    assert (len(admitted), len(denied)) == (LIMIT, len(crew) * EACH - LIMIT)
    assert {(one.reply[6], *one.reply[9:]) for one in denied} == {(scarce.reason, scarce.retry_at, scarce.trust)}
    assert redis_image(server.client) == image_after([*beginning, *(one.call for one in admitted)])
    if scarce.trust is RetryKind.EXACT:
        clock.now_us = scarce.retry_at - 1
        assert code_of(await ask(server, denied[0].call)) == Code.DENIED
        clock.now_us += 1
        assert code_of(await ask(server, denied[0].call)) == Code.ADMITTED
    await server.close()


async def begin(server: VirtualRedis, scarce: Scarce) -> list[Call]:
    """A configured cell; the calls that made it."""
    lanes = [lane_entry(config) for config in scarce.configs if isinstance(config, LaneConfig)]
    scopes = [scope_entry(config) for config in scarce.configs if isinstance(config, ScopeConfig)]
    calls = [Call("open", [7])]
    for name, numbers in lanes + scopes:
        calls.append(Call("configure", ["put", 0, name, len(numbers), *numbers]))
    number = calendar_number(Period.DAILY, "UTC")
    bounds = boundaries(number, NOW_US)
    calls.append(Call("configure", ["calendar", 0, f"c:{number}", len(bounds), *bounds]))
    for call in calls:
        await ask(server, call)
    return calls


def jobs(server: Server, scarce: Scarce, members: int) -> list[Job]:
    url = server.unix_url or server.url
    return [
        Job(url, NAMESPACE, CELL, tuple(reserve(b"%d.%d" % (member, n), scarce) for n in range(EACH)), EACH, True)
        for member in range(members)
    ]


def reserve(rid: bytes, scarce: Scarce) -> Call:
    charge = (1, 1, 2, COST, COST)
    return Wish(
        rid=rid, lease_us=30 * SECOND, shared=tuple(scarce.scopes), charges=(charge,), offers=(Offer(("lane",)),)
    ).reserve()


def image_after(calls: Sequence[Call]) -> Image:
    """What a cell holds after these calls and no others, and the oracle agrees with each."""
    engine, oracle = local_engine(Clock(NOW_US)), Oracle()
    for call in calls:
        reply = engine.run_now(call.name, call.args)
        require_same(oracle.run(call.name, call.args, now=NOW_US), reply, what=str(call))
    return local_image(engine)


async def ask(server: VirtualRedis, call: Call) -> Reply:
    return await server.run(call.name, call.args)


def code_of(reply: Reply) -> object:
    return reply[0]


def seq_of(reply: Reply) -> int:
    return cast("int", reply[2])
