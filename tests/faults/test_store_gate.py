"""A store that is stopped, slow, half open or gone: nobody waits longer than the deadline, and it is found again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Candidate, LaneConfig, ReserveRequest
from apikeyrouter.domain.models.system_error import LedgerAwayError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import DEADLINE_SECONDS, ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.faults.proxy import Proxy, proxied
from tests.router.house import until
from tests.servers import Server, default_flavour, running

LANE = LaneConfig(id="lane")


def wish() -> ReserveRequest:
    """A small one."""
    return ReserveRequest(rid=new_rid(), candidates=(Candidate(lanes=("lane",)),))


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is ours to stop."""
    with running(default_flavour()) as made:
        yield made


@pytest_asyncio.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    """A proxy in front of it."""
    parts = urlsplit(server.url)
    async with proxied(parts.hostname or "", parts.port or 0) as made:
        yield made


@pytest_asyncio.fixture
async def ledger(proxy: Proxy) -> AsyncIterator[ScriptLedger]:
    """A ledger over the proxy."""
    made = ScriptLedger(RedisEngine(f"redis://127.0.0.1:{proxy.port}/0"))
    await made.open()
    await made.put(lanes=[LANE])
    await made.reserve(wish())
    yield made
    await made.close()


async def refused(ledger: ScriptLedger, count: int = 1) -> float:
    """So many reserves at once, none of which is answered; how long the slowest took, in seconds of the loop."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    answers = await asyncio.gather(*(ledger.reserve(wish()) for _ in range(count)), return_exceptions=True)
    assert all(isinstance(answer, LedgerUnavailableError) for answer in answers), answers
    return loop.time() - began


async def serves(ledger: ScriptLedger) -> bool:
    """Whether a reserve is answered."""
    try:
        await ledger.reserve(wish())
    except LedgerUnavailableError:
        return False
    return True


async def away_and_back(ledger: ScriptLedger) -> None:
    """It is away now: calls are not even sent. It comes back without being asked."""
    assert ledger.gate.away
    with pytest.raises(LedgerAwayError):
        await ledger.reserve(wish())


@pytest.mark.parametrize("how", ["slow", "silent", "cut", "refusing"])
async def test_a_store_that_does_not_answer_is_left_alone_until_it_does(
    ledger: ScriptLedger, proxy: Proxy, how: str
) -> None:
    told: list[bool] = []
    ledger.gate.on_change = lambda away, _seconds, _why: told.append(away)
    setattr(
        proxy, *{"slow": ("delay_s", 4 * DEADLINE_SECONDS), "silent": ("silent", True)}.get(how, ("refusing", True))
    )
    if how in ("cut", "refusing"):
        proxy.cut()
    for _ in range(3):
        await refused(ledger, 5)
    await away_and_back(ledger)
    proxy.delay_s, proxy.silent, proxy.refusing = 0.0, False, False
    await until(lambda: not ledger.gate.away)
    assert await serves(ledger)
    assert told == [True, False]
    assert ledger.gate.times_away == 1


async def test_a_stopped_server_holds_nobody_up_and_is_found_again(ledger: ScriptLedger, server: Server) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await refused(ledger, 50)
        await away_and_back(ledger)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await until(lambda: not ledger.gate.away)
    assert await serves(ledger)


async def test_all_that_wait_for_a_connection_wait_for_the_same_one(server: Server) -> None:
    """Fifty calls on a server that takes connections and says nothing: one deadline for all, not one each."""
    engine = RedisEngine(server.url)
    await engine.open()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert engine._main.current is not None
        engine._main.current.close()
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await asyncio.gather(*(engine.run("snapshot", [0]) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(answer, LedgerUnavailableError) for answer in answers)
        assert loop.time() - began < 50 * DEADLINE_SECONDS / 2
    finally:
        os.kill(server.pid, signal.SIGCONT)
        await engine.close()


async def test_while_it_is_away_one_process_asks_at_most_some_times_a_second(
    ledger: ScriptLedger, proxy: Proxy
) -> None:
    proxy.refusing = True
    proxy.cut()
    while not ledger.gate.away:
        await refused(ledger)
    asked = proxy.accepted
    callers = [asyncio.create_task(refused(ledger)) for _ in range(500)]
    await asyncio.gather(*callers)
    assert proxy.accepted <= asked + 1
    proxy.refusing = False
    await until(lambda: not ledger.gate.away)
    assert proxy.accepted <= asked + 20


async def test_what_was_not_answered_is_given_to_whoever_cancels_it(ledger: ScriptLedger, proxy: Proxy) -> None:
    unanswered: list[bytes] = []
    ledger.on_unanswered = unanswered.append
    proxy.silent = True
    request = wish()
    with pytest.raises(LedgerUnavailableError):
        await ledger.reserve(request)
    assert unanswered == [request.rid]
    while not ledger.gate.away:
        await refused(ledger)
    sent = len(unanswered)
    await refused(ledger)
    assert len(unanswered) == sent  # what was not sent needs no cancel
