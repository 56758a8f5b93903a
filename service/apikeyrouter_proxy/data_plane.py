"""The data plane: one request from an SDK, from its bytes to ours. A plain ASGI endpoint, reached before FastAPI.

identify → read → parse → route → answer
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import structlog

from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.call import Call, Exchange, Facts, PouredChunks
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
)
from apikeyrouter.infrastructure.observability.events import REQUEST_ID
from apikeyrouter.infrastructure.surface import problems
from apikeyrouter.infrastructure.surface.answers import (
    JSON_TYPE,
    dry_run_body,
    head_lines,
    identity_headers,
    metadata_member,
    pairs_of,
    splice_metadata,
    stream_headers,
    whole_head,
)
from apikeyrouter.infrastructure.surface.made_before import MadeBefore, Origin, pin
from apikeyrouter.infrastructure.surface.model_list import list_body
from apikeyrouter.infrastructure.surface.problems import Problem, RequestRefused, refuse
from apikeyrouter.infrastructure.surface.requests import (
    Caller,
    Headers,
    check_provider,
    is_dry_run,
    make_call,
    request_id_of,
)
from apikeyrouter.infrastructure.surface.routes import Route, known_paths
from apikeyrouter.infrastructure.surface.translating import translated, widen
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter_proxy.access_log import AccessLog
from apikeyrouter_proxy.client_limits import ClientLimits, Header
from apikeyrouter_proxy.clients import Clients
from apikeyrouter_proxy.edge import HSTS, NOSNIFF
from apikeyrouter_proxy.http_protocol import Exchanging, exchanging
from apikeyrouter_proxy.keep_alive import KeepAlive
from apikeyrouter_proxy.metrics import Metrics
from apikeyrouter_proxy.open_requests import OpenRequest, OpenRequests
from apikeyrouter_proxy.requests import ClientGone, read_body

__all__ = ["DataPlane"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
_JSON = (b"content-type", JSON_TYPE)
LINES_KEPT = 256
"""Headers that are told with many answers, as lines."""
GONE = 499
"""Noted as the status where nobody was left to get one."""
_STREAMED = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_LAST = {"type": "http.response.body", "body": b"", "more_body": False}
_lines_of = lru_cache(LINES_KEPT)(head_lines)
_log = structlog.get_logger("apikeyrouter")


class DataPlane:
    """Serves routes, with errors in the route's dialect.

    `clients` and `translate` (whether providers of other dialects may serve a request) may be changed at any time.
    """

    def __init__(
        self,
        router: ApiKeyRouter,
        clients: Clients,
        metrics: Metrics,
        access_log: AccessLog,
        *,
        body_bytes_max: int,
        hsts: bool = False,
        first_byte_hold_seconds: float = 0.0,
    ) -> None:
        self.clients = clients
        self.translate = False
        self.open = OpenRequests()
        self.client_limits = ClientLimits(router)
        self._router = router
        self._made = MadeBefore(router.state_store, router.catalogue)
        self._metrics = metrics
        self._access_log = access_log
        self._body_bytes_max = body_bytes_max
        self._hold_seconds = first_byte_hold_seconds
        self._secure: tuple[Header, ...] = (NOSNIFF, HSTS) if hsts else (NOSNIFF,)

    async def serve(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        started = time.perf_counter()
        headers: Headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        REQUEST_ID.set(request_id)
        opened: OpenRequest | None = None
        exchange: Exchange | None = None
        caller: Caller | None = None
        call: Call | None = None
        kept: KeepAlive | None = None
        told, short = self._secure, exchanging(scope)
        try:
            caller = self.clients.identify(headers, scope)
            if route.operation == "unknown" or scope["method"] != route.method:
                raise _not_here(route)
            if route.operation == "models":
                await self._list(route, caller, request_id, send)
                return
            body = await read_body(receive, headers, self._body_bytes_max, short)
            parsed = route.wire.parse(body, operation=route.operation, model=route.name)
            query = scope["query_string"]
            origin: Origin | None = None
            if route.stateful:
                parsed, origin = await self._made.origin(parsed, caller.name, query)
            check_provider(headers, self._router.catalogue.providers)
            call = make_call(route, headers, caller, parsed, query=query, request_id=request_id, started=started)
            self._place(call, origin)
            if b"x-akr-dry-run" in headers and is_dry_run(headers):
                await self._foresee(call, route, send)
                return
            opened = self.open.enter(receive, started)
            if caller.lanes:
                told = (*told, *await self.client_limits.headers(caller))
            kept = self._kept_alive(call, send, told) if self._hold_seconds and call.stream else None
            exchange = await (self._router.serve(call) if call.intent is None else self._translated(call))
            if route.stateful and not parsed.resource:
                exchange = await self._made.note(exchange, call)
            if exchange.chunks is None:
                self.open.leave(opened)
                await _send_whole(exchange, route.wire.dialect, send, short, told)
            else:
                await self._send_stream(exchange, call, route.wire, told, opened, send, short, kept)
        except ClientGone:
            self._note_refusal(route, request_id, caller, GONE, "", started)
        except asyncio.CancelledError:
            if opened is None:
                raise
            await self._cut_off(opened, exchange, route, request_id, send, kept)
        except Exception as exc:  # whatever it is, the client gets an answer in its dialect
            problem = self._problem(exc, route.wire.dialect)
            if call is None or opened is None:
                self._note_refusal(route, request_id, caller, problem.status, problem.code, started)
                told = (*told, *await self.client_limits.of_refusal(caller))
            await self._send_problem(problem, route, request_id, send, told, kept)
        finally:
            if kept is not None:
                await kept.end()
            if opened is not None:
                self.open.leave(opened)

    def finished(self, facts: Facts) -> None:
        """Count and log a call that has ended; the router tells."""
        self._metrics.observe(facts)
        self._access_log.observe(facts)

    # --- answers -------------------------------------------------------------------------------------------------

    async def _translated(self, call: Call) -> Exchange:
        return await translated(call, self._router.serve, self._router.count_tokens)

    def _place(self, call: Call, origin: Origin | None) -> None:
        """Where it may go: back to who made what it is about, and to other dialects where that is switched on."""
        if origin is not None:
            pin(call, origin)
        if self.translate:
            widen(call, self._router.catalogue)

    async def _foresee(self, call: Call, route: Route, send: Send) -> None:
        body = dry_run_body(await self._router.foresee(call))
        identity = identity_headers(call.request_id, route.wire.dialect)
        await _send(send, 200, [_JSON, (b"content-length", b"%d" % len(body)), *identity, *self._secure], body)

    async def _list(self, route: Route, caller: Caller, request_id: str, send: Send) -> None:
        body = list_body(self._models_for(caller), route.wire.dialect, route.name)
        identity = identity_headers(request_id, route.wire.dialect)
        head = [_JSON, (b"content-length", b"%d" % len(body)), *identity, *self._secure]
        await _send(send, 200, head, body)

    def _models_for(self, caller: Caller) -> list[tuple[str, tuple[str, ...]]]:
        """What the caller may ask for. A client's own models are named even where no price list knows them."""
        catalogue = self._router.catalogue
        listed = catalogue.models()
        if caller.models is None:
            return listed
        known = dict(listed)
        found = [(name, known.get(name) or self._providers_of(name)) for name in sorted(caller.models)]
        return [entry for entry in found if entry[1]]

    def _providers_of(self, model: str) -> tuple[str, ...]:
        try:
            pool = self._router.catalogue.pool(model, None, "")
        except InvalidRequestError:
            return ()
        return tuple(sorted({option.provider.id for option in pool.options}))

    async def _send_stream(
        self,
        exchange: Exchange,
        call: Call,
        wire: Wire,
        told: Sequence[Header],
        opened: OpenRequest,
        send: Send,
        short: Exchanging | None,
        kept: KeepAlive | None,
    ) -> None:
        chunks, begun = exchange.chunks, kept is not None and await kept.end()
        assert chunks is not None
        head = stream_headers(exchange, dialect=wire.dialect)
        head += told
        try:
            if (
                short is not None
                and isinstance(chunks, PouredChunks)
                and (begun or short.begin_now(exchange.status, head))
            ):
                await chunks.pour(short.write_now, short.drained)
            else:
                if not begun:
                    await send({"type": "http.response.start", "status": exchange.status, "headers": head})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except asyncio.CancelledError:
            await chunks.aclose()
            raise
        except Exception as exc:  # the status has gone out: what is left is an event
            await chunks.aclose()
            problem = self._problem(exc, wire.dialect)
            await send({"type": "http.response.body", "body": _event(problem, wire, call), "more_body": True})
        self.open.leave(opened)
        await send(_LAST)

    async def _cut_off(
        self,
        opened: OpenRequest,
        exchange: Exchange | None,
        route: Route,
        request_id: str,
        send: Send,
        kept: KeepAlive | None,
    ) -> None:
        """Our own task was cancelled: the client has gone, the process stops, or the lease of the hold was lost."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        if opened.cut == "disconnected":
            return
        stopping = self.open.draining
        problem = Problem(
            status=503,
            type="service_unavailable_error",
            code="shutting_down" if stopping else "request_aborted",
            message="the service is stopping" if stopping else "the request was ended; it may have been billed",
            retry=exchange is None and stopping,
        )
        self._metrics.denied(problem.code)
        if exchange is None:
            await self._send_problem(problem, route, request_id, send, self._secure, kept)
        else:
            await _send_event(problem, route, request_id, send)

    def _kept_alive(self, call: Call, send: Send, told: Sequence[Header]) -> KeepAlive | None:
        if call.dialect == "gemini":
            return None
        head = [*_STREAMED, *identity_headers(call.request_id, call.dialect), *told]
        return KeepAlive(send, head, self._hold_seconds)

    async def _send_problem(
        self,
        problem: Problem,
        route: Route,
        request_id: str,
        send: Send,
        told: Sequence[Header],
        kept: KeepAlive | None,
    ) -> None:
        if kept is not None and await kept.end():  # the status has gone out
            await _send_event(problem, route, request_id, send)
            return
        body = problems.problem_body(problem, route.wire, request_id)
        head = [
            _JSON,
            (b"content-length", b"%d" % len(body)),
            *identity_headers(request_id, route.wire.dialect),
            *problems.problem_headers(problem),
            *told,
        ]
        if problem.status == 405:
            head.append((b"allow", route.method.encode()))
        if problem.status in (408, 413):
            head.append((b"connection", b"close"))
        await _send(send, problem.status, head, body)

    # --- what is noted -------------------------------------------------------------------------------------------

    def _problem(self, exc: Exception, dialect: str) -> Problem:
        if not isinstance(exc, ApiKeyRouterError):
            _log.exception("request.crashed")
        elif isinstance(exc, LedgerError) and not isinstance(exc, LedgerUnavailableError):
            _log.error("ledger.failed", error=str(exc))  # an outage is logged once, by the router
        problem = problems.problem_of(exc, dialect)
        self._metrics.denied(problem.counted_as)
        return problem

    def _note_refusal(
        self, route: Route, request_id: str, caller: Caller | None, status: int, code: str, started: float
    ) -> None:
        outcome = _outcome_of(status)
        total_us = int((time.perf_counter() - started) * 1e6)
        self._metrics.refused(route.operation, outcome, total_us)
        self._access_log.refused(
            at_us=time.time_ns() // 1000,
            request_id=request_id,
            route=route.operation,
            outcome=outcome,
            status=status,
            denied_by=code or None,
            client=caller.name if caller is not None else None,
            total_us=total_us,
        )


def _not_here(route: Route) -> RequestRefused:
    """There is no such path, or it takes another method."""
    if route.operation == "unknown":
        return refuse(404, "invalid_request_error", "unknown_url", f"no such path; there are {known_paths()}")
    return refuse(405, "invalid_request_error", "method_not_allowed", f"use {route.method} {route.path}")


def _outcome_of(status: int) -> str:
    """What became of a request that never reached the router."""
    if status == GONE:
        return "disconnected"
    if status in (401, 403):
        return "not_allowed"
    return "invalid_request" if status < 500 else "internal_error"


async def _send_whole(
    exchange: Exchange, dialect: str, send: Send, short: Exchanging | None, told: tuple[Header, ...]
) -> None:
    body = exchange.body or b""
    if exchange.content_type.startswith("application/json"):
        body = splice_metadata(body, metadata_member(exchange.facts))
    head = whole_head(exchange, len(body), dialect=dialect) + _lines_of(told)
    if short is None or not short.send_now(exchange.status, head, body):
        await _send(send, exchange.status, pairs_of(head), body)


async def _send(send: Send, status: int, head: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _send_event(problem: Problem, route: Route, request_id: str, send: Send) -> None:
    """The last words of an answer that has begun."""
    event = route.wire.error_event(
        request_id=request_id, operation=route.operation, **problems.event_arguments(problem)
    )
    await send({"type": "http.response.body", "body": event, "more_body": False})


def _event(problem: Problem, wire: Wire, call: Call) -> bytes:
    return wire.error_event(request_id=call.request_id, operation=call.operation, **problems.event_arguments(problem))
