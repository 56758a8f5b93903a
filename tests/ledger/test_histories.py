"""What many processes saw of one cell, put in the order of `seq`, is a history that the oracle tells alike.

Redis serialises, and every reply says where it stands (law 9): so a check of the whole history takes one pass, and no
search. Nobody waits for anybody here, and the clock is the server's own.
"""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import pytest

from apikeyrouter.infrastructure.ledger.codes import Code
from tests.ledger.cells import require_same
from tests.ledger.crew import Crew, Job, Told
from tests.ledger.histories import FIELDS, Call, History
from tests.ledger.oracle import Oracle
from tests.ledger.support import CELL, NAMESPACE
from tests.servers import Server

LONG = os.environ.get("AKR_LONG") == "1"
CALLS = 5_000 if LONG else 200
WIDTH = 6
FIRST_SEED = 70
EPOCH = 77
LOOKS = (
    Call("snapshot", [0, *FIELDS]),
    Call("audit", [1, 0, 256]),
    Call("audit", [2, 0, 256]),
)
"""At the end: all that the cell shows."""


class Step(NamedTuple):
    """One call in the cell's own order, and whether it moved the cell."""

    told: Told
    seq: int
    wrote: bool


@pytest.mark.timeout(1800 if LONG else 300)
def test_what_many_processes_saw_is_one_history_that_the_oracle_tells_alike(crew: Crew, any_server: Server) -> None:
    told = everything(crew, any_server)
    steps = replayed(told)
    written = [step.seq for step in steps if step.wrote]
    assert written == list(range(1, len(written) + 1)), "a write that nobody was told of, or two of one seq"
    assert len(written) > len(told) / 10, "hardly anything happened"
    what_returned_before_another_was_sent_came_before_it(steps)


def everything(crew: Crew, server: Server) -> list[Told]:
    """The beginning, what all processes did at once, and a last look."""
    now_us = time.time_ns() // 1000
    histories = [History(FIRST_SEED + number, now_us) for number in range(len(crew))]
    begin = tuple(event for event in histories[0].beginning() if isinstance(event, Call) and event.name != "open")
    told = tell(crew, server, [(Call("open", [EPOCH]), *begin)])
    told += tell(crew, server, [calls_of(history, now_us) for history in histories], width=WIDTH)
    return told + tell(crew, server, [LOOKS])


def tell(crew: Crew, server: Server, calls: Sequence[Sequence[Call]], *, width: int = 1) -> list[Told]:
    url = server.unix_url or server.url
    jobs = [Job(url, NAMESPACE, CELL, tuple(each), width, virtual_time=False) for each in calls]
    jobs += [Job(url, NAMESPACE, CELL, (), width, virtual_time=False)] * (len(crew) - len(jobs))
    return [told for each in crew.run(jobs) for told in each]


def calls_of(history: History, now_us: int) -> list[Call]:
    """Calls of one process. All make the same rids, so that they do to each other's reservations what they like."""
    calls: list[Call] = []
    while len(calls) < CALLS:
        history.now_us = now_us  # its calendars are for the time that it really is
        calls += (event for event in history.one() if isinstance(event, Call) and event.name != "open")
    return calls


def replayed(told: Sequence[Told]) -> list[Step]:
    """The history in the cell's order, each reply held against the oracle's at the time that the reply names."""
    oracle = Oracle()
    steps: list[Step] = []
    for each in sorted((each for each in told if each.reply[1]), key=place):
        before = oracle.seq
        answer = oracle.run(each.call.name, each.call.args, pool=each.call.pool, now=cast("int", each.reply[3]))
        require_same(answer, each.reply, what=f"step {len(steps)}: {each.call}")
        steps.append(Step(each, oracle.seq, wrote=oracle.seq != before))
    refused = [each for each in told if not each.reply[1]]
    assert all(each.reply[0] == Code.BAD_ARGUMENT for each in refused), "what does not say when it was, did nothing"
    return steps


def place(told: Told) -> tuple[int, int]:
    """What wrote `seq` came before all that only read there, and both say what time it was."""
    _, _, seq, now, *_ = told.reply
    return cast("int", seq), cast("int", now)


def what_returned_before_another_was_sent_came_before_it(steps: Sequence[Step]) -> None:
    returned = sorted(steps, key=lambda step: step.told.received_ns)
    done, highest = 0, -1
    for step in sorted(steps, key=lambda step: step.told.sent_ns):
        while returned[done].told.received_ns < step.told.sent_ns:
            highest = max(highest, returned[done].seq)
            done += 1
        assert step.seq > highest or (step.seq == highest and not step.wrote), f"{step} after seq {highest}"
