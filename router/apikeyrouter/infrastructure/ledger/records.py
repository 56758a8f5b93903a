"""Packed records of the cell, read. Layouts are those of `lua/include/layout_*.lua`; a test compares the numbers."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from apikeyrouter.domain.models.accounting import (
    LIMIT_NAMES,
    LaneState,
    LimitKind,
    LimitState,
    Metric,
    ScopeState,
    State,
)

LANE_SIZE = 22
LIMIT_SIZE = 17
SCOPE_SIZE = 22
RESERVATION_HEAD = 9
MARK_SIZE = 6
SCOPE_PART = 5
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
    limits = tuple(
        _read_limit(n[at : at + LIMIT_SIZE], in_flight=n[2], now_us=now_us)
        for at in range(LANE_SIZE, len(n), LIMIT_SIZE)
    )
    open_now = n[9] == 1
    breaker = _BREAKERS[0] if not open_now else _BREAKERS[1] if now_us < n[10] else _BREAKERS[2]
    halvings = min(60, max(0, now_us - n[17]) // 60_000_000)
    return LaneState(
        id=id, seq=n[1], in_flight=n[2], blocked_until_us=n[3], breaker=breaker, breaker_until_us=n[10],
        successes=n[15] >> halvings, failures=n[16] >> halvings, latency_us=n[18], requests_total=n[19],
        failures_total=n[20], last_used_us=n[21], limits=limits,
    )  # fmt: skip


def _read_limit(n: tuple[int, ...], *, in_flight: int, now_us: int) -> LimitState:
    name, metric, kind_code, capacity, scale, drain, tick_us, _, learned = n[:9]
    kind = _KINDS[kind_code - 1]
    used, reset_at = _limit_use(kind, n[9:], scale, drain, tick_us, in_flight, now_us)
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
        id=id, seq=n[1], limit=n[2], hard=bool(n[3]), settled=n[11], held=n[12], suspense=n[13], unpriced=n[14],
        unpriced_requests=n[15], late=n[21], starts_at_us=n[9], resets_at_us=n[10],
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


def read_reservation(rid: bytes, packed: bytes) -> ReservationRecord:
    """One reservation with the lanes and scopes it holds."""
    count = int(struct.unpack_from("<d", packed)[0])
    n = unpack_numbers(packed[: count * 8])
    ids = packed[count * 8 :].decode().split("\n") if len(packed) > count * 8 else []
    lane_count, scope_count = n[6], n[7]
    charges: list[tuple[str, str, int]] = []
    at = RESERVATION_HEAD
    for lane in ids[:lane_count]:
        marks = n[at + 1]
        at += 2
        for _ in range(marks):
            charges.append((lane, LIMIT_NAMES[n[at] - 1], n[at + 3]))
            at += MARK_SIZE
    scopes = tuple(_scope_parts(n, at, ids[lane_count : lane_count + scope_count]))
    return ReservationRecord(
        rid=rid, state=State(n[1]), created_us=n[2], deadline_us=n[3], index=n[4], lanes=tuple(ids[:lane_count]),
        scopes=scopes, charges=tuple(charges),
    )  # fmt: skip


def _scope_parts(n: tuple[int, ...], at: int, ids: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    for scope in ids:
        yield scope, n[at], n[at + 1], n[at + 3], n[at + 4]
        at += SCOPE_PART
