"""Keys that hold what they should not: the script fails, says so, and has written nothing. No other key is touched."""

from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest
import redis

from apikeyrouter.domain.models.accounting import LaneConfig, Period, ScopeConfig
from apikeyrouter.domain.models.system_error import LedgerProtocolError
from apikeyrouter.infrastructure.ledger.codes import Code
from tests.ledger.cells import VirtualRedis, ledger_over
from tests.ledger.histories import Call, Flush, History, Offer, Schema, Wind, Wish, used_words
from tests.ledger.support import DAY, HOUR, SECOND, Clock, bucket, cell_key, configure, whole_image, window, wish
from tests.servers import Server, running

LOOKS_MAX = 100_000
"""A node of its own is soon in order; it is asked at most so often."""
STRUCTURES = ("C0", "C1", "L", "D", "S", "G", "U", "F:pool")
CONFIGS = (
    LaneConfig(id="lane", limits=(bucket(100), window(9_000, name="tpm")), fair=True),
    ScopeConfig(id="budget", limit_nanousd=1_000, hard=True, period=Period.DAILY, suspense_after_us=HOUR),
)
NEW = Wish(
    rid=b"r:new", lease_us=SECOND, principal="p", pool="pool", shared=("budget",), charges=((1, 1, 2, 3, 3),),
    offers=(Offer(("lane",)),),
)  # fmt: skip
CALLS = (
    Call("open", [1]), Call("configure", ["put", 0, "l:new", 5, 0, 0, 0, 0, 0]), Call("configure", ["begin", 1]),
    Call("configure", ["stage", 9, "l:x", 1, 1]), Call("settle", used_words(b"r:open", 1, 1, 5, 1, 0, 9)),
    Call("settle", used_words(b"r:suspended", 1, 1, 5, 1, 0, 9)),
    Call("settle", used_words(b"r:unknown", 1, 1, 5, 1, 0, 9)),
    Call("release", [b"r:open", 0, 0, 0]), Call("cancel", [b"r:open"]), Call("cancel", [b"r:unknown"]),
    Call("renew", [SECOND, b"r:open"]), Call("acknowledge", [b"r:ended"]), Call("sweep", []),
    Call("record", ["l:lane", 5]), Call("suspect", [1]), Call("forgot", [1, 9, SECOND]),
    Call("claim", ["p", SECOND], pool="pool"),
    Call("snapshot", [0, "l:lane", "s:budget"]), Call("audit", [1, 0, 9]),
    Call("audit", [2, 0, 9]),
    NEW.reserve(), NEW.reassert(),
)  # fmt: skip
"""At least one call of every script, each with something to do."""


class Cell:
    """A cell on a server, in which something of everything is under way, that can be looked at and put back."""

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self.server = VirtualRedis(url, self.clock)
        self.client: redis.Redis = self.server.client

    async def fill(self) -> None:
        await self.server.open()
        ledger = ledger_over(self.server)
        await ledger.open()
        await configure(ledger, *CONFIGS)
        fair = {"scopes": ("budget",), "principal": "q", "pool": "pool"}
        await ledger.reserve(wish(rid=b"ended", lease_us=DAY))
        await ledger.cancel(b"ended")
        await ledger.reserve(wish(rid=b"suspended", lease_us=SECOND, scopes=("budget",)))
        self.clock.advance(SECOND)
        await ledger.sweep()
        for rid, lease_us in ((b"open", DAY), (b"due", SECOND)):
            await ledger.reserve(wish(rid=rid, lease_us=lease_us, **fair))  # type: ignore[arg-type]
        await ledger.reserve(wish(rid=b"due, without a scope", lease_us=SECOND))
        self.clock.advance(SECOND)
        await self.server.run("configure", ["begin", 9])
        self.server.tick()
        self.full = self.dump()

    def dump(self) -> dict[bytes, bytes]:
        """Every key of the server, byte for byte."""
        keys = cast("list[bytes]", self.client.keys("*"))
        return {key: cast("bytes", self.client.dump(key)) for key in keys}

    def put_back(self) -> None:
        self.client.flushdb()
        for key, value in self.full.items():
            self.client.restore(key, 0, value)

    async def require_all_or_nothing(self, call: Call) -> bool:
        """A call that fails must have written nothing. Whether it failed."""
        before = whole_image(self.client)
        try:
            await self.server.run(call.name, call.args, pool=call.pool)
        except LedgerProtocolError:
            assert whole_image(self.client) == before, f"{call} failed and had written"
            return True
        self.put_back()
        return False


@pytest.fixture
async def cell(any_server: Server) -> AsyncIterator[Cell]:
    """A cell with leases due and not, suspense, tombstones and fairness counters."""
    made = Cell(any_server.url)
    await made.fill()
    yield made
    await made.server.close()


async def test_without_corruption_every_script_has_something_to_do(cell: Cell) -> None:
    for call in CALLS:
        reply = await cell.server.run(call.name, call.args, pool=call.pool)
        assert reply[0] in {Code.OK, Code.ADMITTED, Code.CONFLICT}, call
        cell.put_back()


@pytest.mark.parametrize("name", STRUCTURES)
async def test_a_key_of_another_type_fails_before_anything_is_written(cell: Cell, name: str) -> None:
    failed = []
    for call in CALLS:
        cell.client.delete(cell_key(name))
        cell.client.set(cell_key(name), b"not what it should be")
        if name == "L":  # the virtual clock stands in L too
            cell.server.tick = lambda: None  # type: ignore[method-assign]
        failed.append(await cell.require_all_or_nothing(call))
        cell.put_back()
    assert any(failed), "no script has looked"


FIELDS = (("C0", "l:lane"), ("L", "l:lane"), ("L", "s:budget"), ("L", "r:open"))


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"garbage", b"garbage, longer than a number", b"\xff" * 9])
@pytest.mark.parametrize(("name", "field"), FIELDS)
async def test_garbage_in_a_record_fails_before_anything_is_written(
    cell: Cell, name: str, field: str, garbage: bytes
) -> None:
    failed = []
    for call in CALLS:
        cell.client.hset(cell_key(name), field, garbage)
        if name == "C0":  # a lane looks at its configuration when that has changed
            cell.client.hdel(cell_key("L"), "l:lane")
        failed.append(await cell.require_all_or_nothing(call))
        cell.put_back()
    assert any(failed), "no script has looked"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    """One node that owns every slot: `#!lua` scripts may not touch keys of slots that they did not declare."""
    with running(options=("--cluster-enabled", "yes")) as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            looks = (client.execute_command("CLUSTER", "INFO") for _ in range(LOOKS_MAX))
            assert any(b"cluster_state:ok" in look for look in looks)
        yield server


async def test_every_script_stays_in_one_slot_of_a_cluster(cluster: Server) -> None:
    clock = Clock()
    server = VirtualRedis(cluster.url, clock)
    await server.open()
    done: set[str] = set()
    for event in History(3, clock.now_us, flushes=False).events(1_500):
        match event:
            case Wind(now_us):
                clock.now_us = now_us
            case Call(name, args, pool):
                await server.run(name, args, pool=pool)
                done.add(name)
            case Flush() | Schema():
                pass
    slots = {server.client.cluster("keyslot", key) for key in server.client.keys("*")}
    assert len(slots) == 1
    assert done >= {call.name for call in CALLS}
    await server.close()


async def test_a_script_that_touched_another_slot_would_be_refused_by_that_cluster(cluster: Server) -> None:
    script = "#!lua\nredis.call('GET', KEYS[1])\nreturn redis.call('GET', 'elsewhere')"
    with cluster.client() as client, pytest.raises(redis.ResponseError, match="slot"):
        client.eval(script, 1, "here")
