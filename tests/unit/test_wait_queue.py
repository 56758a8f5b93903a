"""When whose turn it is asks, whatever the ledger said: nobody stands before room that there is."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from apikeyrouter.domain.models.accounting import Loss, Reason, RetryKind
from apikeyrouter.domain.models.call import Call, Facts, Refusal
from apikeyrouter.domain.models.ranking import Ranking
from apikeyrouter.domain.models.system_error import NoEligibleKeysError
from apikeyrouter.serving.waiting import UNCLAIMED_DENIALS, WaitQueue

LINE = "line"
FAR_US = 60_000_000
SECONDS_MAX = 20
"""Less than what denials say here that it takes."""

pytestmark = pytest.mark.asyncio


def denied(reason: Reason = Reason.LIMIT, *, us: int = FAR_US, kind: RetryKind = RetryKind.ESTIMATED) -> Any:
    """A denial, said to last so long."""
    loss = Loss(index=0, reason=reason, where="g:a:*", limit="", retry_at_us=us, retry_kind=kind)
    return NoEligibleKeysError(retry_after_us=us, binding=loss)


class Waiter:
    """One that stands in line. `asked`: of each time, whether what is kept for others was free to it."""

    def __init__(self, queue: WaitQueue, answer: Callable[[], Awaitable[None]], *, priority: int = 0) -> None:
        self.asked: list[bool] = []
        self._answer = answer
        self.call = Call(
            request_id="r", operation="chat", model="m", stream=False, started=0.0, principal="p", priority=priority
        )
        self.facts = Facts(
            request_id="r", operation="chat", model="m", stream=False, objective="fairness", team=None, client=None,
            at_us=0,
        )  # fmt: skip
        until = time.perf_counter() + 3 * FAR_US / 1e6
        self.task = asyncio.create_task(queue.stand(LINE, self.call, self.facts, self._ask, denied(), until))

    async def _ask(self) -> None:
        self.asked.append(self.call.ungated)
        self.facts.refusal = None
        try:
            await self._answer()
        except NoEligibleKeysError as exc:
            losses = () if exc.binding is None else (exc.binding,)
            self.facts.refusal = Refusal(
                ranking=Ranking(objective=("fairness", (), (), ()), measures=(), standings=[]), losses=losses
            )
            raise

    async def served(self) -> None:
        await asyncio.wait_for(self.task, SECONDS_MAX)


async def test_what_is_only_estimated_is_not_waited_for() -> None:
    """An end that was booked before somebody stood in line told nobody, and other processes tell nobody at all."""
    queue, denials = WaitQueue(), [denied(), denied()]

    async def answer() -> None:
        if denials:
            raise denials.pop()

    waiter = Waiter(queue, answer)
    await waiter.served()
    assert (waiter.asked, queue.length) == ([False] * 3, 0)


async def test_who_becomes_first_while_it_is_being_denied_asks_once_more() -> None:
    queue, asking, denying, leaving = WaitQueue(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer() -> None:
        if not asking.is_set():
            asking.set()
            await denying.wait()
            raise denied(kind=RetryKind.EXACT)

    async def leave() -> None:
        await leaving.wait()

    batch = Waiter(queue, answer, priority=1)
    await asking.wait()
    person = Waiter(queue, leave)
    while not person.asked:
        await asyncio.sleep(0)
    leaving.set()
    await person.served()
    denying.set()
    await batch.served()
    assert len(batch.asked) == 2


async def test_room_that_is_kept_for_others_is_anybodys_when_they_do_not_come_for_it() -> None:
    queue = WaitQueue()

    def waiter() -> Waiter:
        async def answer() -> None:
            if not made.call.ungated:
                raise denied(Reason.FAIR_SHARE, us=100_000)

        made = Waiter(queue, answer)
        return made

    first, second = waiter(), waiter()
    await first.served()
    assert first.asked.count(False) >= UNCLAIMED_DENIALS, "they have some time to come"
    assert first.asked[-1]
    await second.served()
    assert second.asked == [True], "they have not come"
    assert not first.call.ungated, "what it tries elsewhere is gated again"


async def test_room_that_others_take_is_kept_for_them() -> None:
    queue, reasons = WaitQueue(), [Reason.FAIR_SHARE, Reason.FAIR_SHARE, Reason.LIMIT] * 3

    async def answer() -> None:
        if reasons:
            raise denied(reasons.pop(), us=150_000)

    waiter = Waiter(queue, answer)
    await waiter.served()
    assert waiter.asked == [False] * 10


async def test_room_that_somebody_was_served_of_was_not_kept_all_the_time() -> None:
    queue = WaitQueue()

    def waiter(denials: int) -> Waiter:
        left = [denied(Reason.FAIR_SHARE, us=150_000) for _ in range(denials)]

        async def answer() -> None:
            if left:
                raise left.pop()

        return Waiter(queue, answer)

    first, second = waiter(UNCLAIMED_DENIALS - 1), waiter(1)
    await first.served()
    await second.served()
    assert first.asked + second.asked == [False] * (UNCLAIMED_DENIALS + 2)
