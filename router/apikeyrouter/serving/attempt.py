"""One attempt: send the request with one key, read the answer, and say how its reservation ends.

A failure comes back as a value, not an exception: the router decides what to do next. Every path out of here hands the
reservation in to the bookkeeper.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.wire import StreamReader, Wire
from apikeyrouter.domain.models.accounting import UNPRICED, Outcome, Settlement
from apikeyrouter.domain.models.call import AttemptFacts, Call, Exchange, Facts
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope
from apikeyrouter.domain.models.system_error import ErrorCategory, ProviderError, SystemError
from apikeyrouter.domain.models.system_response import StreamChunk, TokenUsage
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.transport import (
    Response,
    Timeouts,
    Transport,
    TransportError,
    UpstreamTimeout,
)
from apikeyrouter.serving.admission import Admitted
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release

ERROR_BODY_BYTES_MAX = 256 * 1024
HELD_BYTES_MAX = 1024 * 1024
"""Most bytes of a stream that are held back before its first substantive event; then it is passed on as it is."""
TIMEOUT_SECONDS_MIN = 0.05
Observe = Callable[[Admitted, Response], None]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What one attempt works with."""

    call: Call
    facts: Facts
    own: AttemptFacts
    admitted: Admitted
    wire: Wire
    timeouts: Timeouts | None
    """None: the call's deadline leaves no time."""


class Attempts:
    """Sends requests. One event loop owns it."""

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        books: Bookkeeper,
        estimator: TokenEstimator,
        *,
        observe: Observe,
        finished: Callable[[Call, Facts], None],
        timeouts: Timeouts,
    ) -> None:
        self._open_transport = open_transport
        self._transport: Transport | None = None
        self._books, self._estimator = books, estimator
        self._observe, self._finished, self._timeouts = observe, finished, timeouts

    def open(self) -> Transport:
        """Make the transport, if it is not there yet."""
        if self._transport is None:
            self._transport = self._open_transport()
        return self._transport

    async def close(self) -> None:
        """Close the transport. Idempotent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def run(self, attempt: Attempt) -> Exchange | Failure:
        """The answer, or what went wrong before its first substantive byte."""
        started = time.perf_counter()
        try:
            if attempt.timeouts is None:
                raise UpstreamTimeout("total", sent=False)
            return await self._run(attempt, attempt.timeouts, started)
        except TransportError as exc:
            failure = transport_failure(exc)
            self._end_failed(attempt, failure, started)
            return failure
        except BaseException:
            self._end_unknown(attempt, started)
            raise

    async def _run(self, attempt: Attempt, timeouts: Timeouts, started: float) -> Exchange | Failure:
        call, admitted, wire = attempt.call, attempt.admitted, attempt.wire
        parsed = admitted.parsed
        assert parsed is not None
        key = str.__str__(admitted.option.key.material)
        request = wire.build(
            parsed, operation=admitted.operation, model=admitted.option.model, token_cap=admitted.token_cap,
            key=key, headers=call.headers,
        )  # fmt: skip
        response = await (self._transport or self.open()).send(request, timeouts=timeouts)
        attempt.own.status = response.status
        self._observe(admitted, response)
        if response.status >= 400:
            body = await response.read(ERROR_BODY_BYTES_MAX)
            failure = wire.classify(response.status, response.headers, body, known_secrets=(key,))
            self._end_failed(attempt, failure, started)
            return failure
        if call.stream:
            return await self._begin_stream(attempt, response, started)
        body = await response.read()
        return self._answer(attempt, response, body, started)

    def _answer(self, attempt: Attempt, response: Response, body: bytes, started: float) -> Exchange:
        usage = attempt.wire.read_usage(body)
        self._end_answered(attempt, usage, started, produced=len(body))
        return Exchange(
            status=response.status, content_type=response.headers.get("content-type", "application/json"),
            facts=attempt.facts, body=body,
        )  # fmt: skip

    # --- adapters that only take intents -------------------------------------------------------------------------

    async def run_adapter(self, attempt: Attempt, adapter: ProviderAdapter) -> Exchange | Failure:
        """The same for an adapter without a wire: one call, whose usage is what its answer says."""
        started = time.perf_counter()
        intent, key = attempt.call.intent, attempt.admitted.option.key.material
        assert intent is not None
        try:
            if attempt.call.stream:
                return await self._begin_adapter_stream(attempt, adapter.execute_stream(intent, key), started)
            response = adapter.normalize_response(await adapter.execute_request(intent, key))
        except Exception as exc:  # whatever an adapter raises is a failed attempt
            failure = _adapter_failure(adapter.map_error(exc))
            self._end_failed(attempt, failure, started)
            return failure
        except BaseException:
            self._end_unknown(attempt, started)
            raise
        used = response.metadata.tokens_used
        usage = Usage(input_tokens=used.input_tokens, output_tokens=used.output_tokens, estimated=used.estimated)
        self._end_answered(attempt, usage, started, produced=0)
        return Exchange(status=200, content_type="application/json", facts=attempt.facts, response=response)

    async def _begin_adapter_stream(
        self, attempt: Attempt, source: AsyncIterator[StreamChunk], started: float
    ) -> Exchange:
        """Wait for the first piece: until then another key may still serve."""
        first = await anext(source, None)
        attempt.facts.first_token_us = int((time.perf_counter() - attempt.call.started) * 1e6)
        chunks = _AdapterStream(self, attempt, source, first, started)
        return Exchange(status=200, content_type="text/event-stream", facts=attempt.facts, chunks=chunks)

    # --- streams -------------------------------------------------------------------------------------------------

    async def _begin_stream(self, attempt: Attempt, response: Response, started: float) -> Exchange | Failure:
        """Hold the stream back until its first substantive event: until then another key may still serve."""
        assert attempt.admitted.parsed is not None
        reader = attempt.wire.stream(
            hide_usage=not attempt.admitted.parsed.include_usage, operation=attempt.admitted.operation
        )
        source = response.chunks()
        held = bytearray()
        done = False
        try:
            async for chunk in source:
                step = reader.feed(chunk)
                held += step.out
                if step.failure is not None and not step.substantive:
                    await response.close()
                    self._end_failed(attempt, step.failure, started)
                    return step.failure
                if step.substantive or step.done or len(held) > HELD_BYTES_MAX:
                    done = step.done
                    pending = step.failure
                    break
            else:
                step = reader.end()
                held += step.out
                if step.failure is not None:
                    self._end_failed(attempt, step.failure, started)
                    return step.failure
                done, pending = True, None
        except BaseException:
            await response.close()
            raise
        attempt.facts.first_token_us = int((time.perf_counter() - attempt.call.started) * 1e6)
        stream = _Stream(self, attempt, response, reader, source, bytes(held), done, pending, started)
        return Exchange(
            status=response.status, content_type=response.headers.get("content-type", "text/event-stream"),
            facts=attempt.facts, chunks=stream,
        )  # fmt: skip

    # --- how it ends ---------------------------------------------------------------------------------------------

    def _end_answered(
        self, attempt: Attempt, usage: Usage | None, started: float, *, produced: int, failed: bool = False
    ) -> None:
        admitted, facts = attempt.admitted, attempt.facts
        option, estimate = admitted.option, admitted.estimate
        if usage is None:
            usage = estimated_usage(admitted, produced)
        elif admitted.parsed is not None:
            self._estimator.learn(
                option.provider.id, option.model, base_tokens=estimate.base_tokens,
                choices=admitted.parsed.choices, usage=usage,
            )  # fmt: skip
        cost = UNPRICED if option.price is None else option.price.cost(usage)
        latency_us = int((time.perf_counter() - started) * 1e6)
        metered = usage.input_tokens
        if getattr(attempt.wire, "cache_reads_are_free", False):
            metered -= usage.cache_read_tokens
        self._books.hand_in(
            Settlement(
                rid=admitted.request.rid, input_tokens=max(0, metered), output_tokens=usage.output_tokens,
                cost_nanousd=cost, outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
                failed_lanes=_provider_bit(admitted) if failed else 0, latency_us=latency_us,
                estimated=usage.estimated,
            )
        )  # fmt: skip
        attempt.own.upstream_us = latency_us
        facts.upstream_us += latency_us
        facts.usage = usage
        facts.cost_nanousd = None if cost == UNPRICED else cost
        if not failed:
            facts.outcome = "ok"

    def _end_failed(self, attempt: Attempt, failure: Failure, started: float) -> None:
        latency_us = int((time.perf_counter() - started) * 1e6)
        attempt.own.upstream_us = latency_us
        attempt.own.failure = failure.category.value
        attempt.facts.upstream_us += latency_us
        bits = failed_lanes(attempt.admitted, failure)
        if failure.billed is False:
            sent = failure.status > 0 or failure.scope is not FailureScope.PROVIDER
            self._books.hand_in(
                Release(
                    rid=attempt.admitted.request.rid, sent=sent,
                    failed_lanes=bits, latency_us=latency_us,
                )
            )  # fmt: skip
        else:
            self._settle_estimate(attempt, Outcome.FAILURE if bits else Outcome.NEUTRAL, bits, latency_us)

    def _end_unknown(self, attempt: Attempt, started: float) -> None:
        """Cancelled, or our own bug: the provider may have billed; the estimate is charged and marked."""
        latency_us = int((time.perf_counter() - started) * 1e6)
        attempt.own.failure = attempt.own.failure or "cancelled"
        attempt.own.upstream_us = latency_us
        self._settle_estimate(attempt, Outcome.NEUTRAL, 0, latency_us)

    def _settle_estimate(self, attempt: Attempt, outcome: Outcome, bits: int, latency_us: int) -> None:
        charge = attempt.admitted.charge
        self._books.hand_in(
            Settlement(
                rid=attempt.admitted.request.rid, input_tokens=charge.input_tokens, output_tokens=charge.output_tokens,
                cost_nanousd=charge.expected_nanousd, outcome=outcome, failed_lanes=bits, latency_us=latency_us,
                estimated=True,
            )
        )  # fmt: skip

    def timeouts(self, call: Call) -> Timeouts | None:
        """The phases' limits within the call's deadline; None when there is no time left."""
        if call.deadline is None:
            return self._timeouts
        left = call.deadline - time.perf_counter()
        if left < TIMEOUT_SECONDS_MIN:
            return None
        base = self._timeouts
        return Timeouts(
            connect=_least(base.connect, left), first_byte=_least(base.first_byte, left),
            idle=_least(base.idle, left), total=_least(base.total, left),
        )  # fmt: skip

    def finish(self, attempt: Attempt) -> None:
        """Tell that the call has ended."""
        self._finished(attempt.call, attempt.facts)


class _Stream:
    """The rest of a stream, after its first substantive event. Ends exactly once, however it is left."""

    def __init__(
        self,
        attempts: Attempts,
        attempt: Attempt,
        response: Response,
        reader: StreamReader,
        source: AsyncIterator[bytes],
        held: bytes,
        done: bool,
        pending: Failure | None,
        started: float,
    ) -> None:
        self._attempts, self._attempt, self._response, self._reader = attempts, attempt, response, reader
        self._source, self._held, self._done, self._pending, self._started = source, held, done, pending, started
        self._ended = False

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> bytes:
        if self._held:
            held, self._held = self._held, b""
            return held
        if self._pending is not None:
            await self._fail(self._pending)
        if self._done or self._ended:
            await self._close()
            raise StopAsyncIteration
        try:
            return await self._next()
        except TransportError as exc:
            await self._fail(transport_failure(exc))
            raise AssertionError("unreachable") from exc
        except BaseException as exc:
            if not isinstance(exc, (ProviderError, StopAsyncIteration)):
                await self.aclose()
            raise

    async def _next(self) -> bytes:
        async for chunk in self._source:
            step = self._reader.feed(chunk)
            self._done, self._pending = step.done, step.failure
            if step.out:
                return step.out
            if step.failure is not None:
                await self._fail(step.failure)
            if step.done:
                break
        else:
            step = self._reader.end()
            self._done, self._pending = True, step.failure
            if step.out:
                return step.out
            if step.failure is not None:
                await self._fail(step.failure)
        await self._close()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give up the rest: the provider is cut off, and what was received is charged."""
        await self._response.close()
        self._end(failed=False, outcome="disconnected")

    async def _close(self) -> None:
        await self._response.close()
        self._end(failed=False, outcome="ok")

    async def _fail(self, failure: Failure) -> None:
        await self._response.close()
        self._attempt.own.failure = failure.category.value
        self._end(failed=failure.scope is FailureScope.PROVIDER, outcome=failure.category.value)
        usage = self._attempt.facts.usage
        raise ProviderError(
            failure.message, category=failure.category, retryable=False,
            details={"failure": failure, "usage": usage, "request_id": self._attempt.call.request_id},
        )  # fmt: skip

    def _end(self, *, failed: bool, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        reader, attempts, attempt = self._reader, self._attempts, self._attempt
        attempt.facts.finish_reason = reader.finish_reason
        usage = reader.usage
        if usage is not None and outcome != "ok":
            usage = partial_usage(usage, reader.output_bytes)
        attempts._end_answered(attempt, usage, self._started, produced=reader.output_bytes, failed=failed)
        attempt.facts.outcome = outcome
        attempts.finish(attempt)


class _AdapterStream:
    """The pieces of an adapter that is no wire. Ends exactly once, however it is left."""

    def __init__(
        self,
        attempts: Attempts,
        attempt: Attempt,
        source: AsyncIterator[StreamChunk],
        first: StreamChunk | None,
        started: float,
    ) -> None:
        self._attempts, self._attempt, self._source, self._started = attempts, attempt, source, started
        self._next = first
        self._produced = 0
        self._usage: TokenUsage | None = None
        self._ended = False

    def __aiter__(self) -> "_AdapterStream":
        return self

    async def __anext__(self) -> StreamChunk:
        chunk, self._next = self._next, None
        try:
            chunk = chunk or await anext(self._source, None)
        except Exception as exc:
            self._end(str(self._attempt.own.failure or ErrorCategory.ProviderError.value))
            provider = self._attempt.admitted.option.provider
            raise provider.adapter.map_error(exc) from exc
        except BaseException:
            self._end("disconnected")
            raise
        if chunk is None:
            self._end("ok")
            raise StopAsyncIteration
        self._produced += len(chunk.text.encode())
        self._usage = chunk.usage or self._usage
        return chunk

    async def aclose(self) -> None:
        """Give up the rest; what was received is charged."""
        self._end("disconnected")
        closing = getattr(self._source, "aclose", None)
        if closing is not None:
            await closing()

    def _end(self, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        told = self._usage
        usage = Usage(input_tokens=told.input_tokens, output_tokens=told.output_tokens) if told else None
        self._attempts._end_answered(self._attempt, usage, self._started, produced=self._produced)
        self._attempt.facts.outcome = outcome
        self._attempts.finish(self._attempt)


BYTES_PER_TOKEN = 4


def estimated_usage(admitted: Admitted, produced: int) -> Usage:
    """What was probably used when the provider did not say: the input as expected, the output by what was received."""
    output = -(-produced // BYTES_PER_TOKEN) if produced else admitted.charge.output_tokens
    return Usage(input_tokens=admitted.charge.input_tokens, output_tokens=output, estimated=True)


def partial_usage(told: Usage, produced: int) -> Usage:
    """Usage of a stream that broke: the input the provider told, and at least the output that was received."""
    output = max(told.output_tokens, -(-produced // BYTES_PER_TOKEN))
    return Usage(
        input_tokens=told.input_tokens, output_tokens=output, cache_read_tokens=told.cache_read_tokens,
        cache_write_tokens=told.cache_write_tokens, cache_write_long_tokens=told.cache_write_long_tokens,
        reasoning_tokens=min(told.reasoning_tokens, output), service_tier=told.service_tier, estimated=True,
    )  # fmt: skip


_ADAPTER_MEANINGS = {
    ErrorCategory.RateLimitError: (FailureScope.KEY, FailureAction.COOL, True),
    ErrorCategory.QuotaExceededError: (FailureScope.KEY, FailureAction.EXHAUST, True),
    ErrorCategory.AuthenticationError: (FailureScope.KEY, FailureAction.INVALIDATE, True),
    ErrorCategory.ValidationError: (FailureScope.REQUEST, FailureAction.REJECT, False),
    ErrorCategory.BudgetExceededError: (FailureScope.REQUEST, FailureAction.REJECT, False),
}


def _adapter_failure(error: SystemError) -> Failure:
    """What an adapter's error means: by category where that is clear, else the provider is in trouble."""
    otherwise = (FailureScope.KEY, FailureAction.BACK_OFF, True)
    scope, action, elsewhere = _ADAPTER_MEANINGS.get(error.category, otherwise)
    unclear = error.category in (ErrorCategory.TimeoutError, ErrorCategory.NetworkError, ErrorCategory.UnknownError)
    return Failure(
        category=error.category, scope=scope, action=action, retry_elsewhere=elsewhere, message=error.message,
        status=int(error.details.get("status") or 0), retry_after_us=(error.retry_after or 0) * 1_000_000,
        billed=None if unclear else False,
    )  # fmt: skip


def transport_failure(error: TransportError) -> Failure:
    """A failure below HTTP. What was sent may have been billed."""
    timed_out = isinstance(error, UpstreamTimeout)
    return Failure(
        category=ErrorCategory.TimeoutError if timed_out else ErrorCategory.NetworkError,
        scope=FailureScope.PROVIDER, action=FailureAction.BACK_OFF, retry_elsewhere=True, message=str(error),
        billed=None if error.sent else False,
    )  # fmt: skip


def failed_lanes(admitted: Admitted, failure: Failure) -> int:
    """Which of the option's lanes the failure is evidence against, as bits: own lane first, provider's last."""
    if failure.action is not FailureAction.BACK_OFF:
        return 0
    if failure.scope is FailureScope.PROVIDER:
        return _provider_bit(admitted)
    return 1 if failure.scope in (FailureScope.KEY, FailureScope.KEY_MODEL) else 0


def _provider_bit(admitted: Admitted) -> int:
    return 1 << (len(admitted.option.lanes) - 1)


def _least(limit: float | None, left: float) -> float:
    return left if limit is None else min(limit, left)
