"""What was used, by day, client, team, key, provider and model: added up beside requests, kept for reports.

Reports, not books: a process that is killed takes its last second along. Budgets are exact, and elsewhere.
"""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import structlog

from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.state_store.records import Records

__all__ = ["COUNTED", "DIMENSIONS", "UsageCounts", "report"]

FLUSH_SECONDS = 1.0
DAY_US = 86_400_000_000
PLACES_MAX = 20_000
"""Different (client, team, key, provider, model) that one process counts in a day; the rest are counted as OTHER."""
OTHER = "~other"
NAME_LENGTH_MAX = 256
DIMENSIONS = ("client", "team", "key", "provider", "model")
COUNTED = (
    "requests", "served", "denied", "failed", "input_tokens", "output_tokens", "cached_input_tokens", "cost_nanousd",
    "unpriced_requests", "estimated_requests",
)  # fmt: skip
REQUESTS, SERVED, DENIED, FAILED, INPUT, OUTPUT, CACHED, COST, UNPRICED, ESTIMATED = range(len(COUNTED))
_DENIED = frozenset({"no_eligible_keys", "budget_exceeded_error", "policy_denied"})
_log = structlog.get_logger("apikeyrouter")
Place = tuple[str, ...]


class UsageCounts:
    """Adds up what requests of this process used, and gives it to the records every second."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: defaultdict[tuple[str, Place], list[int]] = defaultdict(_nothing)
        self._places: set[Place] = set()
        self._known: dict[tuple[str | None, ...], list[int]] = {}
        """Names as facts have them → what is counted for them today."""
        self._day, self._day_number = "", -1
        self._told = False
        self._task: asyncio.Task[None] | None = None

    def add(self, facts: Facts) -> None:
        """A request has ended."""
        if facts.at_us // DAY_US != self._day_number:
            self._begin_day(facts.at_us)
        if facts.attempts:
            last = facts.attempts[-1]
            names = (facts.client, facts.team, last.key_id, last.provider_id, last.model)
        else:  # a model counts when somebody was asked for it: others are made up
            names = (facts.client, facts.team, "", "", "")
        numbers = self._known.get(names) or self._counted(names)
        numbers[REQUESTS] += 1
        cost, usage = facts.cost_nanousd, facts.usage
        if facts.outcome == "ok":
            numbers[SERVED] += 1
            numbers[UNPRICED] += cost is None
        else:
            numbers[DENIED if facts.outcome in _DENIED else FAILED] += 1
        if usage is not None:
            numbers[INPUT] += usage.input_tokens
            numbers[OUTPUT] += usage.output_tokens
            numbers[CACHED] += usage.cache_read_tokens
        numbers[COST] += cost or 0
        numbers[ESTIMATED] += facts.cost_estimated

    def start(self) -> None:
        """Begin to give it away."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.usage")

    async def close(self) -> None:
        """Stop, and give away what is left."""
        await end_task(self._task)
        self._task = None
        with contextlib.suppress(ApiKeyRouterError):
            await self.flush()

    async def flush(self) -> None:
        """Give away what was added up. Errors: StateStoreError; then it waits on."""
        for day in {day for day, _ in self._waiting}:
            self._known.clear()  # what is counted from here on is given away the next time
            taken = {key: self._waiting.pop(key) for key in list(self._waiting) if key[0] == day}
            try:
                await self._records.add_counts(_kind(day), _fields(taken))
            except BaseException:
                for key, numbers in taken.items():
                    _add(self._waiting[key], numbers)
                raise

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
                self._told = False
            except ApiKeyRouterError as exc:
                if not self._told:
                    _log.warning("usage.not_kept", error=str(exc))
                self._told = True

    def _begin_day(self, at_us: int) -> None:
        self._day_number = at_us // DAY_US
        self._day = datetime.fromtimestamp(at_us / 1e6, UTC).date().isoformat()
        self._places.clear()
        self._known.clear()

    def _counted(self, names: tuple[str | None, ...]) -> list[int]:
        """What is counted for whose request it was and who served it; beyond PLACES_MAX of them, for all others."""
        place = tuple((name or "")[:NAME_LENGTH_MAX] for name in names)
        if place not in self._places and len(self._places) >= PLACES_MAX:
            return self._waiting[self._day, (OTHER, OTHER, *place[2:4], OTHER)]
        self._places.add(place)
        counted = self._known[names] = self._waiting[self._day, place]
        return counted


async def report(
    records: Records, days: Iterable[date], *, by: tuple[str, ...], only: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What was used on those days: one row for each different value of `by` (dimensions, and `day`), sorted by it.

    `only`: dimensions and the value that counts.
    """
    rows: dict[tuple[str, ...], dict[str, int]] = {}
    for day in days:
        for field, number in (await records.all_counts(_kind(day.isoformat()))).items():
            *names, counted = json.loads(field)
            place = {**dict(zip(DIMENSIONS, names, strict=True)), "day": day.isoformat()}
            if counted in COUNTED and all(place[name] == value for name, value in only.items()):
                row = rows.setdefault(tuple(place[name] for name in by), dict.fromkeys(COUNTED, 0))
                row[counted] += number
    return [{**dict(zip(by, values, strict=True)), **row} for values, row in sorted(rows.items())]


def _kind(day: str) -> str:
    return f"usage-{day}"


def _nothing() -> list[int]:
    return [0] * len(COUNTED)


def _add(into: list[int], numbers: Sequence[int]) -> None:
    for at, number in enumerate(numbers):
        into[at] += number


def _fields(counts: Mapping[tuple[str, Place], Sequence[int]]) -> dict[str, int]:
    """As the records keep them: names and what is counted as a JSON list, and how much."""
    return {
        json.dumps([*place, name]): number
        for (_, place), numbers in counts.items()
        for name, number in zip(COUNTED, numbers, strict=True)
        if number
    }
