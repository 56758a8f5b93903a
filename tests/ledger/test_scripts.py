"""The scripts as they are built: declared keys, layouts shared with Python, and failure at every call."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from apikeyrouter.domain.models.accounting import (
    LIMITS_PER_LANE_MAX,
    LimitKind,
    Metric,
    Reason,
    RetryKind,
    State,
    SuspenseRule,
    UnpricedRule,
)
from apikeyrouter.domain.models.system_error import LedgerProtocolError
from apikeyrouter.infrastructure.ledger import records
from apikeyrouter.infrastructure.ledger.arguments import request_args, reserve_args, rid_field, settle_args
from apikeyrouter.infrastructure.ledger.calendars import FUNDED, boundaries
from apikeyrouter.infrastructure.ledger.encoding import scope_entry
from apikeyrouter.infrastructure.ledger.engine import Argument
from apikeyrouter.infrastructure.ledger.scripts import SCRIPT_NAMES, load_library, lua_root
from tests.ledger.support import (
    DAY,
    SECOND,
    LocalCell,
    bucket,
    budget,
    cell_key,
    cost,
    in_flight,
    lane,
    local_cell,
    new_rid,
    used,
    wish,
)

POOL = "pool"
WRITES = {"HSET", "HSETNX", "HDEL", "ZADD", "ZREM", "DEL", "UNLINK"}
_NUMBERS = re.compile(r"^local ([A-Z][\w, ]*) = (\d[\d, ]*)$", re.MULTILINE)


def constants(include: str) -> dict[str, int]:
    """Every named number of one include."""
    source = lua_root().joinpath("include", f"{include}.lua").read_text(encoding="utf-8")
    found: dict[str, int] = {}
    for names, numbers in _NUMBERS.findall(source):
        found |= zip(names.split(", "), map(int, numbers.split(", ")), strict=True)
    return found


def test_the_librarys_name_tells_its_text_and_each_function_bears_it() -> None:
    real, virtual = load_library(), load_library(virtual_time=True)
    assert real.name != virtual.name
    for library in (real, virtual):
        assert library.text.startswith(f"#!lua name={library.name}\n")
        registered = re.findall(r"function_name = '(\w+)'", library.text)
        assert registered == [library.scripts[name].function for name in SCRIPT_NAMES]
        assert all(function.startswith(f"{library.name}_") for function in registered)


def test_a_test_gives_the_time_where_it_is_not_read() -> None:
    assert load_library().text.count("'TIME'") == 1
    assert "'TIME'" not in load_library(virtual_time=True).text


def test_layouts_are_the_same_on_both_sides() -> None:
    lane_numbers, scope_numbers = constants("layout_lane"), constants("layout_scope")
    reservation = constants("layout_reservation")
    rest = constants("record")["REST"]  # stands before the others in memory, behind them in the record
    assert lane_numbers["LANE_SIZE"] - rest == records.LANE_SIZE
    assert lane_numbers["HEALTH_SIZE"] == records.HEALTH_SIZE
    assert lane_numbers["LIMIT_SIZE"] == records.LIMIT_SIZE
    assert lane_numbers["SLOTS"] == records.SLOTS_KIND
    slots = lane_numbers["D_N"] - lane_numbers["LIMIT_SIZE"] - 1
    assert slice(slots, slots + lane_numbers["SLIDING_SLOTS"] + 1) == records.SLOTS
    assert lane_numbers["LIMITS_MAX"] == LIMITS_PER_LANE_MAX
    assert (scope_numbers["SCOPE_SIZE"], scope_numbers["PERIODS_SIZE"]) == (records.SCOPE_SIZE, records.PERIODS_SIZE)
    assert reservation["R_HEAD"] == records.RESERVATION_HEAD
    assert reservation["MARK_SIZE"] == records.MARK_SIZE
    assert reservation["SCOPE_PART"] == records.SCOPE_PART


def test_enumerations_are_the_same_on_both_sides() -> None:
    lane_numbers, scope_numbers = constants("layout_lane"), constants("layout_scope")
    assert {kind.name: lane_numbers[kind.name] for kind in LimitKind} == {
        kind.name: number for number, kind in enumerate(LimitKind, 1)
    }
    assert [scope_numbers[f"RULE_{rule.name}"] for rule in UnpricedRule] == [1, 2, 3]
    assert [scope_numbers[f"SUSPENSE_{rule.name}"] for rule in SuspenseRule] == [1, 2, 3]
    reasons, states = constants("reasons"), constants("states")
    assert {reason.name: reasons[reason.name] for reason in Reason} == {reason.name: reason for reason in Reason}
    assert {kind.name: reasons[kind.name] for kind in RetryKind} == {kind.name: kind for kind in RetryKind}
    assert {state.name: states[state.name] for state in State} == {state.name: state for state in State}
    assert [metric.value for metric in Metric][:1] == ["requests"]


# --- law 1: what fails before the first write leaves nothing behind ---------------------------------------------------


class CallFailsError(Exception):
    """The call that was chosen to fail."""


class Saboteur:
    """Counts a script's Redis calls and makes the chosen one fail."""

    def __init__(self, cell: LocalCell) -> None:
        self.cell, self.calls, self.fails_at = cell, list[str](), 0
        self.keys: set[str] = set()
        table = cell.engine._lua.globals()[b"redis"]
        self._real: Callable[..., Any] = table[b"call"]
        table[b"call"] = self._call

    def _call(self, name: bytes, *args: Any) -> Any:
        self.calls.append(name.decode())
        self.keys.update(key.decode() for key in args[:1])
        if len(self.calls) == self.fails_at:
            raise CallFailsError(f"call {self.fails_at}")
        return self._real(name, *args)

    def run(self, name: str, args: Sequence[Argument], *, fails_at: int = 0) -> list[str]:
        """Run one script; returns the commands that it called, the failing one included."""
        self.calls, self.fails_at = [], fails_at
        try:
            self.cell.engine.run_now(name, args, pool=POOL)
        except (CallFailsError, LedgerProtocolError):
            assert fails_at
        return self.calls


async def busy_cell() -> tuple[LocalCell, dict[str, bytes]]:
    """A cell with an open, an overdue, a suspended and a settled reservation."""
    lanes = (lane("lane", bucket(1000, name="tpm"), in_flight(100), fair=True), lane("other", bucket(50)))
    cell = await local_cell(*lanes, budget(limit=10_000))
    field, numbers = scope_entry(budget("funded"), funded=True)
    cell.engine.run_now("configure", ["put", 0, field, len(numbers), *numbers])
    cell.engine.run_now("configure", ["calendar", 0, f"c:{FUNDED}", 2, *boundaries(FUNDED, 0)])
    rids: dict[str, bytes] = {}
    for state, lease_us in (("suspended", SECOND), ("settled", DAY), ("overdue", 10 * SECOND), ("open", DAY)):
        request = wish("lane", "other", scopes=("budget",), charge=cost(10, tokens=10), lease_us=lease_us)
        rids[state] = (await cell.admit(request)).rid
    await cell.settle(used(rids["settled"], tokens=5, cost=5))
    cell.time.advance(2 * SECOND)
    await cell.sweep()
    cell.time.advance(20 * SECOND)
    return cell, rids


def arguments(name: str, rids: dict[str, bytes]) -> Sequence[Argument]:
    """A call of the script that writes all it can."""
    fresh = wish("lane", "other", scopes=("budget",), charge=cost(10, tokens=10), principal="tenant", pool=POOL)
    calls: dict[str, Sequence[Argument]] = {
        "acknowledge": [rid_field(rids["settled"])],
        "audit": [1, 0, 10],
        "cancel": [rid_field(rids["open"])],
        "claim": ["tenant", SECOND],
        "configure": ["put", 0, "l:new", 5, 0, 0, 0, 0, 0],
        "forgot": [1, 9, SECOND],
        "fund": ["s:funded", 0, 100, 0, 30],
        "grant": ["s:budget", 1, 0, 60, 20, 30, 1],
        "open": [1],
        "reassert": request_args(fresh, fresh.candidates, 0, ""),
        "record": ["l:lane", SECOND],
        "release": [rid_field(rids["open"]), 0, 0, 0],
        "renew": [SECOND, rid_field(rids["open"])],
        "reserve": reserve_args(fresh),
        "settle": [*settle_args(used(rids["suspended"], tokens=1, cost=1)), *settle_args(used(new_rid()))],
        "snapshot": [0, "l:lane", "s:budget"],
        "suspect": [1],
        "sweep": [],
    }
    return calls[name]


@pytest.mark.parametrize("name", SCRIPT_NAMES)
async def test_whatever_call_fails_before_the_first_write_leaves_the_cell_as_it_was(name: str) -> None:
    cell, rids = await busy_cell()
    saboteur = Saboteur(cell)
    call = arguments(name, rids)
    before = cell.image()
    at = 0
    while True:
        at += 1
        calls = saboteur.run(name, call, fails_at=at)
        if calls[-1] in WRITES or len(calls) < at:
            break
        assert cell.image() == before, f"{name}: call {at} ({calls[-1]}) failed after something was written"


@pytest.mark.parametrize("name", SCRIPT_NAMES)
async def test_a_script_reads_the_time_once_and_touches_only_what_it_declares(name: str) -> None:
    cell, rids = await busy_cell()
    saboteur = Saboteur(cell)
    calls = saboteur.run(name, arguments(name, rids))
    assert calls.count("TIME") == 1
    declared = load_library().scripts[name].keys
    assert saboteur.keys <= {cell_key(f"F:{POOL}" if key == "F" else key) for key in declared}


@pytest.mark.parametrize("name", SCRIPT_NAMES)
async def test_nothing_is_read_after_the_first_write(name: str) -> None:
    cell, rids = await busy_cell()
    calls = Saboteur(cell).run(name, arguments(name, rids))
    first = next((at for at, call in enumerate(calls) if call in WRITES), len(calls))
    reads_after = [call for call in calls[first:] if call not in WRITES]
    assert reads_after == [], "a read after a write decides too late"
