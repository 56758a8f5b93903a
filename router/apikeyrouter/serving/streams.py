"""Streamed answers. Each is settled exactly once, however it is left: read to its end, broken, closed, given up."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.wire import StreamReader, StreamStep
from apikeyrouter.domain.models.call import PouredChunks
from apikeyrouter.domain.models.failure import Failure, FailureScope
from apikeyrouter.domain.models.system_error import ProviderError
from apikeyrouter.domain.models.system_response import StreamChunk, TokenUsage
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.stream_failures import unreadable
from apikeyrouter.infrastructure.adapters.transport import Pouring, Response, Timeouts, TransportError, UpstreamTimeout
from apikeyrouter.infrastructure.observability.events import working_for
from apikeyrouter.serving.endings import TOKENS_MAX, Attempt, Endings
from apikeyrouter.serving.foreign_code import Pieces
from apikeyrouter.serving.outcomes import (
    adapter_failure,
    cost_nanousd,
    deadline_passed,
    given_up,
    transport_failure,
    unless_late,
)

HELD_BYTES_MAX = 1024 * 1024
"""Most bytes of a stream that are held back before its first substantive event; then it is passed on as it is."""


class Stream(ABC):
    """What all streams share: the way they end."""

    def __init__(self, ends: Endings, attempt: Attempt, deadline: float | None) -> None:
        """`deadline`: when it breaks if the provider has not said all by then (`perf_counter()`); None: never."""
        self._ends, self._attempt = ends, attempt
        total = None if attempt.timeouts is None else attempt.timeouts.total
        own = None if total is None else attempt.started + total
        self._deadline = own if deadline is None else deadline if own is None else min(own, deadline)
        self._timer: asyncio.TimerHandle | None = None
        self._failure: Failure | None = None
        self._over = False
        """Whether the provider has said all."""
        self._settled = False
        self._finished = False
        self._closing: asyncio.Future[None] | None = None
        """The end of what it comes from, where we cut it off."""
        self._told_nanousd: int | None = None
        """What an adapter said that the whole of it costs."""

    @property
    def attempt(self) -> Attempt:
        """What it streams the answer of."""
        return self._attempt

    def take_over(self) -> None:
        """The answer has begun: from now on this stream, not the task that began it, is what a lost lease ends."""
        attempt, facts, now = self._attempt, self._attempt.facts, time.perf_counter()
        attempt.hold.abort = self._abort
        if self._deadline is not None and not self._settled:
            self._timer = asyncio.get_running_loop().call_later(self._deadline - now, self._run_out)
        attempt.first_us = int((now - attempt.started) * 1e6)
        facts.first_token_us = int((now - attempt.call.started) * 1e6)
        counted = self._settled  # a short answer may be over by now, and its time is with the others'
        upstream_us = facts.upstream_us + (0 if counted else int((now - attempt.started) * 1e6))
        facts.overhead_us = max(0, facts.first_token_us - upstream_us - facts.waited_us)

    async def aclose(self) -> None:
        """Give up the rest: the provider is cut off, and what was received is charged. Idempotent."""
        self._over, self._failure = True, None
        try:
            await self._let_go()
        finally:
            self._settle("disconnected")
            self._finish()

    @property
    def is_cut_off(self) -> bool:
        """Whether we ended it: its time was over before the provider had said all, or its lease was lost. What was
        received and not yet passed on is kept back then."""
        if self._deadline is not None and not self._settled and time.perf_counter() >= self._deadline:
            self._run_out()
        return self._closing is not None

    def _run_out(self) -> None:
        """Its time is over: whoever reads it, however slowly, what it held is free."""
        if not self._settled and not self._over and self._failure is None:
            self._cut_off(deadline_passed(sent=True))

    def _abort(self, why: str) -> None:
        self._cut_off(given_up(why))

    def _cut_off(self, failure: Failure) -> None:
        self._failure = failure
        self._attempt.own.failure, self._attempt.own.meaning = failure.category.value, failure.meaning
        self._settle(failure.category.value)
        self._finish()
        self._closing = asyncio.ensure_future(self._let_go())

    async def _break(self, failure: Failure) -> ProviderError:
        """End with a failure; the error to raise."""
        self._ends.broke(self._attempt, failure)
        try:
            await self._let_go()
        finally:
            self._settle(failure.category.value, failed=failure.evidence is FailureScope.PROVIDER)
            self._finish()
        return ProviderError(
            failure.message, category=failure.category, retryable=False,
            details={
                "failure": failure, "usage": self._attempt.facts.usage, "request_id": self._attempt.call.request_id,
            },
        )  # fmt: skip

    def _settle(self, outcome: str, *, failed: bool = False) -> None:
        if self._settled:
            return
        self._settled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        usage, produced = self._used()
        self._ends.answered(
            self._attempt, usage, produced=produced, outcome=outcome, failed=failed, told_nanousd=self._told_nanousd
        )

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._ends.finish(self._attempt)

    @abstractmethod
    def _used(self) -> tuple[Usage | None, int]:
        """Usage as far as it was told, and the bytes of output that were received."""

    @abstractmethod
    async def _let_go(self) -> None:
        """Close what the answer comes from. Idempotent."""


class HttpStream(Stream, PouredChunks):
    """The bytes of a provider's stream, from its first substantive event on."""

    def __init__(
        self, ends: Endings, attempt: Attempt, response: Response, reader: StreamReader, *, deadline: float | None
    ) -> None:
        super().__init__(ends, attempt, deadline)
        self._response, self._reader = response, reader
        self._source = response.chunks()
        self._held = b""
        self._write: Callable[[bytes], bool]
        self._said_all = False
        """Whether the dialect's last event has come."""

    async def begin(self) -> Failure | None:
        """Hold the stream back until its first substantive event: until then another key may still serve.

        The failure, if there was one before it. Raises TransportError.
        """
        seconds = None if self._attempt.timeouts is None else self._attempt.timeouts.first_token
        if seconds is None:
            return await self._hold_back()
        try:
            async with asyncio.timeout(max(0.0, self._attempt.started + seconds - time.perf_counter())):
                return await self._hold_back()
        except TimeoutError as exc:
            raise UpstreamTimeout("first_token", sent=True) from exc

    async def _hold_back(self) -> Failure | None:
        held = bytearray()
        while not self._over and len(held) <= HELD_BYTES_MAX:
            step = await self._step()
            held += step.out
            if step.substantive:
                break
            if step.failure is not None:
                await self._let_go()
                return step.failure
        self._held = bytes(held)
        self.take_over()
        return None

    def __aiter__(self) -> "HttpStream":
        return self

    async def __anext__(self) -> bytes:
        if self._held and not self.is_cut_off:
            held, self._held = self._held, b""
            return held
        try:
            while not self._over and self._failure is None and not self.is_cut_off:
                out = (await self._step()).out
                if out:
                    return out
        except BaseException as exc:
            await self._broken_off(exc)
        await self._ended()
        raise StopAsyncIteration

    async def pour(self, write: Callable[[bytes], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """As `PouredChunks` says."""
        self._write, held, self._held = write, self._held, b""
        source = self._source if isinstance(self._source, Pouring) else None
        try:
            if held and not write(held):
                await drained()
            while not self._over and self._failure is None and not self.is_cut_off:
                step = await (self._step() if source is None else self._poured(source))
                if step.out:
                    write(step.out)
                if not self._over:
                    await drained()
        except BaseException as exc:
            await self._broken_off(exc)
        await self._ended()

    async def _poured(self, source: Pouring) -> StreamStep:
        """Let the source pour until it has to wait, or has ended; what that means."""
        try:
            return self._at_end() if await source.pour(self._take) else StreamStep()
        except TransportError as exc:
            return self._lost(exc)

    def _take(self, data: bytes) -> bool:
        """Bytes of the provider, written where the client is. False: no more for now."""
        out = self._read(data).out
        return (not out or self._write(out)) and not self._over and self._failure is None

    async def _step(self) -> StreamStep:
        """The next bytes, read."""
        try:
            return self._read(await self._source.__anext__())
        except StopAsyncIteration:
            return self._at_end()
        except TransportError as exc:
            return self._lost(exc)

    def _read(self, data: bytes) -> StreamStep:
        step = self._reader.feed(data)
        if step.done or step.failure is not None:
            self._said_all = step.done
            self._note(step)
        return step

    def _at_end(self) -> StreamStep:
        step = self._reader.end()
        step.done = True
        self._note(step)
        return step

    def _lost(self, exc: TransportError) -> StreamStep:
        """What the end means of a connection that broke. Raises the error if the answer was not whole."""
        if self._reader.finish_reason is None:
            raise exc
        return self._at_end()  # all was said; only the last event, or the usage, is lost

    def _note(self, step: StreamStep) -> None:
        """When the provider has said all, the settlement leaves: nothing more can be billed."""
        self._over = step.done
        self._failure = self._failure or step.failure
        if self._over and self._failure is None:
            self._settle("ok")

    async def _broken_off(self, exc: BaseException) -> None:
        """The connection broke, which the end tells of; anything else goes on, after the stream was given up."""
        if not isinstance(exc, TransportError):
            await self.aclose()
            raise exc
        self._failure = self._failure or transport_failure(exc, self._deadline)

    async def _ended(self) -> None:
        if self._failure is not None:
            raise await self._break(self._failure)
        await self.aclose()

    def _used(self) -> tuple[Usage | None, int]:
        reader = self._reader
        self._attempt.facts.finish_reason = reader.finish_reason
        return reader.usage, reader.output_bytes

    async def _let_go(self) -> None:
        self._held = b""
        if self._said_all and isinstance(self._source, Pouring):
            self._source.leave()
            return
        await self._response.close()
        await _closed(self._source)


class AdapterStream(Stream):
    """The pieces of an adapter that is no wire."""

    def __init__(
        self, ends: Endings, attempt: Attempt, adapter: ProviderAdapter, source: Any, *, deadline: float | None
    ) -> None:
        super().__init__(ends, attempt, deadline)
        self._adapter = adapter
        self._pieces = Pieces(source, provider_id=attempt.admitted.option.provider.id)
        self._timeouts = attempt.timeouts or Timeouts()
        self._first: StreamChunk | None = None
        self._produced = 0
        self._usage: TokenUsage | None = None

    async def begin(self) -> Failure | None:
        """Wait for the first piece: until then another key may still serve. The failure, where that is none.

        Raises what the adapter raises.
        """
        limits = [limit for limit in (self._timeouts.first_byte, self._timeouts.first_token) if limit is not None]
        try:
            self._first = await self._pull(min(limits, default=None))
        except _NoChunk as exc:
            await self._let_go()
            return exc.failure
        except BaseException:
            await self._let_go()
            raise
        self.take_over()
        return None

    def __aiter__(self) -> "AdapterStream":
        return self

    async def __anext__(self) -> StreamChunk:
        chunk, self._first = None if self.is_cut_off else self._first, None
        try:
            if chunk is None and not self._over and self._failure is None:
                chunk = await self._pull(self._timeouts.idle)
        except Exception as exc:
            self._failure = self._failure or unless_late(self._read(exc), self._deadline)
        except BaseException:
            await self.aclose()
            raise
        if self._failure is not None:
            raise await self._break(self._failure)
        if chunk is None:
            await self.aclose()
            raise StopAsyncIteration
        return chunk

    def _read(self, error: Exception) -> Failure:
        """What the adapter raised; in a function of its own, for what shows tracebacks may show their variables."""
        if isinstance(error, _NoChunk):
            return error.failure
        secret = str.__str__(self._attempt.admitted.option.key.material)
        return adapter_failure(self._adapter, error, secret=secret)

    async def _pull(self, seconds: float | None) -> StreamChunk | None:
        if self._deadline is not None:
            left = max(0.0, self._deadline - time.perf_counter())
            seconds = left if seconds is None else min(seconds, left)
        try:
            with working_for(self._attempt.call.request_id):
                piece = await self._pieces.next(seconds)
        except StopAsyncIteration:
            self._over = True
            self._settle("ok")
            return None
        chunk = _as_chunk(piece)
        try:
            self._produced += len(chunk.text.encode())
        except UnicodeEncodeError as exc:
            raise _NoChunk(unreadable("the adapter's stream has text that is no Unicode")) from exc
        self._usage = chunk.usage or self._usage
        if chunk.cost is not None:
            self._told_nanousd = cost_nanousd(chunk.cost)
        self._attempt.facts.finish_reason = chunk.finish_reason or self._attempt.facts.finish_reason
        return chunk

    def _used(self) -> tuple[Usage | None, int]:
        return told_usage(self._usage), self._produced

    async def _let_go(self) -> None:
        self._first = None
        await self._pieces.aclose()


class _NoChunk(Exception):
    """An adapter's stream yielded something else, which the provider may have billed all the same."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def told_usage(told: TokenUsage | None) -> Usage | None:
    """The usage an adapter told; None when it told nothing, or counts that nobody tells."""
    if told is None or not told.total_tokens:
        return None
    parts = (told.cache_read_tokens, told.cache_write_tokens, told.reasoning_tokens)
    if not all(isinstance(n, int) and 0 <= n <= TOKENS_MAX for n in (told.input_tokens, told.output_tokens, *parts)):
        return None
    return Usage(
        input_tokens=told.input_tokens, output_tokens=told.output_tokens, cache_read_tokens=told.cache_read_tokens,
        cache_write_tokens=told.cache_write_tokens, reasoning_tokens=told.reasoning_tokens, estimated=told.estimated,
    )  # fmt: skip


def _as_chunk(piece: object) -> StreamChunk:
    if isinstance(piece, StreamChunk):
        return piece
    if isinstance(piece, str):
        return StreamChunk(text=piece)
    raise _NoChunk(unreadable(f"the adapter's stream yielded {type(piece).__name__}, not StreamChunk"))


async def _closed(source: AsyncIterator[Any]) -> None:
    """Close a generator, unless another task is inside it: that one finds its source closed and ends by itself."""
    closing = getattr(source, "aclose", None)
    if closing is not None:
        with contextlib.suppress(Exception):
            await closing()
