"""Pools: keys that stand for each other, with what is left to all of them, when it ends, and what to do about it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.headroom import LIKELY, SCARCE, even_pace
from apikeyrouter_dashboard.shown.pool import OUT, condition
from apikeyrouter_dashboard.shown.words import badge, bar, count, moment, percent, table, when

__all__ = ["GROUPINGS", "Pool", "advice", "lanes_out", "pools", "pools_table"]

Told = Mapping[str, Any]
GROUPINGS = {"provider_id": "provider", "models": "model", "quota_group": "quota group"}
"""What may make a pool: a provider's keys, those that serve a model, those that share their limits."""
LISTED_MAX = 100
NEVER_BACK = ("invalid", "disabled")
"""Conditions that end when somebody acts, not with time."""


@dataclass(slots=True, kw_only=True)
class Pool:
    """Keys that stand for each other, and the limits of the lanes that they share, by the limits' names."""

    name: str
    keys: list[Told] = field(default_factory=list)
    limits: dict[str, list[Told]] = field(default_factory=dict)
    lanes: int = 0

    @property
    def serving(self) -> int:
        """How many of its keys serve."""
        return sum(condition(key) not in OUT for key in self.keys)

    @property
    def back_at(self) -> datetime | None:
        """When the first of the keys that are out is back by itself; None: nobody knows, or somebody has to act."""
        known = (_back_at(key) for key in self.keys if condition(key) in OUT and condition(key) not in NEVER_BACK)
        return min((at for at in known if at is not None), default=None)

    @property
    def binding(self) -> str | None:
        """The name of the limit of which the smallest share is left to all of it, of those that are in every lane, if
        there are any; None: no limit is known."""
        everywhere = [name for name in self.limits if len(self.limits[name]) == self.lanes]
        return min(everywhere or self.limits, key=lambda name: share_left(self.limits[name]), default=None)


def share_left(limits: Sequence[Told]) -> float:
    """What is left of one limit in all the lanes of a pool."""
    capacity = sum(limit["capacity"] for limit in limits)
    return float(sum(limit["remaining"] for limit in limits) / capacity) if capacity else 0.0


def _back_at(key: Told) -> datetime | None:
    told = key["state_until"] or key["out_until"]
    if told is None and key["binding"] is not None and condition(key) == "exhausted":
        told = key["binding"]["full_again_at"]
    return moment(told)


def pools(keys: Iterable[Told], lanes: Iterable[Told], grouping: str) -> list[Pool]:
    """The pools by one of GROUPINGS, those that need somebody first. A lane counts once in each pool that it is in; of
    one whose keys are all out nothing is left."""
    keys, by_id = list(keys), {lane["id"]: lane for lane in lanes}
    out = lanes_out(keys)
    found: dict[str, Pool] = {}
    seen: set[tuple[str, str]] = set()
    for key in keys:
        for name in _names(key[grouping]):
            pool = found.setdefault(name, Pool(name=name))
            pool.keys.append(key)
            for lane_id in key["lanes"][1:-1]:
                if (name, lane_id) not in seen and lane_id in by_id:
                    seen.add((name, lane_id))
                    pool.lanes += 1
                    for limit in by_id[lane_id]["limits"]:
                        if limit["counts"] != "concurrency":
                            usable = limit if lane_id not in out else {**limit, "remaining": 0}
                            pool.limits.setdefault(limit["name"].removesuffix("~"), []).append(usable)
    return sorted(found.values(), key=lambda pool: (pool.serving > 0, _left(pool), pool.name))


def lanes_out(keys: Iterable[Told]) -> dict[str, datetime | None]:
    """The lanes of which no key serves, and when the first of their keys is back (None: nobody knows)."""
    found: dict[str, list[Told]] = {}
    for key in keys:
        for lane_id in key["lanes"][1:-1]:
            found.setdefault(lane_id, []).append(key)
    told = ((lane_id, Pool(name=lane_id, keys=members)) for lane_id, members in found.items())
    return {lane_id: pool.back_at for lane_id, pool in told if not pool.serving}


def _names(told: Any) -> Sequence[str]:
    return ["whatever its provider serves"] if told is None else told if isinstance(told, list) else [str(told)]


def _left(pool: Pool) -> float:
    return 1.0 if pool.binding is None else share_left(pool.limits[pool.binding])


def pools_table(found: Sequence[Pool], now: datetime) -> Markup:
    """A row a pool: how many keys serve, the binding limit over all its lanes, when that ends, and what to do."""
    columns = ["pool", "keys that serve", "binding limit", "used", "free", "of", "runs out", "pace", "advice"]
    rows = [_row(pool, now) for pool in found[:LISTED_MAX]]
    return table(columns, rows, none="no keys yet", numbers=(4, 5))


def _row(pool: Pool, now: datetime) -> tuple[object, ...]:
    all_out = not pool.serving
    serving = badge("out" if all_out else "ok" if pool.serving == len(pool.keys) else "warn",
                    f"{'✕ out: ' if all_out else ''}{pool.serving} of {len(pool.keys)}")  # fmt: skip
    name = pool.binding
    if name is None:
        unknown = Markup('<span class="unknown">unknown</span>')
        return (pool.name, serving, unknown, unknown, "unknown", "unknown", unknown, unknown, advice(pool, now))
    limits = pool.limits[name]
    left = share_left(limits)
    kind = "exhausted" if left <= 0 else "constrained" if left < SCARCE else "abundant"
    gauge = Markup('<span class="gauge">{}<span>{}</span></span>').format(
        bar([(kind, 1 - left)], f"{percent(1 - left)} used"), percent(1 - left)
    )
    lanes = f"{name} in {len(limits)} {'lane' if len(limits) == 1 else 'lanes'}"
    free, whole = (sum(limit[what] for limit in limits) for what in ("remaining", "capacity"))
    return (pool.name, serving, lanes, gauge, count(free), count(whole), _runs_out(limits, now), _pace(name, limits),
            advice(pool, now))  # fmt: skip


def _ends(limits: Sequence[Told], name: str) -> datetime | None:
    """The last of these times of the lanes' forecasts; None: one of them has none."""
    told = [moment(limit["forecast"][name]) if limit["forecast"] else None for limit in limits]
    return None if None in told else max((at for at in told if at is not None), default=None)


def _runs_out(limits: Sequence[Told], now: datetime) -> Markup:
    """When the last lane of a pool is empty: until then another takes what one refuses."""
    if all(limit["forecast"] is None for limit in limits):
        return Markup('<span class="unknown">unknown</span>')
    ends = _ends(limits, "expected_at")
    if ends is None:
        return Markup('<span class="dim">not before it refills</span>')
    earliest, latest = (_ends(limits, name) for name in ("earliest_at", "latest_at"))
    return Markup('{} <span class="dim">({} … {})</span>').format(
        when(ends.isoformat(), now), when(earliest.isoformat() if earliest else None, now, unknown="now"),
        when(latest.isoformat() if latest else None, now, unknown="later"),
    )  # fmt: skip


def _pace(name: str, limits: Sequence[Told]) -> Markup:
    known = [limit["forecast"]["per_hour"] for limit in limits if limit["forecast"]]
    if not known:
        return Markup('<span class="unknown">unknown</span>')
    ratio = even_pace(name, sum(known), sum(limit["capacity"] for limit in limits))
    told = Markup("{} an hour").format(count(round(sum(known))))
    return told if ratio is None else Markup("{}, {} of the even pace").format(told, percent(ratio))


def advice(pool: Pool, now: datetime) -> Markup:
    """What to do about a pool: act on its keys, wait, throttle, add capacity, or nothing."""
    back_at = pool.back_at
    if not pool.serving and back_at is None:
        words = sorted({condition(key) for key in pool.keys})
        return Markup("{}: add keys, rotate or enable these; waiting does not help").format(" and ".join(words))
    if not pool.serving and back_at is not None:
        return Markup("wait until {} when the first key is back, or add capacity").format(_at(back_at, now))
    name = pool.binding
    if name is None:
        return Markup("–")
    limits = pool.limits[name]
    if share_left(limits) <= 0:
        full = min((at for limit in limits if (at := moment(limit["full_again_at"]))), default=None)
        if full is None:
            return Markup("add capacity")
        return Markup("wait until {} when the first lane is full again, or add capacity").format(_at(full, now))
    ends = _ends(limits, "expected_at")
    likely = min((limit["forecast"]["probability"] for limit in limits if limit["forecast"]), default=0.0) >= LIKELY
    resets = max((at for limit in limits if (at := moment(limit["full_again_at"]))), default=None)
    if likely and ends is not None and resets is not None and ends < resets:
        share = (ends - now).total_seconds() / max(1.0, (resets - now).total_seconds())
        return Markup("throttle to {} of the present pace, or add capacity").format(percent(max(0.0, min(1.0, share))))
    out = len(pool.keys) - pool.serving
    if out:
        return Markup("nothing now: the others take what {} cannot").format("one key" if out == 1 else f"{out} keys")
    return Markup("–")


def _at(at: datetime, now: datetime) -> Markup:
    return Markup("{} ({})").format(at.strftime("%H:%M %Z"), when(at.isoformat(), now))
