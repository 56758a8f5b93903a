"""Totals that are told for one request by several at once: what is booked is the highest, whoever told it when."""

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from apikeyrouter.domain.components.recorded_costs import RecordedCosts
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore

SEEDS = 400
TELLERS_MAX = 4
TOTAL_MAX = 9


class CrashedError(Exception):
    """The process of a teller died."""


class Slow(InMemoryStateStore):
    """A store whose calls take turns in an order that a seed decides."""

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self.chance = chance

    async def waits(self) -> None:
        """Others go first, some times."""
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def get_note(self, kind: str, note_id: str) -> dict[str, Any] | None:
        """A note, sooner or later."""
        await self.waits()
        found = await super().get_note(kind, note_id)
        await self.waits()
        return found

    async def save_note(self, kind: str, note_id: str, note: Mapping[str, Any], *, seconds: int) -> None:
        """Kept, sooner or later."""
        await self.waits()
        await super().save_note(kind, note_id, note, seconds=seconds)
        await self.waits()

    async def replace_note(
        self, kind: str, note_id: str, known: Mapping[str, Any] | None, note: Mapping[str, Any], *, seconds: int
    ) -> bool:
        """Kept if nobody was faster, sooner or later."""
        await self.waits()
        done = await super().replace_note(kind, note_id, known, note, seconds=seconds)
        await self.waits()
        return done


class Books:
    """A ledger: a step is booked once, however often it comes. Before or after it, whoever books may die."""

    def __init__(self, store: Slow, *, crashes: float) -> None:
        self.store, self.crashes = store, crashes
        self.booked: dict[str, int] = {}

    async def book(self, step: str, amount: int) -> None:
        """Unless it is booked."""
        await self.store.waits()
        self.maybe_dies()
        assert self.booked.setdefault(step, amount) == amount, f"two amounts under {step}"
        await self.store.waits()
        self.maybe_dies()

    def maybe_dies(self) -> None:
        """By chance."""
        if self.store.chance.random() < self.crashes:
            raise CrashedError


@pytest.mark.parametrize("served", [0, 3])
async def test_different_totals_told_at_once_end_at_the_highest_in_every_order(served: int) -> None:
    for seed in range(SEEDS):
        chance = Random(seed)
        store = Slow(chance)
        books = Books(store, crashes=0)
        totals = [chance.randrange(served, TOTAL_MAX + 1) for _ in range(chance.randint(2, TELLERS_MAX))]
        told = await asyncio.gather(
            *(RecordedCosts(store).raise_to("r", total, booked=served, book=books.book) for total in totals),
            return_exceptions=True,
        )
        assert sum(books.booked.values()) == max(totals) - served, f"seed {seed}"
        assert sum(one for one in told if isinstance(one, int)) == max(totals) - served, f"seed {seed}"
        late = [one for one in told if isinstance(one, BaseException)]
        assert all(isinstance(one, InvalidRequestError) for one in late), f"seed {seed}: {late}"


async def test_what_a_crash_left_half_done_is_made_whole_by_the_next() -> None:
    crashed = 0
    for seed in range(SEEDS):
        chance = Random(seed)
        store = Slow(chance)
        books = Books(store, crashes=0.3)
        totals = [chance.randrange(1, TOTAL_MAX + 1) for _ in range(chance.randint(2, TELLERS_MAX))]
        told = await asyncio.gather(
            *(RecordedCosts(store).raise_to("r", total, booked=0, book=books.book) for total in totals),
            return_exceptions=True,
        )
        crashed += any(isinstance(one, CrashedError) for one in told)
        books.crashes = 0
        await RecordedCosts(store).raise_to("r", TOTAL_MAX + 1, booked=0, book=books.book)
        assert sum(books.booked.values()) == TOTAL_MAX + 1, f"seed {seed}"
    assert crashed > SEEDS // 4
