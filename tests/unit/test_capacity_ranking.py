"""Which objectives turn away from a scarce quota, and when."""

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.objectives import Strategies
from apikeyrouter.domain.components.pool import Option, Pool, Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.routing_decision import RoutingObjective

PRICES = PriceBook.load()
PRICES.add("cheap", "*", input=Decimal(1), output=Decimal(1))
PRICES.add("dear", "*", input=Decimal(2), output=Decimal(2))


def option(name: str, *, rank: int = 0, price: str = "cheap") -> Option:
    key: Any = SimpleNamespace(
        id=name, weight=1.0, state=KeyState.Available, quality=0.5, quota_group=name, metadata={}, under_way=0
    )
    provider: Any = SimpleNamespace(id="p", wire=None)
    return Option(
        key=key, provider=provider, model="m", rank=rank, lanes=(f"k:{name}", f"g:{name}:m", "p:p"), scopes=(),
        hard=False, price=PRICES.price(price, "*"),
    )  # fmt: skip


def ranked(options: list[Option], objective: str, **capacity: Level) -> list[str]:
    """The order under an objective, where these keys' lanes are scarce."""
    snapshot = Snapshot()
    snapshot.take([], now=1.0, now_us=1, levels={f"k:{name}": level for name, level in capacity.items()})
    plan = Strategies(lambda *_: None).compile(RoutingObjective.read(objective))
    found = Pool("m", options).rank(plan, 8, snapshot=snapshot, now=1.0, start=0)
    return [each.key.id for each in found.options]


@pytest.mark.parametrize("objective", ["fairness", "reliability"])
def test_fairness_and_reliability_turn_away_from_what_is_constrained(objective: str) -> None:
    options = [option("a"), option("b"), option("c")]
    assert ranked(options, objective, a=Level.CONSTRAINED, b=Level.CRITICAL) == ["c", "a", "b"]


@pytest.mark.parametrize("objective", ["cost", "latency", "quality"])
def test_where_measures_are_equal_the_one_with_more_left_comes_first(objective: str) -> None:
    assert ranked([option("a"), option("b")], objective, a=Level.CONSTRAINED) == ["b", "a"]


def test_a_cheap_key_is_used_while_it_is_constrained_and_left_when_it_is_critical() -> None:
    options = [option("cheap"), option("dear", price="dear")]
    assert ranked(options, "cost") == ["cheap", "dear"]
    assert ranked(options, "cost", cheap=Level.CONSTRAINED) == ["cheap", "dear"]
    assert ranked(options, "cost", cheap=Level.CRITICAL) == ["dear", "cheap"]
    assert ranked(options, "cost", cheap=Level.CRITICAL, dear=Level.CRITICAL) == ["cheap", "dear"]


def test_the_preferred_target_of_an_alias_is_left_only_when_it_is_exhausted() -> None:
    options = [option("first"), option("second", rank=1)]
    assert ranked(options, "fairness", first=Level.CRITICAL) == ["first", "second"]
    assert ranked(options, "fairness", first=Level.EXHAUSTED) == ["second", "first"]


def test_all_alike_share_as_before() -> None:
    options = [option("a"), option("b")]
    assert sorted(ranked(options, "fairness", a=Level.CONSTRAINED, b=Level.CONSTRAINED)) == ["a", "b"]


def test_an_order_is_built_anew_when_a_level_changes() -> None:
    snapshot, pool = Snapshot(), Pool("m", [option("a"), option("b")])
    plan = Strategies(lambda *_: None).compile(RoutingObjective.read("fairness"))
    pool.rank(plan, 8, snapshot=snapshot, now=1.0)
    for level, first in ((Level.CONSTRAINED, "b"), (Level.ABUNDANT, None), (Level.EXHAUSTED, "b")):
        snapshot.take([], now=1.0, now_us=1, levels={"g:a:m": level})
        firsts = {pool.rank(plan, 8, snapshot=snapshot, now=1.0).options[0].key.id for _ in range(4)}
        assert firsts == ({first} if first else {"a", "b"})
    assert snapshot.capacity == {"g:a:m": Level.EXHAUSTED}
