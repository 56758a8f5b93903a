"""One attempt: send the request with one key, read the answer, and say how its reservation ends.

A failure comes back as a value, not an exception: the router decides what to do next. Every path out of here hands the
reservation in to the bookkeeper, or leaves that to the stream it returns.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.call import Call, Exchange, Facts, ReadBody
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.domain.models.wire import Answer
from apikeyrouter.infrastructure.adapters.json_body import decoded_object
from apikeyrouter.infrastructure.adapters.stream_failures import unreadable
from apikeyrouter.infrastructure.adapters.transport import Response, Timeouts, Transport, TransportError
from apikeyrouter.serving.admission import Admitted
from apikeyrouter.serving.endings import Attempt, Endings
from apikeyrouter.serving.foreign_code import called, finish_within
from apikeyrouter.serving.outcomes import (
    TIMEOUT_SECONDS_MIN,
    adapter_failure,
    cost_nanousd,
    deadline_passed,
    is_error_body,
    transport_failure,
    unless_late,
)
from apikeyrouter.serving.spread_books import AnyBooks
from apikeyrouter.serving.streams import AdapterStream, HttpStream, told_usage

ERROR_BODY_BYTES_MAX = 256 * 1024
HTTP_NOT_FOUND = 404
Observe = Callable[[Admitted, Response], None]


class Attempts:
    """Sends requests. One event loop owns it."""

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        books: AnyBooks,
        estimator: TokenEstimator,
        *,
        observe: Observe,
        judge: Callable[[Failure, Option], Failure],
        broken: Callable[[Failure, Option], None],
        finished: Callable[[Call, Facts], None],
        timeouts: Timeouts,
    ) -> None:
        """`judge`: a failure as it counts, given what else is known. `broken`: told of answers that broke."""
        self._open_transport = open_transport
        self._transport: Transport | None = None
        self.ends = Endings(books, estimator, finished=finished, broken=broken)
        self._observe, self._judge = observe, judge
        self.default_timeouts = timeouts

    def open(self) -> Transport:
        """Make the transport, if it is not there yet."""
        if self._transport is None:
            self._transport = self._open_transport()
        return self._transport

    def abandon(self) -> Transport | None:
        """Begin anew without closing the transport, which belongs to another loop or process; that transport."""
        transport, self._transport = self._transport, None
        return transport

    async def close(self) -> None:
        """Close the transport. Idempotent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    def timeouts(self, call: Call, provider: Provider) -> Timeouts | None:
        """The phases' limits at a provider, within what is left of the call's time; None when nothing is."""
        base, deadline = provider.timeouts or self.default_timeouts, self.deadline(call)
        if deadline is None:
            return base
        left = deadline - time.perf_counter()
        return None if left < TIMEOUT_SECONDS_MIN else base.within(left)

    def deadline(self, call: Call) -> float | None:
        """When the call's time is over, all its attempts included (`time.perf_counter()`); None: never."""
        total = self.default_timeouts.total
        if total is None:
            return call.deadline
        return call.started + total if call.deadline is None else min(call.deadline, call.started + total)

    async def run(self, attempt: Attempt) -> Exchange | Failure:
        """The answer, or what went wrong before its first substantive byte."""
        answer = await self._run(attempt)
        if isinstance(answer, Failure):
            answer = self._judge(answer, attempt.admitted.option)
            self.ends.failed(attempt, answer)
        return answer

    async def _run(self, attempt: Attempt) -> Exchange | Failure:
        if attempt.timeouts is None:
            return deadline_passed(sent=False)
        attempt.watch()
        try:
            if attempt.wire is None:
                return await self._ask(attempt, attempt.admitted.option.provider.adapter)
            return await self._send(attempt, attempt.timeouts)
        except TransportError as exc:
            return transport_failure(exc, self.deadline(attempt.call))
        except asyncio.CancelledError:
            given_up = attempt.was_given_up()
            if given_up is not None:
                return given_up
            self.ends.abandoned(attempt)
            raise
        except BaseException:
            self.ends.abandoned(attempt)
            raise

    # --- over HTTP -----------------------------------------------------------------------------------------------

    async def _send(self, attempt: Attempt, timeouts: Timeouts) -> Exchange | Failure:
        call, admitted, wire = attempt.call, attempt.admitted, attempt.wire
        assert wire is not None
        assert admitted.parsed is not None
        request = wire.build(
            admitted.parsed, operation=admitted.operation, model=admitted.option.model, token_cap=admitted.token_cap,
            key=_secret(attempt), headers=call.headers, path_query=call.path_query and _query(call, wire),
        )  # fmt: skip
        attempt.sent = True
        transport = admitted.option.provider.transport or self.open()
        response = await transport.send(request, timeouts=timeouts)
        try:
            attempt.own.status = response.status
            self._observe(admitted, response)
            if not 200 <= response.status < 300:
                return await self._refusal(attempt, response)
            if call.stream:
                return await self._begin_stream(attempt, response)
            return self._answer(attempt, response, await response.read())
        except BaseException:
            await response.close()
            raise

    async def _refusal(self, attempt: Attempt, response: Response) -> Failure:
        """What an error answer means; its status counts even when its body cannot be read."""
        assert attempt.wire is not None
        try:
            body = await response.read(ERROR_BODY_BYTES_MAX)
        except TransportError:
            await response.close()
            body = b""
        failure = attempt.wire.classify(response.status, response.headers, body, known_secrets=(_secret(attempt),))
        parsed = attempt.admitted.parsed
        if parsed is not None and parsed.resource and response.status == HTTP_NOT_FOUND:
            return _gone(failure)
        return failure

    def _answer(self, attempt: Attempt, response: Response, body: bytes) -> Exchange | Failure:
        assert attempt.wire is not None
        read = None if attempt.call.intent is None else _read(attempt, attempt.wire, body)
        usage = attempt.wire.read_usage(body) if read is None else read.answer.usage
        if usage is None and (failure := self._unusable(attempt, response, body)) is not None:
            return failure
        opaque = attempt.admitted.parsed is not None and attempt.admitted.parsed.opaque
        self.ends.answered(attempt, usage, produced=0 if opaque else len(body))
        if self.ends.watch.wanted and not opaque:
            self.ends.watch.whole(attempt, body, read)
        return Exchange(
            status=response.status, content_type=response.headers.get("content-type", "application/json"),
            facts=attempt.facts, body=body, read=read, provider=attempt.admitted.option.provider,
        )  # fmt: skip

    def _unusable(self, attempt: Attempt, response: Response, body: bytes) -> Failure | None:
        """A 200 that is no answer: not JSON, or an error after all. It may have been billed."""
        assert attempt.wire is not None
        error = is_error_body(body)
        if error is None and _may_be_anything(attempt, response):
            return None
        if error is None:
            return unreadable("the provider's answer is not JSON")
        if not error:
            return None
        failure = attempt.wire.classify(200, response.headers, body, known_secrets=(_secret(attempt),))
        return replace(failure, billed=None)

    async def _begin_stream(self, attempt: Attempt, response: Response) -> Exchange | Failure:
        wire, parsed = attempt.wire, attempt.admitted.parsed
        assert wire is not None
        assert parsed is not None
        reader = wire.stream(hide_usage=not parsed.include_usage, operation=attempt.admitted.operation)
        stream = HttpStream(self.ends, attempt, response, reader, deadline=self.deadline(attempt.call))
        failure = await stream.begin()
        if failure is not None:
            return replace(failure, billed=None)
        return Exchange(
            status=response.status, content_type=response.headers.get("content-type", "text/event-stream"),
            facts=attempt.facts, chunks=stream, provider=attempt.admitted.option.provider,
        )  # fmt: skip

    # --- adapters that only take intents -------------------------------------------------------------------------

    async def _ask(self, attempt: Attempt, adapter: ProviderAdapter) -> Exchange | Failure:
        """The same for an adapter without a wire, whatever it raises or returns."""
        assert attempt.timeouts is not None
        intent = _capped(attempt)
        key = attempt.admitted.option.key.material
        attempt.sent = True
        try:
            if attempt.call.stream:
                source = called(adapter.execute_stream, intent, key)
                stream = AdapterStream(self.ends, attempt, adapter, source, deadline=self.deadline(attempt.call))
                garbled = await stream.begin()
                return garbled or Exchange(
                    status=200, content_type="text/event-stream", facts=attempt.facts, chunks=stream,
                    provider=attempt.admitted.option.provider,
                )  # fmt: skip
            told = await finish_within(
                called(adapter.execute_request, intent, key), attempt.timeouts.first_byte,
                provider_id=attempt.admitted.option.provider.id,
            )  # fmt: skip
        except Exception as exc:
            failure = adapter_failure(adapter, exc, secret=_secret(attempt))
            return unless_late(failure, self.deadline(attempt.call))
        return self._adapter_answer(attempt, adapter, told)

    def _adapter_answer(self, attempt: Attempt, adapter: ProviderAdapter, told: object) -> Exchange | Failure:
        """What the adapter returned, read. Where that is no answer, the provider may have billed it all the same."""
        try:
            answer: object = called(adapter.normalize_response, told)
        except Exception as exc:
            return unreadable(adapter_failure(adapter, exc, secret=_secret(attempt)).message)
        if not isinstance(answer, SystemResponse):
            return unreadable(f"normalize_response returned {type(answer).__name__}, not SystemResponse")
        try:
            produced = len(answer.content.encode())
        except UnicodeEncodeError:
            return unreadable("the adapter's answer has text that is no Unicode")
        usage = told_usage(answer.metadata.tokens_used)
        self.ends.answered(attempt, usage, produced=produced, told_nanousd=cost_nanousd(answer.cost))
        if self.ends.watch.wanted:
            self.ends.watch.response(attempt, answer)
        return Exchange(
            status=200, content_type="application/json", facts=attempt.facts, response=answer,
            provider=attempt.admitted.option.provider,
        )  # fmt: skip


def _read(attempt: Attempt, wire: Wire, body: bytes) -> ReadBody | None:
    """An answer, read once for all who look at it; None where it goes to an SDK of its own dialect as it is."""
    own = attempt.call.parsed
    if own is not None:
        return None if attempt.admitted.parsed is own else ReadBody(wire.read_answer(body), None)
    raw = decoded_object(body)
    return ReadBody(Answer() if raw is None else wire.read_answer(body, raw), raw)


def _capped(attempt: Attempt) -> RequestIntent:
    """The intent for an adapter, with the model it knows and the token cap that a hard budget asked for."""
    intent, cap, model = attempt.call.intent, attempt.admitted.token_cap, attempt.admitted.option.model
    assert intent is not None
    if cap is None and intent.model == model:
        return intent
    parameters = intent.parameters if cap is None else {**intent.parameters, "max_tokens": cap}
    return intent.model_copy(update={"model": model, "parameters": parameters})


def _gone(failure: Failure) -> Failure:
    """What was asked about is not there any more: that says nothing about the model, nor about the key."""
    return replace(
        failure, category=ErrorCategory.ValidationError, scope=FailureScope.REQUEST, action=FailureAction.REJECT,
        retry_elsewhere=False, code=failure.code or "not_found",
    )  # fmt: skip


def _may_be_anything(attempt: Attempt, response: Response) -> bool:
    """Whether an answer may be sound or plain text. A page of HTML is nobody's answer."""
    parsed = attempt.admitted.parsed
    told = response.headers.get("content-type", "")
    return parsed is not None and parsed.opaque and not told.startswith(("text/html", "application/json"))


def _query(call: Call, wire: Wire) -> str:
    """The client's query means something in its own dialect only."""
    return call.path_query if call.intent is None or wire.dialect == call.dialect else ""


def _secret(attempt: Attempt) -> str:
    return str.__str__(attempt.admitted.option.key.material)
