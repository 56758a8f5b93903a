"""A client's HTTP request: its body within bounds, its headers as what routing needs. No I/O but receiving the body."""

import asyncio
import contextlib
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter_proxy.clients import Caller
from apikeyrouter_proxy.problems import RequestRefused, refuse
from apikeyrouter_proxy.routes import Route

__all__ = ["ClientGone", "Headers", "make_call", "read_body", "request_id_of"]

Headers = Mapping[bytes, bytes]
Receive = Callable[[], Awaitable[Any]]

HEADERS_MAX = 100
REQUEST_ID_LENGTH_MAX = 128
NAME_LENGTH_MAX = 256
OBJECTIVES_REMEMBERED_MAX = 64
BODY_IDLE_SECONDS_MAX = 30.0
"""How long the next piece of a body may take."""
DISCARD_SECONDS_MAX = 10.0
DISCARDED_BYTES_MAX = 64 * 2**20
TIMEOUT_MS_MAX = 24 * 3600 * 1000
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PASSED_ON = tuple(
    (name.encode(), name)
    for name in (
        "anthropic-version", "anthropic-beta", "openai-beta", "idempotency-key", "x-client-request-id",
        "traceparent", "tracestate",
    )
)  # fmt: skip
"""Headers that may go upstream; the adapters have the last word (`providers.md` §5.2)."""
_objectives: dict[bytes, RoutingObjective] = {}


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


def request_id_of(headers: Headers) -> str:
    """The client's `x-request-id` where it is a plain token, else a new id: Unix milliseconds, then random."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return f"req_{time.time_ns() // 1_000_000:011x}{random.getrandbits(64):016x}"


async def read_body(receive: Receive, headers: Headers, bytes_max: int) -> bytes:
    """The whole body. Raises RequestRefused (408, 413, 415, 431) and ClientGone."""
    if len(headers) > HEADERS_MAX:
        raise refuse(431, "invalid_request_error", "headers_too_large", f"more than {HEADERS_MAX} headers")
    declared = headers.get(b"content-length")
    if declared is not None and (not declared.isdigit() or len(declared) > 15 or int(declared) > bytes_max):
        raise await _too_large(receive, bytes_max, more=True)
    if (coding := headers.get(b"content-encoding", b"identity")) != b"identity":
        raise refuse(
            415,
            "invalid_request_error",
            "unsupported_encoding",
            f"send the body uncompressed, not {coding[:20].decode('latin-1')!r}",
        )
    try:
        async with asyncio.timeout(BODY_IDLE_SECONDS_MAX) as patience:
            return await _read_parts(receive, patience, bytes_max)
    except TimeoutError:
        message = f"nothing of the body came for {BODY_IDLE_SECONDS_MAX:g} s"
        raise refuse(408, "invalid_request_error", "request_timeout", message, retry=True) from None


async def _read_parts(receive: Receive, patience: asyncio.Timeout, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
        if size > bytes_max:
            raise await _too_large(receive, bytes_max, more=more)
        if not more:
            return part if len(parts) == 1 else b"".join(parts)
        patience.reschedule(asyncio.get_running_loop().time() + BODY_IDLE_SECONDS_MAX)


async def _too_large(receive: Receive, bytes_max: int, *, more: bool) -> RequestRefused:
    """The error, after reading what is left: a connection that is closed on unread bytes is reset, and its client
    may never see why."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS_MAX):
            while more and size <= DISCARDED_BYTES_MAX:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    return refuse(413, "invalid_request_error", "request_too_large", f"the body is larger than {bytes_max} bytes")


def make_call(
    route: Route,
    headers: Headers,
    caller: Caller,
    parsed: ParsedRequest,
    *,
    query: bytes = b"",
    request_id: str,
    started: float,
) -> Call:
    """The call to route. Raises RequestRefused (403) and InvalidRequestError that names the header."""
    model = parsed.model
    if caller.models is not None and model not in caller.models:
        raise refuse(403, "permission_error", "model_not_allowed", f"this client may not use model {model[:100]!r}")
    team, name = caller.team, caller.name
    if b"x-akr-team" in headers:
        team = _team(headers[b"x-akr-team"], caller)
    provider_id = objective = session = None
    if b"x-akr-provider" in headers:
        provider_id = _text(headers, b"x-akr-provider")
    if b"x-akr-objective" in headers:
        objective = _objective(headers[b"x-akr-objective"])
    if b"x-akr-session" in headers:
        session = _text(headers, b"x-akr-session")
    return Call(
        request_id=request_id,
        operation=route.operation,
        model=model,
        stream=parsed.stream,
        started=started,
        dialect=route.wire.dialect,
        parsed=parsed,
        provider_id=provider_id,
        objective=objective,
        team=team,
        client=name,
        principal=name or "",
        weight=caller.weight,
        lanes=caller.lanes,
        headers=tuple([(text, headers[name].decode("latin-1")) for name, text in _PASSED_ON if name in headers]),
        path_query=f"?{query.decode('latin-1')}" if query else "",
        session=session,
        deadline=_deadline(headers, started),
    )


def _team(value: bytes, caller: Caller) -> str:
    team = value.decode("latin-1").strip()
    if not team or len(team) > NAME_LENGTH_MAX:
        raise InvalidRequestError(f"must have 1 to {NAME_LENGTH_MAX} characters", field="x-akr-team")
    if caller.team is not None and team != caller.team:
        raise refuse(403, "permission_error", "team_not_allowed", "this client belongs to another team")
    return team


def _text(headers: Headers, name: bytes) -> str:
    text = headers[name].decode("latin-1").strip()
    if not 1 <= len(text) <= NAME_LENGTH_MAX:
        raise InvalidRequestError(f"must have 1 to {NAME_LENGTH_MAX} characters", field=name.decode())
    return text


def _objective(value: bytes) -> RoutingObjective:
    known = _objectives.get(value)
    if known is None:
        try:
            known = RoutingObjective(value.decode("latin-1").strip())
        except InvalidRequestError as exc:
            raise InvalidRequestError(exc.reason, field="x-akr-objective") from exc
        if len(_objectives) >= OBJECTIVES_REMEMBERED_MAX:
            _objectives.clear()
        _objectives[value] = known
    return known


def _deadline(headers: Headers, started: float) -> float | None:
    """The earlier of what the client asks for and what its SDK will wait for; None: nothing was said."""
    given = headers.get(b"x-akr-timeout-ms")
    hint = headers.get(b"x-stainless-read-timeout")
    seconds = math.inf if hint is None else _hinted_seconds(hint)
    if given is not None:
        if not given.isdigit() or not 1 <= len(given) <= 9 or not 1 <= int(given) <= TIMEOUT_MS_MAX:
            raise InvalidRequestError(
                f"must be a whole number between 1 and {TIMEOUT_MS_MAX}", field="x-akr-timeout-ms"
            )
        seconds = min(seconds, int(given) / 1000)
    return None if seconds == math.inf else started + seconds


def _hinted_seconds(hint: bytes) -> float:
    """The SDK's own read timeout. Only a hint: what is no positive number is ignored."""
    try:
        seconds = float(hint)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf
