"""The surface that SDKs see, served in this process: an HTTP request's parts in, an answer's parts out. No socket.

The transports for httpx and httpx2 put this between an SDK and the router; everything else about them is the packages'.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from apikeyrouter.domain.components.catalogue import ANY_CLIENT
from apikeyrouter.domain.models.call import Call, Exchange
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, ConfigurationError, ErrorCategory, SystemError
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.infrastructure.surface import problems
from apikeyrouter.infrastructure.surface.answers import (
    JSON_TYPE,
    Header,
    identity_headers,
    metadata_member,
    pairs_of,
    splice_metadata,
    stream_headers,
    whole_head,
)
from apikeyrouter.infrastructure.surface.made_before import MadeBefore, pin
from apikeyrouter.infrastructure.surface.model_list import list_body
from apikeyrouter.infrastructure.surface.problems import refuse
from apikeyrouter.infrastructure.surface.requests import Caller, Headers, check_provider, make_call, request_id_of
from apikeyrouter.infrastructure.surface.routes import Route, find_route, in_any_base, known_paths
from apikeyrouter.infrastructure.surface.translating import translated, widen
from apikeyrouter.router import ApiKeyRouter

__all__ = ["Answer", "InProcess", "TooSlow"]

SLACK_SECONDS = 0.1
"""The router gives up a moment before the deadline that it was given."""
_log = EventLog("apikeyrouter")


class TooSlow(Exception):
    """The SDK's own time to read has run out."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """One HTTP answer: `body` when complete, else `chunks`, which must be read to their end or closed."""

    status: int
    headers: list[Header]
    body: bytes = b""
    chunks: "AnswerStream | None" = None


class InProcess:
    """Serves SDKs out of a router, with what the HTTP service answers: the same bodies, headers and errors.

    Args:
        router: started on first use, never closed here.
        team, client: whose budgets requests are held in. Without `team`, the header `x-akr-team` may name one.
        objective, provider_id: for requests that say nothing else by `x-akr-objective` and `x-akr-provider`.

    Raises:
        InvalidRequestError: an unknown objective.
    """

    def __init__(
        self,
        router: ApiKeyRouter,
        *,
        team: str | None = None,
        client: str | None = None,
        objective: RoutingObjective | str | None = None,
        provider_id: str | None = None,
    ) -> None:
        self.router = router
        self._made = MadeBefore(router.state_store, router.catalogue)
        self._caller = Caller(name=client, team=team)
        self._objective = None if objective is None else RoutingObjective.read(objective)
        self._provider_id = provider_id

    async def answer(
        self, method: str, path: str, query: bytes, headers: Headers, body: bytes, *, read_seconds: float | None
    ) -> Answer:
        """The answer to one request; whatever is wrong with it is an error answer in its dialect.

        `read_seconds`: how long the SDK waits for the answer to begin, and for each piece of a stream.

        Raises:
            TooSlow: it waited as long as it wants to.
            ConfigurationError: the router belongs to another event loop, or cannot be used at all.
        """
        started = time.perf_counter()
        request_id = request_id_of(headers)
        route = find_route(in_any_base(path), query, headers, method)
        try:
            await self.router.ready()
            if route.operation == "unknown":
                raise refuse(404, "invalid_request_error", "unknown_url", f"no such path; there are {known_paths()}")
            if method != route.method:
                raise refuse(405, "invalid_request_error", "method_not_allowed", f"use {route.method} {route.path}")
            if route.operation == "models":
                return self._models(route, request_id)
            call = await self._call(route, headers, body, query, request_id, started, read_seconds)
            exchange = await self._exchange(call, read_seconds)
            if route.stateful and call.operation == "responses":
                exchange = await self._made.note(exchange, call)
        except (ConfigurationError, TooSlow):
            raise
        except Exception as exc:
            if _was_too_slow(exc, started, read_seconds):
                raise TooSlow from exc
            return _error(_problem(exc, route), route, request_id)
        return _whole(exchange, route) if exchange.chunks is None else _streamed(exchange, call, route, read_seconds)

    async def _call(
        self, route: Route, headers: Headers, body: bytes, query: bytes, request_id: str, started: float,
        read_seconds: float | None,
    ) -> Call:  # fmt: skip
        parsed = route.wire.parse(body, operation=route.operation, model=route.name)
        origin = None
        if route.stateful:
            parsed, origin = await self._made.origin(parsed, self._caller.name, query)
        check_provider(headers, self.router.catalogue.providers)
        call = make_call(route, headers, self._caller, parsed, query=query, request_id=request_id, started=started)
        call.lanes, call.weight = self.router.catalogue.clients.get(call.client or "", ANY_CLIENT)
        call.objective = call.objective or self._objective
        call.provider_id = call.provider_id or self._provider_id
        if origin is not None:
            pin(call, origin)
        widen(call, self.router.catalogue)
        if read_seconds is not None and not call.stream:
            call.deadline = min(call.deadline or float("inf"), started + read_seconds)
        return call

    async def _exchange(self, call: Call, read_seconds: float | None) -> Exchange:
        if call.intent is None:
            return await self._begun(call, read_seconds)
        return await translated(call, lambda call: self._begun(call, read_seconds), self.router.count_tokens)

    async def _begun(self, call: Call, read_seconds: float | None) -> Exchange:
        """The answer; of a stream its beginning, for which the SDK waits as long as for each piece."""
        if not call.stream:
            return await self.router.serve(call)
        try:
            async with asyncio.timeout(read_seconds):
                return await self.router.serve(call)
        except TimeoutError as exc:
            raise TooSlow from exc

    def _models(self, route: Route, request_id: str) -> Answer:
        body = list_body(self.router.catalogue.models(), route.wire.dialect, route.name)
        return Answer(status=200, headers=_json_head(body, request_id, route.wire.dialect), body=body)


class AnswerStream:
    """A streamed answer's bytes. A failure in the middle arrives as an error event, as over HTTP."""

    def __init__(self, exchange: Exchange, call: Call, route: Route, read_seconds: float | None) -> None:
        assert exchange.chunks is not None
        self._chunks, self._call, self._route, self._read_seconds = exchange.chunks, call, route, read_seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._chunks)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._read_seconds):
                        piece = await anext(chunks)
                except StopAsyncIteration:
                    return
                except TimeoutError as exc:
                    raise TooSlow from exc
                except Exception as exc:  # the status has gone out: what is left is an event
                    yield self._event(exc)
                    return
                yield piece
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Give up the rest; what was received is charged. Idempotent."""
        await self._chunks.aclose()

    def _event(self, exc: Exception) -> bytes:
        problem = _problem(exc, self._route)
        return self._route.wire.error_event(
            request_id=self._call.request_id, operation=self._call.operation, **problems.event_arguments(problem)
        )


def _whole(exchange: Exchange, route: Route) -> Answer:
    body = exchange.body or b""
    if exchange.content_type.startswith("application/json"):
        body = splice_metadata(body, metadata_member(exchange.facts))
    head = pairs_of(whole_head(exchange, len(body), dialect=route.wire.dialect))
    return Answer(status=exchange.status, headers=head, body=body)


def _streamed(exchange: Exchange, call: Call, route: Route, read_seconds: float | None) -> Answer:
    head = stream_headers(exchange, dialect=route.wire.dialect)
    return Answer(status=exchange.status, headers=head, chunks=AnswerStream(exchange, call, route, read_seconds))


def _problem(exc: Exception, route: Route) -> problems.Problem:
    if not isinstance(exc, ApiKeyRouterError):
        _log.error("request.crashed", error=repr(exc))
    return problems.problem_of(exc, route.wire.dialect)


def _error(problem: problems.Problem, route: Route, request_id: str) -> Answer:
    body = problems.problem_body(problem, route.wire, request_id)
    head = [*_json_head(body, request_id, route.wire.dialect), *problems.problem_headers(problem)]
    return Answer(status=problem.status, headers=head, body=body)


def _json_head(body: bytes, request_id: str, dialect: str) -> list[Header]:
    return [
        (b"content-type", JSON_TYPE), (b"content-length", b"%d" % len(body)), *identity_headers(request_id, dialect),
    ]  # fmt: skip


def _was_too_slow(exc: Exception, started: float, read_seconds: float | None) -> bool:
    late = read_seconds is not None and time.perf_counter() >= started + read_seconds - SLACK_SECONDS
    return late and isinstance(exc, SystemError) and exc.category is ErrorCategory.TimeoutError


def timeout_of(extensions: Mapping[str, Any]) -> float | None:
    """The seconds that a client of httpx or httpx2 waits for bytes; None: for ever."""
    given = extensions.get("timeout")
    read = given.get("read") if isinstance(given, Mapping) else None
    return read if isinstance(read, int | float) and read > 0 else None


def headers_of(raw: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers with names in lower case; of several alike the last."""
    return {name.lower(): value for name, value in raw}
