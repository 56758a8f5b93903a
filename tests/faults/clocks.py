"""What a simulated process sees of time and chance, put in the place of `time`, `random` and `secrets` in the library.

Monotonic clocks are the loop's; a process's wall clock may be anywhere. Chance comes from the seed.
"""

import logging
import os
import random
import secrets
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from apikeyrouter.domain.components import reservation_ids
from apikeyrouter.infrastructure.observability.events import EventLog
from tests.faults.virtual_loop import PROCESS, VirtualLoop
from tests.ledger.support import START_US


class SimulatedTime(types.ModuleType):
    """`time`, as a process sees it. `wall_us`: how far the wall clock of each is off."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__("time")
        self._loop = loop
        self.wall_us: dict[str, int] = {}

    def perf_counter(self) -> float:
        return self._loop.now_us / 1e6

    def monotonic(self) -> float:
        return self._loop.now_us / 1e6

    def monotonic_ns(self) -> int:
        return self._loop.now_us * 1000

    def time_ns(self) -> int:
        return (START_US + self._loop.now_us + self.wall_us.get(PROCESS.get(), 0)) * 1000

    def time(self) -> float:
        return self.time_ns() / 1e9

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class SimulatedSecrets(types.ModuleType):
    """`secrets`, for those who want a number that nobody else has."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__("secrets")
        self._random = chance

    def randbelow(self, limit: int) -> int:
        return self._random.randrange(limit)


class SimulatedSystem(types.ModuleType):
    """`os`, for those who want bytes that nobody else has."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__("os")
        self.urandom = chance.randbytes


Told = Callable[[str, dict[str, Any]], None]


@contextmanager
def in_the_library(clock: SimulatedTime, seed: str, told: Told) -> Iterator[None]:
    """Everything of the library that is loaded sees this time and this chance; `told` hears what it logs."""
    chance = random.Random(f"{seed}/chance")
    places: tuple[tuple[str, object, Any], ...] = (
        ("time", time, clock), ("random", random, chance), ("secrets", secrets, SimulatedSecrets(chance)),
    )  # fmt: skip
    originals: list[tuple[types.ModuleType, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("apikeyrouter.") and not name.startswith("apikeyrouter.simulator"):
            for place, original, value in places:
                if vars(module).get(place) is original:
                    originals.append((module, place, original))
                    setattr(module, place, value)
    originals.append((reservation_ids, "os", os))
    vars(reservation_ids).update(os=SimulatedSystem(chance))
    reservation_ids._tails.clear()
    level, EventLog.level = EventLog.level, logging.WARNING
    write = EventLog.write

    def hear(self: EventLog, level: int, event: str, fields: dict[str, Any]) -> None:
        told(event, fields)

    EventLog.write = hear  # type: ignore[method-assign]
    try:
        yield
    finally:
        EventLog.level, EventLog.write = level, write  # type: ignore[method-assign]
        for module, place, original in originals:
            setattr(module, place, original)
        reservation_ids._tails.clear()
