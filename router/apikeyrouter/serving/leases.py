"""Leases: a key with capacity and money held for it, for a call that the application makes itself.

A lease is an attempt whose sending is somebody else's: it is admitted, renewed, watched and booked like any other.
"""

import asyncio
import contextlib
import math
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any

from apikeyrouter.domain.components.failure_handler import FailureHandler
from apikeyrouter.domain.components.pool import Pool
from apikeyrouter.domain.interfaces.provider_adapter import http_status
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.api_key import KeyMaterial
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.request_intent import refuse_bad_name
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError, ProviderError, SystemError
from apikeyrouter.infrastructure.adapters.sdk_errors import below_http, read_answer_of
from apikeyrouter.infrastructure.observability.events import REQUEST_ID
from apikeyrouter.serving.answers import outcome_of
from apikeyrouter.serving.endings import Attempt, Endings
from apikeyrouter.serving.outcomes import deadline_passed
from apikeyrouter.serving.requests import deadline_of
from apikeyrouter.serving.spread_books import AnyBooks
from apikeyrouter.serving.told_usage import check_count, read_usage

__all__ = ["Lease", "Leasing", "lease_call"]

OPERATION = "lease"
INPUT_SHARE = 2 / 3
"""How much of a total is expected to be input, as in the typical request by which prices are compared."""
UNKNOWN_INPUT_TOKENS, UNKNOWN_OUTPUT_TOKENS = 1000, 400
"""What is expected where nothing was stated; nothing bounds it, which hard budgets treat by their rule for that."""
BOOK_SECONDS_MAX = 10.0
Admit = Callable[[Call], Awaitable[tuple[Pool, Attempt]]]


class Lease:
    """A held key. Give `key` to your SDK, then say what was used.

    `key` is the material as a `str` that prints redacted; `key_id`, `provider_id` and `model` (the provider's own name
    of it) say what was chosen, `base_url` where the provider is and `headers` how it is let in (with the material;
    neither for an adapter that has no HTTP dialect). `max_output_tokens`: what the hard budgets hold for, None where
    nothing bounds it. `request_id` is the lease's, for traces and logs.
    """

    def __init__(self, attempt: Attempt, pool: Pool, ends: Endings, books: AnyBooks, failures: FailureHandler) -> None:
        admitted = attempt.admitted
        option = admitted.option
        self._attempt, self._pool, self._ends, self._books, self._failures = attempt, pool, ends, books, failures
        self.key: KeyMaterial = option.key.material
        self.key_id, self.provider_id, self.model = option.key.id, option.provider.id, option.model
        self.request_id = attempt.call.request_id
        self._deadline = attempt.call.deadline
        self.base_url: str | None = getattr(attempt.wire, "base_url", None)
        self.max_output_tokens = admitted.estimate.bound_output
        self._why = ""
        self.ended = False
        """Whether its reservation was settled, released, or ended by a failure."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that carry the key."""
        wire = self._attempt.wire
        return {} if wire is None else dict(wire.credentials(str.__str__(self.key)))

    @property
    def timeout(self) -> float | None:
        """Seconds that are left of the lease's time, for the SDK's own timeout; None: it has no end."""
        return None if self._deadline is None else max(0.0, self._deadline - time.perf_counter())

    def settle(
        self, usage: Any = None, *, input_tokens: int | None = None, output_tokens: int | None = None,
        cache_read_tokens: int | None = None, cache_write_tokens: int | None = None,
    ) -> "Booking":  # fmt: skip
        """Book what was really used, and end the lease.

        `usage`: an SDK's usage object, or its whole answer, or a mapping of either; else the counts, of which input
        contains cache reads and writes. More than was held is booked all the same. Awaiting the result waits until the
        ledger has it.

        Raises:
            InvalidRequestError: the lease has ended, or these are no counts; a lease that is open stays open.
        """
        self._check()
        counts = {
            "input_tokens": input_tokens, "output_tokens": output_tokens, "cache_read_tokens": cache_read_tokens,
            "cache_write_tokens": cache_write_tokens,
        }  # fmt: skip
        read = read_usage(usage, self._attempt.wire, counts)
        self.ended = True
        self._failures.learn_success(self._attempt.admitted.option, self._attempt.started)
        self._ends.answered(self._attempt, read, produced=0)
        return Booking(self._books)

    def release(self) -> "Booking":
        """The key was not used: give back all that was held, and end the lease. Errors: as `settle`."""
        self._check()
        self.ended = True
        self._attempt.sent = False
        self._attempt.facts.outcome = "released"
        self._ends.abandoned(self._attempt, why="released")
        return Booking(self._books)

    def fail(self, error: BaseException) -> Failure | None:
        """The call failed: act on what the error says of the provider, book what may have been billed, end the lease.

        Called by itself with what leaves the `async with` block. What is not the provider's fault (None) speaks against
        nobody; as it is not known whether the key was used by then, the estimate is charged and marked.
        Errors: as `settle`.
        """
        self._check()
        self.ended = True
        facts, attempt = self._attempt.facts, self._attempt
        failure = self._interpret(error)
        facts.outcome = outcome_of(error) if failure is None else failure.category.value
        if failure is None:
            self._ends.abandoned(attempt)
            return None
        failure = self._failures.judge(failure, attempt.admitted.option)
        self._failures.learn(failure, attempt.admitted.option, self._pool.options, {})
        self._ends.failed(attempt, failure)
        return failure

    def charge_estimate(self) -> None:
        """Nothing was said: what was expected is charged, and marked as an estimate."""
        self._check()
        self.ended = True
        self._ends.answered(self._attempt, None, produced=0)

    def lose(self, why: str) -> None:
        """The ledger, or the router, gave it up: what was expected is charged."""
        self.ended, self._why = True, why
        self._ends.abandoned(self._attempt)

    def __repr__(self) -> str:
        return f"<lease {self.request_id}: key {self.key_id} of {self.provider_id}{' (ended)' if self.ended else ''}>"

    def _interpret(self, error: BaseException) -> Failure | None:
        wire, secret = self._attempt.wire, str.__str__(self.key)
        if not isinstance(error, Exception):
            return None
        answered = None if wire is None else read_answer_of(error, wire, secret=secret)
        if answered is not None:
            return answered
        below = below_http(error)
        if below is None and http_status(error) is None and not isinstance(error, SystemError):
            return None
        whose = {"provider_id": self.provider_id, "key_id": self.key_id}
        return self._failures.interpret_failure(below or error, whose)

    def _check(self) -> None:
        if self.ended:
            raise InvalidRequestError(self._why or "has ended already", field="lease")


class Booking:
    """An end on its way to the ledger. Awaiting it waits until it is booked; whether it is, after at most 10 s."""

    def __init__(self, books: AnyBooks) -> None:
        self._books = books

    def __await__(self) -> Generator[Any, None, bool]:
        return self._books.flush(seconds=BOOK_SECONDS_MAX).__await__()


class Leasing:
    """`async with router.lease(…) as lease`: holds at entry, ends at exit, whatever happened in between."""

    def __init__(
        self, call: Call, admit: Admit, ends: Endings, books: AnyBooks, failures: FailureHandler,
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        self._call, self._admit, self._ends, self._books, self._failures = call, admit, ends, books, failures
        self._lease: Lease | None = None
        self._attempt: Attempt | None = None
        self._speaking: Token[str] | None = None
        self._timeout = timeout
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Lease:
        if self._attempt is not None:
            raise InvalidRequestError("a lease is entered once; ask for another one", field="lease")
        self._call.started = time.perf_counter()
        self._call.deadline = deadline_of(self._call.started, self._timeout)
        pool, attempt = await self._admit(self._call)
        attempt.sent, attempt.timed = True, False
        attempt.watch()
        self._attempt = attempt
        self._lease = Lease(attempt, pool, self._ends, self._books, self._failures)
        self._watch(attempt, self._lease)
        if self._lease.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(self._lease.timeout, self._end_late, attempt)
        self._speaking = REQUEST_ID.set(self._call.request_id)
        return self._lease

    def _watch(self, attempt: Attempt, lease: Lease) -> None:
        """When the ledger gives the lease up, the task that holds it is cancelled; where that has ended, gives it up
        itself by closing the router, or dropped it so that nobody can leave it any more, it is lost."""
        task, abort, held = asyncio.current_task(), attempt.hold.abort, weakref.ref(self)

        def lose(why: str) -> None:
            ended = task is None or task.done() or task is asyncio.current_task() or held() is None
            if abort is not None and not ended:
                abort(why)
            else:
                lease.lose(why)

        attempt.hold.abort = lose

    def _end_late(self, attempt: Attempt) -> None:
        lease = self._lease
        if lease is not None and not lease.ended and not attempt.end_with(deadline_passed(sent=True)):
            lease.lose("its time is over")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, attempt = self._lease, self._attempt
        assert lease is not None
        assert attempt is not None
        if self._timer is not None:
            self._timer.cancel()
        given_up = attempt.was_given_up() if isinstance(error, asyncio.CancelledError) else None
        try:
            if not lease.ended:
                lease.charge_estimate() if error is None else lease.fail(error)
            if given_up is not None:
                attempt.facts.outcome = given_up.category.value
        finally:
            self._ends.finish(attempt)
            if self._speaking is not None:
                with contextlib.suppress(ValueError):  # left in another task than entered
                    REQUEST_ID.reset(self._speaking)
        if given_up is not None:
            raise ProviderError(given_up.message, category=given_up.category, details={"failure": given_up}) from error


def lease_call(
    model: str, *, provider_id: str | None, estimated_tokens: int | None, input_tokens: int | None,
    max_output_tokens: int | None, objective: RoutingObjective | Mapping[str, Any] | str | None, team: str | None,
    client: str | None, timeout: float | None = None,
) -> Call:  # fmt: skip
    """The call that a lease is. Raises InvalidRequestError."""
    for name, text in (("model", model), ("provider_id", provider_id), ("team", team), ("client", client)):
        if name == "model" or text is not None:
            refuse_bad_name(text, name)
    deadline_of(0.0, timeout)
    stated = _stated(estimated_tokens, input_tokens, max_output_tokens)
    parsed = ParsedRequest(
        model=model, stream=False, choices=1, max_output_tokens=stated[3],
        input_bytes=0, messages=0, extra_tokens=0, unbounded=True, include_usage=True, fields={}, stated=stated,
    )  # fmt: skip
    return Call(
        request_id=f"lease_{uuid.uuid4().hex}", operation=OPERATION, model=model, stream=False,
        started=time.perf_counter(), parsed=parsed, provider_id=provider_id, team=team, client=client,
        principal=client or "", objective=None if objective is None else RoutingObjective.read(objective),
    )  # fmt: skip


def _stated(total: int | None, inputs: int | None, outputs: int | None) -> tuple[int, int, int | None, int | None]:
    """Expected input and output, and the bounds of both: a total may turn out to be all the one or all the other."""
    for name, count in (("estimated_tokens", total), ("input_tokens", inputs), ("max_output_tokens", outputs)):
        if count is not None:
            check_count(name, count)
    if total is None and inputs is None:
        if outputs is not None:
            raise InvalidRequestError("tell input_tokens as well", field="max_output_tokens")
        return UNKNOWN_INPUT_TOKENS, UNKNOWN_OUTPUT_TOKENS, None, None
    if inputs is not None:
        if total is not None:
            raise InvalidRequestError("tell either a total or input and output", field="estimated_tokens")
        return inputs, outputs or 0, inputs, outputs or 0
    assert total is not None
    if outputs is not None and outputs > total:
        raise InvalidRequestError("is more than the total", field="max_output_tokens")
    output = total - math.ceil(total * INPUT_SHARE) if outputs is None else outputs
    return total - output, output, total, total if outputs is None else outputs
