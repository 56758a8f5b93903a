"""What may go wrong, when, and to whom: a plan of faults drawn from a seed, each of which can be left out by itself."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

SECOND_US = 1_000_000
LATE_US_MAX = 20 * SECOND_US
"""No request or reply, and no duplicate of one, is under way for longer: tombstones stay for a minute at least."""


class Kind(StrEnum):
    """One kind of fault. What `value` is, is said where it is not self-evident."""

    LOSE_REQUESTS = "lose-requests"
    """`value`: how many of a thousand. So with the next four."""
    LOSE_REPLIES = "lose-replies"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    """A request or a reply comes up to 20 seconds late, and so after later ones."""
    CANCEL = "cancel"
    """Callers go away, in the middle of whatever is done for them."""
    CUT = "cut"
    """The connection breaks: what is under way is lost, and what is sent is refused."""
    SILENCE = "silence"
    """A partition: what is sent vanishes."""
    CRASH = "crash"
    """The process is killed between two steps; another one begins when the fault ends."""
    PAUSE = "pause"
    """The process is stopped, and goes on when the fault ends."""
    WORKER_CLOCK = "worker-clock"
    """Its wall clock jumps by `value` microseconds."""
    STORE_CLOCK = "store-clock"
    """The store's clock jumps by `value` microseconds, and does not jump back."""
    STORE_DOWN = "store-down"
    """The store refuses connections, and loses nothing."""
    STORE_FULL = "store-full"
    """The store refuses what may need memory; what repays goes on."""
    RESTORE = "restore"
    """The store goes back to what it was `value` microseconds before, or a little earlier."""
    FLUSH = "flush"
    """The store forgets everything."""


LOSSY = frozenset({Kind.RESTORE, Kind.FLUSH})
"""Faults that lose acknowledged writes."""
OF_THE_STORE = frozenset({Kind.STORE_CLOCK, Kind.STORE_DOWN, Kind.STORE_FULL, Kind.RESTORE, Kind.FLUSH})
_NOISE = (Kind.LOSE_REQUESTS, Kind.LOSE_REPLIES, Kind.DUPLICATE, Kind.DELAY, Kind.CANCEL)
_BREAKS = (Kind.CUT, Kind.SILENCE, Kind.CRASH, Kind.CRASH, Kind.PAUSE, Kind.PAUSE, Kind.STORE_DOWN, Kind.STORE_FULL)
_CLOCKS = (Kind.WORKER_CLOCK, Kind.STORE_CLOCK)
_LOSSES = (Kind.RESTORE, Kind.RESTORE, Kind.FLUSH)
_HOUR_US = 3600 * SECOND_US


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """From `at_us` on for `length_us`, of worker number `target` (-1: of all, or of the store)."""

    at_us: int
    kind: Kind
    target: int
    length_us: int
    value: int = 0

    def __str__(self) -> str:
        whom = "store" if self.kind in OF_THE_STORE else "all" if self.target < 0 else f"worker {self.target}"
        value = f" {self.value}" if self.value else ""
        return f"{self.at_us / 1e6:9.3f} s  {self.kind}{value}, {whom}, for {self.length_us / 1e6:.3f} s"


class Profile(StrEnum):
    """What kinds of faults a seed draws from."""

    ANY = "any"
    """All that lose no acknowledged write."""
    KILLS = "kills"
    """Workers die and stop, all but the first; network and store are sound."""
    LOSSES = "losses"
    """All, and acknowledged writes are lost."""


def profile_of(seed: int) -> Profile:
    """Each is the turn of every third seed."""
    return tuple(Profile)[seed % len(Profile)]


def drawn(seed: int, *, workers: int, horizon_us: int) -> tuple[Fault, ...]:
    """The faults of a seed, in order of time."""
    chance = random.Random(f"{seed}/faults")
    profile = profile_of(seed)
    if profile is Profile.KILLS:
        return tuple(sorted(_kills(chance, workers, horizon_us)))
    return tuple(sorted(_draw(chance, workers, horizon_us, lossy=profile is Profile.LOSSES)))


def _kills(chance: random.Random, workers: int, horizon_us: int) -> Iterator[Fault]:
    for _ in range(chance.randint(4, 16)):
        fault = _one(chance, chance.choice((Kind.CRASH, Kind.CRASH, Kind.PAUSE, Kind.CANCEL)), workers, horizon_us)
        yield replace(fault, target=chance.randrange(1, workers))


def _draw(chance: random.Random, workers: int, horizon_us: int, *, lossy: bool) -> Iterator[Fault]:
    kinds = [*_NOISE, *chance.sample(_BREAKS, chance.randint(2, len(_BREAKS)))]
    if chance.random() < 0.5:
        kinds += _CLOCKS
    if lossy:
        kinds += chance.sample(_LOSSES, chance.randint(1, len(_LOSSES)))
    for _ in range(chance.randint(6, 24)):
        yield _one(chance, chance.choice(kinds), workers, horizon_us)
    if lossy:
        yield _one(chance, Kind.RESTORE, workers, horizon_us)


def _one(chance: random.Random, kind: Kind, workers: int, horizon_us: int) -> Fault:
    whom = -1 if kind in OF_THE_STORE or chance.random() < 0.2 else chance.randrange(workers)
    if kind in (Kind.CRASH, Kind.PAUSE) and whom < 0:
        whom = chance.randrange(workers)
    length = int(chance.choice((0.05, 0.5, 2, 8, 15)) * SECOND_US * chance.uniform(0.5, 1.5))
    value = 0
    if kind in _NOISE:
        value = chance.choice((20, 100, 300, 900))
    elif kind is Kind.RESTORE:
        value = int(chance.choice((0.05, 0.5, 2, 10)) * SECOND_US)
    elif kind in _CLOCKS:
        value = chance.choice((-1, 1)) * chance.choice((SECOND_US // 2, 3 * SECOND_US, 90 * SECOND_US, _HOUR_US))
    return Fault(chance.randrange(horizon_us), kind, whom, length, value)
