"""Packed records of the cell, read. Layouts are those of `lua/include/layout_*.lua`; a test compares the numbers."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

from apikeyrouter.domain.models.accounting import (
    LIMIT_NAMES,
    LaneState,
    LimitKind,
    LimitState,
    Metric,
    ScopeState,
    State,
)
from apikeyrouter.infrastructure.ledger.encoding import id_of

LANE_SIZE, HEALTH_SIZE = 8, 14
LIMIT_SIZE = 13
SLOTS_KIND, SLOTS = 6, slice(3, 10)
SCOPE_SIZE, PERIODS_SIZE = 11, 11
RESERVATION_HEAD = 9
MARK_SIZE = 6
SCOPE_PART = 5
_NO_BLOCK: tuple[int, ...] = ()
_METRICS = tuple(Metric)
_KINDS = tuple(LimitKind)
_BREAKERS = ("closed", "open", "half_open")


@cache
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


def unpack_numbers(packed: bytes) -> tuple[int, ...]:
    """The integers of a packed record."""
    return tuple(map(int, _doubles(len(packed) // 8).unpack(packed)))


def read_lane(id: str, packed: bytes, *, now_us: int) -> LaneState:
    """A lane as of `now_us`: what drained or rolled since it was written is taken into account."""
    n = unpack_numbers(packed)
    end = len(n) - HEALTH_SIZE
    blocks = [n[at : at + LIMIT_SIZE] for at in range(LANE_SIZE, end, LIMIT_SIZE)]
    limits = tuple(
        _read_limit(block, slots, in_flight=n[2], now_us=now_us)
        for block, slots in zip_longest(blocks, blocks[1:], fillvalue=_NO_BLOCK)
        if block[2] != SLOTS_KIND
    )
    ok, failed, decayed, latency, total, total_failed, last_used = n[end + 7 :]
    breaker = _BREAKERS[0] if n[5] != 1 else _BREAKERS[1] if now_us < n[6] else _BREAKERS[2]
    halvings = min(60, max(0, now_us - decayed) // 60_000_000)
    return LaneState(
        id=id, seq=n[1], in_flight=n[2], blocked_until_us=n[3], breaker=breaker, breaker_until_us=n[6],
        successes=ok >> halvings, failures=failed >> halvings, latency_us=latency, requests_total=total,
        failures_total=total_failed, last_used_us=last_used, limits=limits,
    )  # fmt: skip


def _read_limit(n: tuple[int, ...], following: tuple[int, ...], *, in_flight: int, now_us: int) -> LimitState:
    """`following`: the next block, where a sliding limit has its slots."""
    name, metric, kind_code, capacity, scale, drain, tick_us, _, learned = n[:9]
    kind = _KINDS[kind_code - 1]
    state = (n[9], *following[SLOTS]) if kind is LimitKind.SLIDING else n[9:]
    used, reset_at = _limit_use(kind, state, scale, drain, tick_us, in_flight, now_us)
    return LimitState(
        name=LIMIT_NAMES[name - 1], metric=_METRICS[metric - 1], kind=kind, capacity=capacity, used=used,
        reset_at_us=reset_at, learned=bool(learned),
    )  # fmt: skip


def _limit_use(
    kind: LimitKind, state: tuple[int, ...], scale: int, drain: int, tick_us: int, in_flight: int, now_us: int
) -> tuple[int, int]:
    if kind is LimitKind.CONCURRENCY:
        return in_flight, 0
    if kind is LimitKind.BUCKET:
        level = max(0, state[0] - max(0, now_us - state[1]) // tick_us * drain)
        return -(-level // scale), now_us + (-(-level // drain) * tick_us if drain else 0)
    if kind is LimitKind.SLIDING:
        shift = max(0, (now_us - now_us % scale - state[0]) // scale)
        return sum(state[1 : 8 - shift]) if shift < 7 else 0, now_us + scale
    return (state[0], state[2]) if now_us < state[2] else (0, state[2])


def read_scope(id: str, packed: bytes) -> ScopeState:
    """A budget as it was written; a period that has ended since rolls when it is next used."""
    n = unpack_numbers(packed)
    return ScopeState(
        id=id, seq=n[1], limit=n[2], hard=bool(n[3]), settled=n[8], held=n[9], suspense=n[10], unpriced=n[14],
        unpriced_requests=n[15], late=n[21], starts_at_us=n[6], resets_at_us=n[7],
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRecord:
    """An open or suspended reservation, for audit and for the operator."""

    rid: bytes
    state: State
    created_us: int
    deadline_us: int
    index: int
    lanes: tuple[str, ...]
    scopes: tuple[tuple[str, int, int, int, int], ...]
    """(scope id, amount held, start of the period charged, when suspense is due, what suspense charged)."""
    charges: tuple[tuple[str, str, int], ...]
    """(lane id, limit name, amount) of each limit that was charged."""
    calls: int = 1
    """So many it counts as in flight in each lane: a slab has more than one."""


def read_reservation(rid: bytes, packed: bytes) -> ReservationRecord:
    """One reservation with the lanes and scopes it holds."""
    count = int(struct.unpack_from("<d", packed)[0])
    n = unpack_numbers(packed[: count * 8])
    fields = packed[count * 8 :].decode().split("\n") if len(packed) > count * 8 else []
    ids = list(map(id_of, fields))
    lane_count, scope_count = n[6], n[7]
    charges: list[tuple[str, str, int]] = []
    at = RESERVATION_HEAD
    calls = n[at] // 2 + 1 if lane_count else 1
    for lane in ids[:lane_count]:
        marks = n[at + 1]
        at += 2
        for _ in range(marks):
            charges.append((lane, LIMIT_NAMES[n[at] - 1], n[at + 3]))
            at += MARK_SIZE
    scopes = tuple(_scope_parts(n, at, ids[lane_count : lane_count + scope_count]))
    return ReservationRecord(
        rid=rid, state=State(n[1]), created_us=n[2], deadline_us=n[3], index=n[4], lanes=tuple(ids[:lane_count]),
        scopes=scopes, charges=tuple(charges), calls=calls,
    )  # fmt: skip


def _scope_parts(n: tuple[int, ...], at: int, ids: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    for scope in ids:
        yield scope, n[at], n[at + 1], n[at + 3], n[at + 4]
        at += SCOPE_PART
