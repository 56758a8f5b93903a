"""Who goes first of those that wait for room: classes of priority, then clients by their weights. Pure.

A line is what waits for the same room. Within a class, clients take turns by their weights, whoever has how many
waiting: each place has a tag, which grows by 1/weight for each request of its client, and the lowest tag is first.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Hashable
from typing import NamedTuple

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["LENGTH_MAX", "PRIORITIES", "Place", "WaitLines", "Who", "read_priority"]

PRIORITIES = ("interactive", "batch")
"""Classes of priority, the first served first."""
LENGTH_MAX = 1000
"""Requests that may wait in one process."""
CLIENTS_MAX = 4096
"""Clients whose turns a line remembers before it forgets those that are over."""


def read_priority(name: str, *, field: str = "priority") -> int:
    """A class by its name, as its place. Raises InvalidRequestError."""
    if name not in PRIORITIES:
        raise InvalidRequestError(f"must be one of {', '.join(PRIORITIES)}", field=field)
    return PRIORITIES.index(name)


class Who(NamedTuple):
    """Who waits: a client, the place of its class in PRIORITIES, and its weight."""

    principal: str
    priority: int = 0
    weight: float = 1


class Place:
    """One request's place in a line. `not_before`: when it should ask again; `since`: when it came. `wake` is called
    when it is news."""

    __slots__ = (
        "closed",
        "gone",
        "line",
        "not_before",
        "number",
        "pushed_out",
        "since",
        "stirred",
        "tag",
        "wake",
        "who",
    )

    def __init__(self, line: Hashable, who: Who, tag: float, number: int) -> None:
        self.line, self.who, self.tag, self.number = line, who, tag, number
        self.not_before = self.since = 0.0
        self.closed = self.gone = self.pushed_out = self.stirred = False
        self.wake: Callable[[], None] | None = None

    def __lt__(self, other: "Place") -> bool:
        return (self.who.priority, self.tag, self.number) < (other.who.priority, other.tag, other.number)


class _Line:
    __slots__ = ("crowd", "heap", "latest", "virtual", "waiting")

    def __init__(self) -> None:
        self.heap: list[Place] = []
        self.virtual = [0.0] * len(PRIORITIES)
        """By class, the tag that was served last."""
        self.latest: dict[tuple[int, str], float] = {}
        """By class and client, its highest tag."""
        self.waiting: Counter[str] = Counter()
        self.crowd = CLIENTS_MAX
        """How many are remembered before the line looks for those whose turns are over."""

    def reached(self, who: Who) -> float:
        """The tag up to which a client has had its turns."""
        return max(self.virtual[who.priority], self.latest.get((who.priority, who.principal), 0.0))

    def take_turn(self, who: Who) -> float:
        """The tag of a client's next turn, which is taken."""
        if len(self.latest) >= self.crowd:
            self.latest = {whose: tag for whose, tag in self.latest.items() if tag > self.virtual[whose[0]]}
            self.crowd = max(CLIENTS_MAX, 2 * len(self.latest))
        tag = self.latest[who.priority, who.principal] = self.reached(who) + 1.0 / who.weight
        return tag

    def first(self) -> Place | None:
        while self.heap and self.heap[0].gone:
            heapq.heappop(self.heap)
        return self.heap[0] if self.heap else None


class WaitLines:
    """All lines of one process, at most `length_max` places together."""

    def __init__(self, length_max: int = LENGTH_MAX) -> None:
        self.length_max, self.length = length_max, 0
        self._lines: dict[Hashable, _Line] = {}
        self._by_client: Counter[str] = Counter()
        self._number = 0

    def join(self, key: Hashable, who: Who) -> Place | None:
        """A place at the end of its client's part of a line; None: there is no room.

        Where all is full, a newcomer of a better class, or of a client with fewer waiting, takes the place of the last
        of those that have most: that one is marked `pushed_out`.
        """
        if self.length >= self.length_max and not self._make_room(who):
            return None
        line = self._lines.setdefault(key, _Line())
        self._number += 1
        return self._put(line, Place(key, who, line.take_turn(who), self._number))

    def move(self, place: Place, key: Hashable) -> Place:
        """Its place in another line instead, among its equals by when it came."""
        self.leave(place)
        line = self._lines.setdefault(key, _Line())
        moved = Place(key, place.who, line.reached(place.who), place.number)
        moved.since = place.since
        return self._put(line, moved)

    def leave(self, place: Place, *, served: bool = False) -> None:
        """Give a place up. Idempotent."""
        if place.gone:
            return
        place.gone = True
        line, who = self._lines[place.line], place.who
        self.length -= 1
        for counter in (line.waiting, self._by_client):
            counter[who.principal] -= 1
            if not counter[who.principal]:
                del counter[who.principal]
        if served:
            line.virtual[who.priority] = max(line.virtual[who.priority], place.tag)
        if not line.waiting:
            del self._lines[place.line]

    def first(self, key: Hashable) -> Place | None:
        """Whose turn it is in a line."""
        line = self._lines.get(key)
        return None if line is None else line.first()

    def firsts(self) -> list[Place]:
        """Whose turn it is in each line."""
        return [place for line in self._lines.values() if (place := line.first()) is not None]

    def goes_before(self, key: Hashable, who: Who) -> bool:
        """Whether somebody waits in a line who goes before a newcomer. Of equals, who has nobody waiting goes first."""
        line = self._lines.get(key)
        first = None if line is None else line.first()
        if line is None or first is None:
            return False
        if who.principal in line.waiting:
            return first.who.priority <= who.priority
        return (first.who.priority, first.tag) < (who.priority, line.reached(who) + 1.0 / who.weight)

    def passed(self, key: Hashable, who: Who) -> None:
        """Somebody was served who did not have to wait; that was its client's turn."""
        line = self._lines.get(key)
        if line is not None:
            line.take_turn(who)

    def all(self) -> list[Place]:
        """Every place."""
        return [place for line in self._lines.values() for place in line.heap if not place.gone]

    # --- inside --------------------------------------------------------------------------------------------------

    def _put(self, line: _Line, place: Place) -> Place:
        if len(line.heap) > 2 * line.waiting.total() + 16:
            line.heap = [other for other in line.heap if not other.gone]
            heapq.heapify(line.heap)
        heapq.heappush(line.heap, place)
        line.waiting[place.who.principal] += 1
        self._by_client[place.who.principal] += 1
        self.length += 1
        return place

    def _make_room(self, who: Who) -> bool:
        """Push out the last of those that have most, unless that would be the newcomer."""
        most = self._by_client
        worst = max(self.all(), key=lambda place: (place.who.priority, most[place.who.principal], place.number))
        if (worst.who.priority, most[worst.who.principal]) <= (who.priority, most[who.principal] + 1):
            return False
        worst.pushed_out = True
        self.leave(worst)
        if worst.wake is not None:
            worst.wake()
        return True
