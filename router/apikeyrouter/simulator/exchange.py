"""The life of one generation request: failure, admission, answer, bill; every end passes through its account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator

from apikeyrouter.simulator.account import Account, Verdict
from apikeyrouter.simulator.calls import Call, Context, Dialect, Frame, Reply
from apikeyrouter.simulator.clock import NS_PER_SECOND, ProviderClock
from apikeyrouter.simulator.failures import ALIASES, WIRE_FAILURES, Failure
from apikeyrouter.simulator.http_server import Connection
from apikeyrouter.simulator.organisations import Charge, Denial, Key, Organisation
from apikeyrouter.simulator.prices import Usage
from apikeyrouter.simulator.report import JournalEntry
from apikeyrouter.simulator.wire import End, spoil_body, spoil_frames

__all__ = ["Exchange", "resolve_failure_name"]

STALL_SECONDS_MAX = 3_600.0
SLOW_FIRST_TOKEN_SECONDS = 5.0
FRAMES_PER_TURN_MAX = 64
CUT_GRACE_SECONDS = 0.02
CACHE_TOKENS_MIN = 1_024
CACHE_TOKENS_STEP = 128
RETRY_AFTER_ON_200_SECONDS = 7
_ADMITTED_THEN_FAILED = frozenset({"flex_unavailable"})
_UNICODE_TEXT = "naïve café 世界 😀"


def resolve_failure_name(name: str, dialect: str) -> str:
    """The dialect's own name for an alias; other names as they are."""
    names = ALIASES.get(name)
    return name if names is None else names.get(dialect, names["openai"])


class Exchange:
    """One request of one key; ``begin`` is called once and sees to everything else."""

    __slots__ = (
        "_account",
        "_begun_ns",
        "_call",
        "_clock",
        "_connection",
        "_context",
        "_dialect",
        "_failure",
        "_key",
        "_organisation",
        "_span_seconds",
        "_task",
        "_timer",
    )

    def __init__(
        self,
        *,
        dialect: Dialect,
        call: Call,
        key: Key,
        context: Context,
        connection: Connection,
        clock: ProviderClock,
        entry: JournalEntry,
        failure: Failure | None,
    ) -> None:
        self._dialect = dialect
        self._call = call
        self._key = key
        self._organisation: Organisation = key.organisation
        self._context = context
        self._connection = connection
        self._clock = clock
        self._failure = failure
        self._account = Account(key, call.model, clock=clock, entry=entry)
        self._begun_ns = context.now_ns
        self._span_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # --- the story
    def begin(self) -> None:
        """Refuse, or admit and answer (now, later, or as a stream)."""
        self._plan()
        scripted = self._scripted_reply()
        refusal = self._refusal(scripted)
        if refusal is not None:
            self._refuse(*refusal)
            return
        tokens, input_tokens = self._dialect.charge_tokens(self._call, self._organisation)
        verdict = self._organisation.admit(
            self._key, self._call.model, Charge(tokens, input_tokens), self._context.now_ns
        )
        if isinstance(verdict, Denial):
            kind = verdict.meter.name if verdict.wait_ns >= 0 else f"too_large:{verdict.meter.name}"
            self._refuse(kind, self._dialect.denial(verdict, self._context), over_limit=True)
            return
        self._account.open(verdict, stream=self._call.stream)
        self._connection.on_disconnect = self._disconnected
        self._answer(scripted)

    def _plan(self) -> None:
        call = self._call
        name = "" if self._failure is None else self._failure.name
        if name == "split_utf8":
            call.markers = call.markers._replace(text=f"{_UNICODE_TEXT} {call.markers.text}")
        call.plan(self._organisation.config.output_tokens)
        if call.endpoint == "generate":
            call.thoughts = self._organisation.config.thinking_tokens
        if name == "content_filter_stop":
            call.stop = "filter"
        cached, written = self._cache_hit()
        call.usage = Usage(call.input_tokens, call.output_tokens + call.thoughts, cached, written)

    def _cache_hit(self) -> tuple[int, int]:
        """Tokens read from and written to the prompt cache by this request."""
        call, config = self._call, self._organisation.config
        if not config.cache or call.prefix is None or call.input_tokens < CACHE_TOKENS_MIN:
            return 0, 0
        seen = self._organisation.remember_prefix(call.prefix)
        if self._dialect.name == "anthropic":
            return (call.prefix_tokens, 0) if seen else (0, call.prefix_tokens)
        return (call.input_tokens // CACHE_TOKENS_STEP * CACHE_TOKENS_STEP, 0) if seen else (0, 0)

    # --- refusals
    def _scripted_reply(self) -> Reply | None:
        """The error reply that a failure asks for; wire failures have none."""
        failure = self._failure
        if failure is None or failure.name in WIRE_FAILURES:
            return None
        if failure.name == "model_not_found" and self._call.endpoint == "responses":
            return self._dialect.failure("model_not_found_400", self._context, seconds=failure.seconds)
        reply = self._dialect.failure(failure.name, self._context, seconds=failure.seconds)
        return reply or self._dialect.invalid(f"the simulator knows no failure {failure.name!r}", self._context)

    def _refusal(self, scripted: Reply | None) -> tuple[str, Reply] | None:
        if scripted is not None and not self._fails_after_admission(scripted):
            assert self._failure is not None
            self._key.tally.failures[self._failure.name] += 1
            return f"failure:{self._failure.name}", scripted
        call, config = self._call, self._organisation.config
        for served in (config.models, self._key.models):
            if served is not None and call.model not in served:
                return self._named_refusal("model_not_found")
        if call.input_tokens > config.context_tokens:
            return self._named_refusal("context_length")
        return None

    def _named_refusal(self, alias: str) -> tuple[str, Reply]:
        name = resolve_failure_name(alias, self._dialect.name)
        if alias == "model_not_found" and self._call.endpoint == "responses":
            name = "model_not_found_400"
        reply = self._dialect.failure(name, self._context, seconds=None)
        assert reply is not None
        return alias, reply

    def _fails_after_admission(self, reply: Reply) -> bool:
        return reply.status >= 500 or (self._failure is not None and self._failure.name in _ADMITTED_THEN_FAILED)

    def _refuse(self, kind: str, reply: Reply, *, over_limit: bool = False) -> None:
        self._account.refuse(kind, over_limit=over_limit, now_ns=self._context.now_ns)
        self._respond(reply)

    # --- answers
    def _answer(self, scripted: Reply | None) -> None:
        if self._failure is not None:
            self._key.tally.failures[self._failure.name] += 1
        if scripted is not None:
            self._after(self._latency(), lambda: self._fail(scripted))
        elif self._call.stream:
            self._start(self._stream())
        elif self._failure is not None:
            self._start(self._spoilt_body(self._failure))
        else:
            self._span_seconds = self._latency() + self._generation_seconds()
            self._after(self._span_seconds, self._respond_whole)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        if seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, action)
        else:
            action()

    def _start(self, answer: Coroutine[None, None, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(answer)
        self._task.add_done_callback(self._check)

    def _check(self, task: asyncio.Task[None]) -> None:
        """A mistake of the simulator's own must not leave a request in flight: cut it, and let the loop report it."""
        if not task.cancelled() and task.exception() is not None:
            self._account.close("cut", billed=None)
            self._connection.abort()
            task.result()

    def _latency(self) -> float:
        return self._organisation.latency_seconds(stream=self._call.stream)

    def _generation_seconds(self) -> float:
        pace = self._organisation.config.tokens_per_second
        return self._call.output_per_choice / pace if pace else 0.0

    def _fail(self, reply: Reply) -> None:
        self._account.close("failed", billed=None)
        self._respond(reply)

    def _respond_whole(self) -> None:
        body = self._dialect.body(self._call, self._context)
        self._account.produce(self._call.usage.output)
        self._account.close("completed", billed=self._call.usage)
        self._respond(Reply(200, body, f"content-type: {self._call.answer_type}\r\n"))

    def _respond(self, reply: Reply) -> None:
        self._connection.respond(reply.status, reply.headers + self._headers(), reply.body)

    def _headers(self) -> str:
        context = self._context
        context.now_ns = self._clock.now_ns()
        elapsed_ms = (context.now_ns - self._begun_ns) // 1_000_000
        lines = self._dialect.headers(context, processing_ms=elapsed_ms)
        if self._failure is not None and self._failure.name == "retry_after_on_200":
            wait = RETRY_AFTER_ON_200_SECONDS if self._failure.seconds is None else self._failure.seconds
            lines += f"retry-after: {wait:g}\r\n"
        return lines

    # --- answers that take their time
    async def _spoilt_body(self, failure: Failure) -> None:
        await asyncio.sleep(self._latency() + self._generation_seconds())
        if await self._spoil_start(failure):
            return
        self._account.produce(self._call.usage.output)
        error = self._dialect.failure(
            resolve_failure_name("server_error", self._dialect.name), self._context, seconds=None
        )
        size, pieces, end = spoil_body(
            self._dialect.body(self._call, self._context), failure, error.body if error else b""
        )
        headers = "content-type: application/json\r\n" + self._headers()
        if size is None:
            self._connection.begin_stream(200, headers)
        else:
            self._connection.begin_sized(200, headers, size)
        for piece in pieces:
            (self._connection.write_chunk if size is None else self._connection.write_raw)(piece)
            await asyncio.sleep(0)
        spoilt = failure.name in ("error_first_event", "error_mid_stream")
        await self._finish(end, chunked=size is None, complete=not spoilt)

    async def _stream(self) -> None:
        failure = self._failure
        await asyncio.sleep(self._latency())
        if failure is not None and await self._spoil_start(failure):
            return
        kind = "application/json; charset=UTF-8" if self._call.style == "array" else "text/event-stream; charset=utf-8"
        self._connection.begin_stream(200, f"content-type: {kind}\r\n" + self._headers())
        end = End.CLEAN
        for number, item in enumerate(self._frames()):
            if isinstance(item, End):
                end = item
                break
            await self._pace(item, number)
            self._connection.write_chunk(item.data)
            self._account.produce(item.tokens)
            await self._connection.drained()
        whole = self._account.produced == self._call.usage.output
        complete = whole and (failure is None or failure.name != "truncate")
        await self._finish(end, chunked=True, complete=complete)

    def _frames(self) -> Iterator[Frame | End]:
        frames = self._dialect.frames(
            self._call, self._context, tokens_per_chunk=self._organisation.config.tokens_per_chunk
        )
        if self._failure is None:
            return frames
        return spoil_frames(frames, self._failure, self._dialect.error_frame(self._call, self._context))

    async def _pace(self, frame: Frame, number: int) -> None:
        """Wait until ``frame`` is due; without a pace, let others run now and then (a spoilt stream: always)."""
        pace = self._organisation.config.tokens_per_second
        if pace and frame.tokens > self._account.produced:
            await asyncio.sleep((frame.tokens - self._account.produced) / (pace * self._call.choices))
        elif self._failure is not None or number % FRAMES_PER_TURN_MAX == FRAMES_PER_TURN_MAX - 1:
            await asyncio.sleep(0)

    async def _spoil_start(self, failure: Failure) -> bool:
        """What goes wrong before the first byte; True if there is no answer."""
        if failure.name == "slow_first_token":
            await asyncio.sleep(SLOW_FIRST_TOKEN_SECONDS if failure.seconds is None else failure.seconds)
        elif failure.name == "stall_before_first_byte":
            await self._finish(End.STALL, chunked=False, complete=False)
            return True
        elif failure.name == "disconnect":
            self._account.close("cut", billed=None)
            self._connection.close()
            return True
        return False

    async def _finish(self, end: End, *, chunked: bool, complete: bool) -> None:
        if end is End.STALL:
            seconds = self._failure.seconds if self._failure is not None else None
            await asyncio.sleep(STALL_SECONDS_MAX if seconds is None else seconds)
        elif end is End.CUT:
            await asyncio.sleep(CUT_GRACE_SECONDS)
        verdict: Verdict = "completed" if end is End.CLEAN and complete else "cut"
        self._account.close(verdict, billed=self._call.usage._replace(output=self._account.produced))
        if end is End.CUT:
            self._connection.abort()
        elif end is not End.CLEAN:
            self._connection.close()
        elif chunked:
            self._connection.end_stream()
        else:
            self._connection.finish()

    def _disconnected(self) -> None:
        """The client has gone: stop, and bill what was generated until now (as the organisation's rule says)."""
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._account.produce(self._generated_by_now())
        rule = self._organisation.config.bill_on_disconnect
        if rule == "all":
            self._account.produce(self._call.usage.output)
        usage = self._call.usage._replace(output=self._account.produced)
        self._account.close("disconnected", billed=None if rule == "nothing" else usage)

    def _generated_by_now(self) -> int:
        """How far a whole answer had come when its client left, by time."""
        span_ns = int(self._span_seconds * NS_PER_SECOND)
        elapsed_ns = min(span_ns, self._clock.now_ns() - self._begun_ns)
        return self._call.usage.output * elapsed_ns // span_ns if span_ns else 0
