"""Ways to serve a model, made up: keys, prices and lane states for tests of decisions as pure functions."""

import itertools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from apikeyrouter.domain.components.catalogue import Key, Provider
from apikeyrouter.domain.components.objectives import Plan, Strategies
from apikeyrouter.domain.components.pool import Option, Pool, Ranked, Snapshot
from apikeyrouter.domain.components.price_book import ModelPrice, PriceBook
from apikeyrouter.domain.components.scoring import TYPICAL_TOKENS
from apikeyrouter.domain.models.accounting import LaneState
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState
from apikeyrouter.domain.models.routing_decision import RoutingObjective

NOW_US = 1_800_000_000_000_000
NOW = 1000.0
_versions = itertools.count(1, 1000)
OBJECTIVES = ["fairness", "cost", "reliability", "latency", "quality"]


def key(name: str, **fields: Any) -> Key:
    """A key of provider `p`, a quota group of its own."""
    fields.setdefault("quota_group", f"g-{name}")
    return Key(id=name, provider_id="p", material=KeyMaterial(f"sk-{name}", key_id=name), **fields)


def price(input_usd: str, output_usd: str, cached_usd: str | None = None) -> ModelPrice:
    """Dollars per million tokens."""
    cached = None if cached_usd is None else Decimal(cached_usd)
    return PriceBook().add("p", "m", input=Decimal(input_usd), output=Decimal(output_usd), cached_input=cached)


def option(
    name: str,
    *,
    rank: int = 0,
    weight: float = 1.0,
    quality: float = 0.5,
    state: KeyState = KeyState.Available,
    priced: ModelPrice | None = None,
    provider: Any = None,
    group: str | None = None,
    rate: int = 0,
) -> Option:
    """A way to serve model `m`."""
    made = key(name, weight=weight, state=state, quota_group=group or f"g-{name}")
    lanes = (f"k:{name}", f"g:{made.quota_group}:m", "p:p")
    return Option(
        key=made, provider=provider or Provider(id="p", adapter=None), model="m", rank=rank, lanes=lanes, scopes=(),
        hard=False, price=priced, quality=quality, rate=rate,
    )  # fmt: skip


def lane(id: str, **fields: Any) -> LaneState:
    """A lane as the ledger shows it; nothing has happened in it but for `fields`."""
    plain: dict[str, Any] = {
        "seq": 1, "in_flight": 0, "blocked_until_us": 0, "breaker": "closed", "breaker_until_us": 0, "successes": 0,
        "failures": 0, "latency_us": 0, "requests_total": 0, "failures_total": 0, "last_used_us": 0, "limits": (),
    }  # fmt: skip
    return LaneState(id=id, **{**plain, **fields})


def snapshot(lanes: Mapping[str, Mapping[str, Any]] | None = None) -> Snapshot:
    """A snapshot taken right now; lanes by id, with what has happened in them."""
    made = Snapshot(version=next(_versions))
    made.out_version = made.version
    made.take([lane(name, **fields) for name, fields in (lanes or {}).items()], now=NOW, now_us=NOW_US)
    return made


def plan(objective: str | RoutingObjective, strategies: Strategies | None = None) -> Plan:
    """An objective, compiled."""
    compiling = strategies or Strategies(lambda name, found: None)
    return compiling.compile(RoutingObjective.read(objective))


def rank(
    pool: Pool,
    under: Plan | str,
    known: Snapshot | None = None,
    *,
    skip: tuple[Option, ...] = (),
    stream: bool = False,
    tokens: tuple[int, int] = TYPICAL_TOKENS,
    count: int = 8,
) -> Ranked:
    """What a pool offers now."""
    compiled = plan(under) if isinstance(under, str) else under
    return pool.rank(compiled, count, snapshot=known or snapshot(), now=NOW, skip=skip, stream=stream, tokens=tokens)


def names(ranked: Ranked) -> list[str]:
    """Ids of the keys that are offered."""
    return [offered.key.id for offered in ranked.options]
