"""Deliveries of webhooks: an outbox in the store, so that a restart or a dead worker loses none.

An event for a webhook is one job, put there once by all workers, in one step. One worker at a time has it; what it does
not end in time, because it died, is the next one's. So a delivery arrives at least once; `webhook-id` tells repeats.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from apikeyrouter.domain.models.system_error import ApiKeyRouterError, StateStoreError
from apikeyrouter.infrastructure.cancellation import end_task, stop_if_cancelled
from apikeyrouter.infrastructure.state_store.records import Records, Taken

__all__ = ["JOURNAL", "QUEUE", "Deliveries", "Sent"]

QUEUE, JOURNAL = "webhooks", "webhook_deliveries"
KEPT = 10_000
"""How many deliveries that have ended are remembered."""
AWAY_MAX = 1_000
"""Events that a worker keeps while the store is away; beyond it the oldest go."""
ONCE_SECONDS = 86_400
"""How long an event's name is known, so that nobody puts it there again."""
SENDING_MAX = 8
CLAIM_SECONDS = 60.0
"""How long a worker has a delivery to itself; sending takes a fraction of it at most."""
LOOK_SECONDS = 1.0
CLOSE_SECONDS = 2.0
GIVE_UP_SECONDS = 86_400.0
DELAY_SECONDS, DELAY_FACTOR, DELAY_SECONDS_MAX = 1.0, 4.0, 3600.0
STATUS_SECONDS = 30 * 86_400
GONE = 410
"""The receiver wants nothing more of it."""
_log = structlog.get_logger("apikeyrouter")
Sent = tuple[int, str]
"""The status of the answer and ""; or 0 and what went wrong."""
Send = Callable[[str, Mapping[str, Any]], Awaitable[Sent | None]]
"""Send an event to a webhook of that name; None: it is switched off, so not yet."""
Known = Callable[[str], Awaitable[bool]]


class Deliveries:
    """One worker's part in delivering."""

    def __init__(self, records: Records, send: Send, known: Known) -> None:
        self._records, self._send, self._known = records, send, known
        self._away: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def put(self, webhook: str, event: Mapping[str, Any], *, again: str = "") -> bool:
        """Have an event delivered to a webhook; False where it was put there before. `again` tells a repeat apart.

        Errors: StateStoreUnavailableError; then it is not there.
        """
        job = {"webhook": webhook, "event": dict(event), "attempts": 0, "created_at": time.time()}
        name = f"{event['id']}:{webhook}{again}"
        done = await self._records.enqueue(QUEUE, name, job, once_seconds=ONCE_SECONDS)
        if done is None:
            self._drop(webhook, event, reason="the outbox is full")
        self._stirred.set()
        return bool(done)

    async def put_or_keep(self, webhook: str, event: Mapping[str, Any]) -> None:
        """As `put`. While the store is away this worker keeps AWAY_MAX events, and puts them there when it is back; an
        end of the worker before that takes them along."""
        try:
            await self.put(webhook, event)
        except StateStoreError:
            if len(self._away) >= AWAY_MAX:
                self._drop(*self._away.popleft(), reason="too many while the store is away")
            self._away.append((webhook, event))

    def start(self) -> None:
        """Begin to deliver."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.webhooks.deliver")

    async def close(self) -> None:
        """Stop. What is under way has a moment; then it is another worker's, or this one's after a restart."""
        await end_task(self._task)
        self._task = None
        with contextlib.suppress(StateStoreError):
            await self._put_what_was_kept()
        while self._away:
            self._drop(*self._away.popleft(), reason="the store is away, and this worker ends")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        for task in tuple(self._tasks):
            await end_task(task)

    async def status(self, webhook: str) -> dict[str, Any] | None:
        """How the last try of a webhook went, whichever worker made it."""
        return await self._records.recall(f"webhook:{webhook}")

    async def _run(self) -> None:
        while True:
            stop_if_cancelled()
            try:
                await self._put_what_was_kept()
                await self._take()
            except ApiKeyRouterError as exc:
                _log.warning("webhook.outbox_unreachable", error=str(exc))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stirred.wait()
            self._stirred.clear()

    async def _put_what_was_kept(self) -> None:
        while self._away:
            kept = self._away.popleft()
            try:
                await self.put(*kept)
            except BaseException:
                self._away.appendleft(kept)
                raise

    def _drop(self, webhook: str, event: Mapping[str, Any], *, reason: str) -> None:
        _log.error("webhook.dropped", name=webhook, event_id=event["id"], reason=reason)

    async def _take(self) -> None:
        """Take as many as can be sent at once: what waits here would be nobody's meanwhile."""
        free = SENDING_MAX - len(self._tasks)
        for taken in await self._records.take(QUEUE, count=free, seconds=CLAIM_SECONDS) if free else ():
            task = asyncio.get_running_loop().create_task(self._deliver(taken))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("webhook.delivery_unsettled", error=repr(task.exception()))
        self._stirred.set()

    async def _deliver(self, taken: Taken) -> None:
        job = taken.job
        webhook, event = str(job["webhook"]), job["event"]
        if not await self._known(webhook):
            await self._records.settle(QUEUE, taken, again=None)
            return
        late = time.time() - float(job["created_at"]) >= GIVE_UP_SECONDS
        sent = await self._send(webhook, event)
        if sent is None and not late:
            await self._records.settle(QUEUE, taken, again=job, delay=DELAY_SECONDS_MAX)
            return
        status, error = sent or (0, "the webhook is switched off")
        delivered = 200 <= status < 300
        job = {**job, "attempts": int(job["attempts"]) + 1, "status": status or None, "error": error or None}
        job["tried_at"] = time.time()
        over = delivered or late or status == GONE
        if not await self._records.settle(
            QUEUE, taken, again=None if over else job, delay=delay_after(job["attempts"])
        ):
            return  # it took so long that another worker has it by now
        told = {
            "event_id": event["id"], "delivered": delivered, "status": status or None, "error": error or None,
            "attempt": job["attempts"], "at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        await self._records.remember(f"webhook:{webhook}", told, seconds=STATUS_SECONDS)
        if over:
            await self._records.append(JOURNAL, {**job, "delivered": delivered}, kept=KEPT)
        if over and not delivered:
            _log.error("webhook.undelivered", name=webhook, event_id=event["id"], attempts=job["attempts"])


def delay_after(attempts: int) -> float:
    """Seconds until the next try: 1, 4, 16, … up to an hour, and up to a tenth longer, so that not all come at once."""
    seconds = DELAY_SECONDS * DELAY_FACTOR ** min(attempts - 1, 10)
    return min(seconds, DELAY_SECONDS_MAX) * random.uniform(1.0, 1.1)  # noqa: S311 (no secret)
