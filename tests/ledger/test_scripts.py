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
from apikeyrouter.infrastructure.ledger.engine import Argument
from apikeyrouter.infrastructure.ledger.ledger import _reserve_args, _settle_args
from apikeyrouter.infrastructure.ledger.scripts import SCRIPT_NAMES, load_scripts, lua_root
from tests.ledger.support import (
    DAY,
    SECOND,
    LocalCell,
    bucket,
    budget,
    cost,
    in_flight,
    lane,
    local_cell,
    new_rid,
    used,
    wish,
)

WRITES = {"HSET", "HSETNX", "HDEL", "ZADD", "ZREM", "DEL", "UNLINK"}
_KEY_USES = re.compile(r"redis\.call\('([A-Z]+)', (\w+)")
_NUMBERS = re.compile(r"^local ([A-Z][\w, ]*) = (\d[\d, ]*)$", re.MULTILINE)


def constants(include: str) -> dict[str, int]:
    """Every named number of one include."""
    source = lua_root().joinpath("include", f"{include}.lua").read_text(encoding="utf-8")
    found: dict[str, int] = {}
    for names, numbers in _NUMBERS.findall(source):
        found |= zip(names.split(", "), map(int, numbers.split(", ")), strict=True)
    return found


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_declares_every_key_that_it_calls_redis_with(name: str) -> None:
    script = load_scripts()[name]
    called = {key for _, key in _KEY_USES.findall(script.text)} - {"key", "index", "other", "cell_catalogue"}
    undeclared = called - set(script.keys)
    # `commit` writes every structure; lists that a script never fills are never written
    assert undeclared <= {"S", "G"}
    assert (
        set(script.keys) - set(re.findall(r"\b[A-Z]\d?\b", script.text.partition("\n")[2].partition("\n")[2])) == set()
    )


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_that_declares_no_graves_fills_none(name: str) -> None:
    script = load_scripts()[name]
    for key, adds in (("G", "graves_set[at + 1]"), ("S", "suspense_set[#suspense_set + 1]")):
        if key not in script.keys:
            assert adds not in script.text


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_built_script_fits_in_one_chunk_of_lua(name: str) -> None:
    text = load_scripts()[name].text
    assert "@include" not in text
    top = re.findall(r"^local (?:function )?([\w, ]+)", text, re.MULTILINE)
    assert sum(names.count(",") + 1 for names in top) < 190


def test_a_scripts_sha_is_that_of_its_text_and_no_two_are_alike() -> None:
    shas = {script.sha for script in load_scripts().values()}
    virtual = {script.sha for script in load_scripts(virtual_time=True).values()}
    assert (len(shas), len(virtual), len(shas & virtual)) == (len(SCRIPT_NAMES), len(SCRIPT_NAMES), 0)


def test_time_is_read_once_per_script_and_never_where_a_test_gives_it() -> None:
    for script in load_scripts().values():
        assert script.text.count("'TIME'") == 1, script.name
    for script in load_scripts(virtual_time=True).values():
        assert "'TIME'" not in script.text, script.name


def test_layouts_are_the_same_on_both_sides() -> None:
    lane_numbers, scope_numbers = constants("layout_lane"), constants("layout_scope")
    reservation = constants("layout_reservation")
    assert lane_numbers["LANE_SIZE"] == records.LANE_SIZE
    assert lane_numbers["LIMIT_SIZE"] == records.LIMIT_SIZE
    assert lane_numbers["LIMITS_MAX"] == LIMITS_PER_LANE_MAX
    assert scope_numbers["SCOPE_SIZE"] == records.SCOPE_SIZE
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
        table = cell.engine._lua.globals()[b"redis"]
        self._real: Callable[..., Any] = table[b"call"]
        table[b"call"] = self._call

    def _call(self, name: bytes, *args: Any) -> Any:
        self.calls.append(name.decode())
        if len(self.calls) == self.fails_at:
            raise CallFailsError(f"call {self.fails_at}")
        return self._real(name, *args)

    def run(self, name: str, args: Sequence[Argument], *, fails_at: int = 0) -> list[str]:
        """Run one script; returns the commands that it called, the failing one included."""
        self.calls, self.fails_at = [], fails_at
        try:
            self.cell.engine.run_now(name, args, pool="pool")
        except (CallFailsError, LedgerProtocolError):
            assert fails_at
        return self.calls


async def busy_cell() -> tuple[LocalCell, dict[str, bytes]]:
    """A cell with an open, an overdue, a suspended and a settled reservation."""
    lanes = (lane("lane", bucket(1000, name="tpm"), in_flight(100), fair=True), lane("other", bucket(50)))
    cell = await local_cell(*lanes, budget(limit=10_000))
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
    fresh = wish("lane", "other", scopes=("budget",), charge=cost(10, tokens=10), principal="tenant", pool="pool")
    place: list[Argument] = [1, "budget", 10, 0, 10, 10, 10, 2, "lane", "other", 0, 1]
    calls: dict[str, Sequence[Argument]] = {
        "acknowledge": [rids["settled"]],
        "audit": [1, 0, 10],
        "cancel": [rids["open"]],
        "configure": ["put", 0, "l:new", 5, 0, 0, 0, 0, 0],
        "open": [1],
        "reassert": [new_rid(), SECOND, 0, *place],
        "record": ["lane", SECOND],
        "release": [rids["open"], 0, 0, 0],
        "renew": [SECOND, rids["open"]],
        "reserve": _reserve_args(fresh),
        "settle": [*_settle_args(used(rids["suspended"], tokens=1, cost=1)), *_settle_args(used(new_rid()))],
        "snapshot": [0, 1, "lane", 1, "budget"],
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
async def test_nothing_is_read_after_the_first_write(name: str) -> None:
    cell, rids = await busy_cell()
    calls = Saboteur(cell).run(name, arguments(name, rids))
    first = next((at for at, call in enumerate(calls) if call in WRITES), len(calls))
    reads_after = [call for call in calls[first:] if call not in WRITES]
    assert reads_after == [], "a read after a write decides too late"
