"""Pools: what a request is offered, in which order, and at which cost."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from apikeyrouter.domain.components.pool import SCAN_MAX, Option, Pool, Snapshot
from apikeyrouter.domain.models.api_key import KeyState


class Watched(list[Any]):
    """A list that counts how many of its places were read."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


def option(number: int, *, rank: int = 0, weight: float = 1.0, state: KeyState = KeyState.Available) -> Option:
    """A way to serve a model."""
    key: Any = SimpleNamespace(id=f"k{number}", weight=weight, state=state, quality=0.5, quota_group=f"g{number}")
    provider: Any = SimpleNamespace(id="p", wire=None)
    lanes = (f"k:k{number}", f"g:g{number}:m", "p:p")
    return Option(key=key, provider=provider, model="m", rank=rank, lanes=lanes, scopes=(), hard=False, price=None)


def ranked(pool: Pool, snapshot: Snapshot, *, objective: str = "fairness", skip: tuple[Option, ...] = ()) -> list[str]:
    """Ids of the eight offered."""
    return [offered.key.id for offered in pool.rank(objective, 8, snapshot=snapshot, now=1.0, skip=skip)]


@pytest.mark.parametrize("objective", ["fairness", "cost", "reliability", "latency", "quality"])
def test_equals_share_evenly(objective: str) -> None:
    pool, snapshot = Pool("m", [option(n) for n in range(10)]), Snapshot()
    firsts = Counter(ranked(pool, snapshot, objective=objective)[0] for _ in range(1000))
    assert set(firsts.values()) == {100}


def test_weights_stretch_the_rotation() -> None:
    pool, snapshot = Pool("m", [option(0, weight=3), option(1)]), Snapshot()
    assert Counter(ranked(pool, snapshot)[0] for _ in range(400)) == {"k0": 300, "k1": 100}


def test_a_request_looks_at_few_of_ten_thousand_keys_even_when_all_are_out() -> None:
    options = [option(n) for n in range(10_000)]
    pool, snapshot = Pool("m", options), Snapshot()
    assert len(ranked(pool, snapshot)) == 8
    version, order, turning = pool._orders["fairness"]
    watched = Watched(order)
    pool._orders["fairness"] = (version, watched, turning)
    snapshot.blocked.update({lane: 2.0 for each in options for lane in each.lanes[:1]})
    assert len(ranked(pool, snapshot)) == 8
    assert watched.reads <= SCAN_MAX


def test_the_rest_of_ten_thousand_keys_is_seen_in_pages_without_repeats() -> None:
    pool = Pool("m", [option(n) for n in range(10_000)])
    seen: list[Option] = []
    while page := pool.rest(seen, 1000):
        seen.extend(page)
    assert len(seen) == len(set(seen)) == 10_000


@pytest.mark.parametrize("state", [KeyState.Invalid, KeyState.Disabled, KeyState.Throttled, KeyState.Exhausted])
def test_keys_that_are_out_are_never_offered(state: KeyState) -> None:
    out, well = option(0, state=state), option(1)
    pool = Pool("m", [out, well])
    assert ranked(pool, Snapshot()) == ["k1"]
    assert pool.rest([well], 64) == []
    assert pool.out == [out]
    assert ranked(Pool("m", [out]), Snapshot()) == []


def test_what_is_known_to_be_out_comes_last_and_what_was_tried_not_at_all() -> None:
    first, second, third = option(0), option(1), option(2)
    pool, snapshot = Pool("m", [first, second, third]), Snapshot()
    snapshot.blocked["k:k0"] = 2.0
    for _ in range(3):
        assert ranked(pool, snapshot)[-1] == "k0"
        assert sorted(ranked(pool, snapshot, skip=(second,))) == ["k0", "k2"]


def test_later_targets_of_an_alias_come_after_all_of_the_first() -> None:
    pool, snapshot = Pool("m", [option(0, rank=1), option(1), option(2)]), Snapshot()
    for objective in ("fairness", "cost"):
        assert ranked(pool, snapshot, objective=objective)[2] == "k0"
