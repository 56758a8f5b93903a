"""What eight real processes were told, put in the order of `seq`, is one history: the oracle's, reply for reply.

Redis runs one script at a time, so that `seq` is the order; a full check of linearizability is one replay.
"""

import os
import random
from collections.abc import Iterator, Sequence
from typing import cast

from apikeyrouter.domain.models.accounting import Breaker, LaneConfig, ScopeConfig, SuspenseRule
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.encoding import lane_entry, scope_entry
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.ledger.cells import require_same
from tests.ledger.crew import TIMEOUT_S, Crew, Job, Told
from tests.ledger.histories import Call
from tests.ledger.oracle import Oracle
from tests.ledger.support import CELL, NAMESPACE, SECOND, bucket, budget, in_flight, sliding, window
from tests.servers import Server

LONG = os.environ.get("AKR_LONG") == "1"
CALLS_EACH, WIDTH = 5_000 if LONG else 250, 12
MILLISECOND = 1_000
BREAKER = Breaker(failures=3, window_us=SECOND, open_us=20 * MILLISECOND, open_max_us=200 * MILLISECOND)
LANES = (
    LaneConfig(id="org", limits=(bucket(100, SECOND), bucket(20_000, SECOND, name="tpm")), breaker=BREAKER, fair=True),
    LaneConfig(id="group", limits=(window(40, SECOND // 2), sliding(9_000, SECOND, name="itpm"))),
    LaneConfig(id="key", limits=(in_flight(6),), breaker=BREAKER),
)
SCOPES = (
    budget("team", 3_000),
    budget("all", 200_000, hard=False),
    ScopeConfig(
        id="client", limit_nanousd=40_000, hard=True, period=budget().period, suspense=SuspenseRule.REFUND,
        suspense_after_us=50 * MILLISECOND,
    ),
)  # fmt: skip


async def test_the_replies_to_eight_processes_replay_through_the_oracle_exactly(any_server: Server, crew: Crew) -> None:
    beginning = await begin(any_server)
    url = any_server.unix_url or any_server.url
    members = [tuple(script_of(member, len(crew))) for member in range(len(crew))]
    told = crew.run([Job(url, NAMESPACE, CELL, calls, WIDTH, False) for calls in members])
    everything = sorted(((one.call, one.reply) for member in told for one in member), key=lambda row: when(row[1]))
    oracle = Oracle()
    for call, reply in [*beginning, *everything]:
        answer = oracle.run(call.name, call.args, pool=call.pool, now=when(reply)[1])
        require_same(answer, reply, what=f"after seq {oracle.seq}: {call}")
    require_real_time_order([one for member in told for one in member])
    codes = {(call.name, reply[0]) for call, reply in everything}
    assert codes >= {("reserve", Code.ADMITTED), ("reserve", Code.DENIED), ("settle", Code.OK), ("renew", Code.OK)}


async def begin(server: Server) -> list[tuple[Call, Reply]]:
    """A configured cell, and what was said while it was made."""
    engine = RedisEngine(server.url, namespace=NAMESPACE, cell=CELL, timeout_s=TIMEOUT_S)
    await engine.open()
    words: list[Argument] = ["put", 0]
    for name, numbers in [*map(lane_entry, LANES), *map(scope_entry, SCOPES)]:
        words += [name, len(numbers), *numbers]
    calls = [Call("open", [7]), Call("configure", words)]
    told = [(call, await engine.run(call.name, call.args)) for call in calls]
    await engine.close()
    return told


def script_of(member: int, members: int) -> Iterator[Call]:
    """What one member asks: reserves, and all that can be done with its own and others' reservations."""
    draw = random.Random(member)
    for number in range(CALLS_EACH):
        rid = b"%d.%d" % (member, number)
        other = b"%d.%d" % (draw.randrange(members), draw.randrange(max(1, number - 20), number + 2))
        kind = draw.choices(["reserve", "settle", "other"], [50, 30, 20])[0]
        if kind == "reserve":
            yield reserve(draw, rid)
        elif kind == "settle":
            cost, outcome = draw.choice([0, 40, 120]), draw.choice([1, 1, 1, 2])
            yield Call("settle", [other, draw.choice([0, 50, 400]), 10, cost, outcome, draw.choice([1, 3]), 1_000])
        else:
            yield draw.choice(
                [
                    Call("release", [other, draw.randint(0, 1), draw.choice([0, 1]), 500]), Call("cancel", [other]),
                    Call("renew", [20 * MILLISECOND, other, rid]), Call("sweep", []),
                    Call("acknowledge", [other]), Call("snapshot", [0, 3, "org", "group", "key", 2, "team", "client"]),
                    Call("audit", [draw.randint(1, 2), 0, 256]), Call("record", ["group", draw.choice([0, 0, 2_000])]),
                ]
            )  # fmt: skip


def reserve(draw: random.Random, rid: bytes) -> Call:
    charges: list[Argument] = [2, 100, 20, 120, 80, 200, 300, 0, 300, 30, -1]
    offers: list[list[Argument]] = [
        [2, "org", "key", 0, 1], [1, "group", 1, "client", 1], [1, "free", 0, 2], [2, "group", "key", 0, 2]
    ]  # fmt: skip
    chosen = draw.sample(offers, draw.randint(1, 3))
    scopes = draw.sample(["team", "all"], draw.randint(0, 2))
    lease = draw.choice([5, 30, 1_000]) * MILLISECOND
    head: list[Argument] = [rid, 0, lease, draw.choice(["", "p", "q"]), 1, "pool", len(scopes), *scopes]
    return Call("reserve", [*head, *charges, len(chosen), *(word for offer in chosen for word in offer)], "pool")


def when(reply: Reply) -> tuple[int, int]:
    """Where in history a reply stands: after which write, and when since."""
    return cast("int", reply[2]), cast("int", reply[3])


def require_real_time_order(told: Sequence[Told]) -> None:
    """What was answered before something else was sent came before it."""
    answered_later = float("inf")
    for one in sorted(told, key=lambda one: when(one.reply), reverse=True):
        assert answered_later > one.sent_ns, f"{one.call} was ordered before something that was answered before it"
        answered_later = min(answered_later, one.received_ns)
