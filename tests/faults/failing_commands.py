"""A server that refuses the k-th command of a script, and what came of it, for every k.

Over the engine in this process: `redis.call` is put before the real one, counts, and raises when it is told to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from apikeyrouter.domain.models.accounting import State
from apikeyrouter.domain.models.escrow import ChildBooks
from apikeyrouter.domain.models.system_error import LedgerProtocolError
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.drift import Drift
from apikeyrouter.infrastructure.ledger.engine import Reply, encoded
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.records import unpack_numbers
from tests.faults.network import put_back
from tests.faults.simulation import at_once
from tests.ledger.cells import local_engine
from tests.ledger.histories import Call, Flush, History, Schema, Wind
from tests.ledger.support import CELL, NAMESPACE, START_US, Clock, Image, cell_key, local_image

COMMANDS_MAX = 40
"""No script makes more: its work is bounded (I14)."""
FAIRNESS = f"{NAMESPACE}:{{c:{CELL}}}:F:".encode()
_REFUSE = b"""
local real, at, seen = redis.call, 0, 0
redis.call = function(...)
  seen = seen + 1
  if seen == at then
    error('ERR refused by the test')
  end
  return real(...)
end
return function(wanted)
  at, seen = wanted, 0
end, function()
  return seen
end
"""


@dataclass(frozen=True, slots=True)
class Whole:
    """All that a cell holds, the counters of fairness apart."""

    image: Image
    fairness: dict[bytes, tuple[tuple[float, bytes], ...]]


@dataclass(frozen=True, slots=True)
class Failed:
    """A call whose `k`-th command failed, of `of` that it makes: what was before, after it, and after its repeat."""

    call: Call
    k: int
    of: int
    before: Whole
    broken: Whole
    reply: Reply
    """Of its repeat; empty: that failed."""
    repeated: Whole
    right: Whole
    """After the call that did not fail. A sweep is called, as a repeat is, until nothing is left to do."""
    right_reply: Reply

    @property
    def nothing_written(self) -> bool:
        """As if the call had not been made."""
        return self.broken == self.before

    @property
    def all_written(self) -> bool:
        """As if it had not failed; fairness is no accounting."""
        return self.broken.image == self.right.image

    @property
    def repeat_is_right(self) -> bool:
        """The same answer, or that it is known by now; and a cell that holds the same."""
        if self.nothing_written:
            return self.reply == self.right_reply and self.repeated == self.right
        if self.call.args[:1] == ["flip"] and self.reply and self.reply[0] == Code.CONFLICT:
            return self.repeated.image["L"] == self.before.image["L"]  # it is told; to be staged again
        return self._is_known() and accounts(self.repeated) == accounts(self.right)

    def _is_known(self) -> bool:
        """Whether the repeat says what the call would have said: with other numbers of writes, or that it was made."""
        if self.call.name == "settle" and self.reply and self.reply[0] == Code.OK:
            return {Code.OK, Code.REPLAYED, Code.UNMATCHED, Code.CONFLICT}.issuperset(self.reply[5::2])
        return bool(self.reply) and self.reply[0] in (Code.REPLAYED, self.right_reply[0])


class FailingCell:
    """A cell whose engine refuses the command that it is told to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.engine: LocalEngine = local_engine(self.clock)
        self._fail_at, self._seen = self.engine._lua.execute(_REFUSE)
        self._ledger = CellLedger(self.engine)
        self.commands = 0
        """How many commands the last call made."""
        self._own = b""

    def run(self, call: Call, *, k: int = 0) -> Reply | None:
        """The reply; None: the `k`-th command failed, and the script with it."""
        self._fail_at(k)
        try:
            return self.engine.run_now(call.name, encoded(call.args), pool=call.pool)
        except LedgerProtocolError:
            if not k:
                raise
            return None
        finally:
            self.commands = int(self._seen())
            self._fail_at(0)

    def look(self) -> Whole:
        """What it holds now."""
        found = {bytes(key): ranked[b"scores"] for key, ranked in self._doors()[b"ranked"]().items()}
        pools = {key: tuple((score, member) for member, score in scores.items()) for key, scores in found.items()}
        fairness = {key: tuple(sorted(pool)) for key, pool in pools.items() if key.startswith(FAIRNESS) and pool}
        return Whole(local_image(self.engine), fairness)

    def be(self, whole: Whole) -> None:
        """Hold this again."""
        self.engine.flush()
        put_back(self.engine, whole.image)
        for key, order in whole.fairness.items():
            for score, member in order:
                self._doors()[b"redis"][b"call"](b"ZADD", key, score, member)

    def _doors(self) -> Any:
        return self.engine._lua.globals()

    def _repeated(self, call: Call) -> Reply:
        try:
            reply = self.run(call) or []
            self._sweep_on(call, reply)
            return reply
        except LedgerProtocolError:
            return []

    def _sweep_on(self, call: Call, reply: Reply) -> None:
        """As housekeeping does it: a sweep that found something is followed by another one."""
        while call.name == "sweep" and reply[0] == Code.OK and any(cast("list[int]", reply[5:])):
            reply = self.run(call) or [0]

    def drift(self) -> list[Drift]:
        """What the ledger's own audit finds, beside what a home holds for other cells, which was granted to them."""
        fields = [field.decode() for field in self.look().image["L"] if field[:2] in (b"l:", b"s:")]
        lanes = [field[2:] for field in fields if field.startswith("l:")]
        scopes = [field[2:] for field in fields if field.startswith("s:")]
        return [drift for drift in at_once(self._ledger.audit(lanes=lanes, scopes=scopes)) if not self._granted(drift)]

    def _granted(self, drift: Drift) -> bool:
        if drift.counter != "held":
            return False
        books = at_once(self._ledger.grant(drift.where, 1, ChildBooks()))
        return drift.counted - drift.recomputed == books.granted

    def each_failure(self, call: Call) -> Iterator[Failed]:
        """Every command of this call fails once, and the call is repeated each time. The cell is left as it was."""
        before = self.look()
        right_reply = self.run(call)
        of = self.commands
        assert right_reply is not None
        self._sweep_on(call, right_reply)
        right = self.look()
        for k in range(1, of + 1):
            self.be(before)
            if self.run(call, k=k) is not None:
                assert self.commands < k, f"{call.name} went on when its command {k} of {of} had failed"
                continue  # what is kept in memory meanwhile need not be read
            broken = self.look()
            yield Failed(call, k, of, before, broken, self._repeated(call), self.look(), right, right_reply)
        self.be(before)

    def live(self, seed: int, events: int) -> Iterator[Call]:
        """A random history; each call is given out before it is made."""
        history = History(seed, START_US)
        for event in history.events(events):
            match event:
                case Call() if not _ends_at_once(event):
                    yield event
                    self.run(event)
                case Wind(now_us=now_us):
                    self.clock.now_us = now_us
                case Flush(scripts_only=scripts_only):
                    if not scripts_only:
                        self.engine.flush()
                case Schema(ours=ours):
                    self._set_schema(ours=ours)

    def _set_schema(self, *, ours: bool) -> None:
        poke = self.engine._lua.globals()[b"poke"]
        key, image = cell_key("L").encode(), self.look().image["L"]
        if ours:
            poke(key, b"", self._own)
        elif b"" in image:
            self._own = image[b""]
            poke(key, b"", b"\0" * 8 + self._own[8:])


def _ends_at_once(call: Call) -> bool:
    """A reserve whose lease is over when it begins: nobody makes one."""
    return call.name == "reserve" and len(call.args) > 2 and bytes(encoded(call.args)[2][8:16]) == b"\0" * 8


def accounts(whole: Whole) -> dict[str, object]:
    """What a cell holds, without the numbers of its writes and configurations: a repeat may be one more of each.

    And without what stands in an index and does not belong there: whoever comes by drops it, and nothing counts it.
    """
    told: dict[str, object] = dict(whole.image)
    fields = whole.image["L"]
    version = unpack_numbers(fields[b""])[4] if b"" in fields else 0
    told["L"] = {field: _without_numbers(field, value, version) for field, value in fields.items()}
    states = {field: unpack_numbers(value[:16])[1] for field, value in fields.items() if field[:2] == b"r:"}
    buried = whole.image["G"]
    told["D"] = {
        rid: due for rid, due in whole.image["D"].items()
        if states.get(rid) not in (None, State.SUSPENDED, State.EXPIRED) and rid not in buried
    }  # fmt: skip
    told["S"] = {rid: due for rid, due in whole.image["S"].items() if states.get(rid) == State.SUSPENDED}
    told["G"] = {rid: due for rid, due in buried.items() if rid in states}
    return told


def _without_numbers(field: bytes, value: bytes, version: int) -> object:
    if field == b"":
        numbers = unpack_numbers(value)
        return numbers[3], numbers[5:]
    if field[:2] in (b"l:", b"s:"):
        return unpack_numbers(value[:8])[0] == version, value[16:]
    return value
