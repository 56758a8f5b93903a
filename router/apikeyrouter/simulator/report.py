"""What the simulated providers saw and billed: counters that add up, and a bounded journal."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

from apikeyrouter.simulator.limits import InFlight
from apikeyrouter.simulator.prices import Usage

__all__ = ["Journal", "JournalEntry", "Tally", "sum_tallies"]


class Tally:
    """Counters of one key. ``arrived = admitted + sum(rejected)`` and ``admitted = ended + in_flight`` always hold.

    ``over_limit`` are the arrivals that a limit refused (all 429s that we caused by counting, none by a failure
    script); ``failed`` were admitted and then failed by a script; ``cut`` are answers that we broke off on purpose.
    """

    __slots__ = (
        "admitted",
        "arrived",
        "cached_tokens",
        "completed",
        "cost_nanousd",
        "cut",
        "disconnected",
        "failed",
        "failures",
        "in_flight",
        "input_tokens",
        "output_tokens",
        "over_limit",
        "rejected",
        "streams",
    )

    def __init__(self) -> None:
        self.arrived = 0
        self.admitted = 0
        self.rejected: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.over_limit = 0
        self.completed = 0
        self.failed = 0
        self.cut = 0
        self.disconnected = 0
        self.streams = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0
        self.cost_nanousd = 0
        self.in_flight = InFlight()

    def reject(self, kind: str, *, over_limit: bool = False) -> None:
        """An arrival was refused."""
        self.rejected[kind] += 1
        self.over_limit += over_limit

    def bill(self, usage: Usage, cost_nanousd: int) -> None:
        """A request was billed: tokens used and integer nano-dollars."""
        self.input_tokens += usage.input
        self.output_tokens += usage.output
        self.cached_tokens += usage.cached
        self.cost_nanousd += cost_nanousd

    def as_dict(self) -> dict[str, Any]:
        """The counters as plain JSON types."""
        plain = {name: getattr(self, name) for name in _SUMMED}
        return {
            **plain,
            "rejected": dict(self.rejected),
            "failures": dict(self.failures),
            "in_flight": self.in_flight.now,
            "peak_concurrency": self.in_flight.peak,
        }


_SUMMED = (
    "arrived",
    "admitted",
    "over_limit",
    "completed",
    "failed",
    "cut",
    "disconnected",
    "streams",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_nanousd",
)


def sum_tallies(tallies: list[Tally], in_flight: InFlight) -> dict[str, Any]:
    """The counters of a group of keys; its concurrency is measured by itself (peaks do not add up)."""
    total = Tally()
    total.in_flight = in_flight
    for tally in tallies:
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.rejected.update(tally.rejected)
        total.failures.update(tally.failures)
    return total.as_dict()


@dataclass(slots=True)
class JournalEntry:
    """One arrival: who, what, the verdict (``admitted`` until it ends), and in the end the bill.

    ``client_request_id`` is the ``x-request-id`` or ``x-client-request-id`` that the request carried, if any.
    """

    at_ns: int
    request_id: str
    client_request_id: str | None
    organisation: str
    key: str
    model: str
    stream: bool = False
    verdict: str = "admitted"
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0


class Journal:
    """The last ``length`` arrivals, oldest first; how many older ones were forgotten is in ``forgotten``."""

    def __init__(self, length: int) -> None:
        self._entries: deque[JournalEntry] = deque(maxlen=length)
        self._seen = 0

    def add(self, entry: JournalEntry) -> None:
        """Remember ``entry``, which its request goes on to complete."""
        self._entries.append(entry)
        self._seen += 1

    def as_dict(self) -> dict[str, Any]:
        """The journal as plain JSON types."""
        entries = [asdict(entry) for entry in self._entries]
        return {"entries": entries, "forgotten": self._seen - len(entries)}
