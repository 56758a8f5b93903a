"""A client's HTTP request as what routing needs: its headers read, a call made. No I/O."""

import hashlib
import math
import random
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from apikeyrouter.domain.components.wait_lines import PRIORITIES, read_priority
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import read_word, splice
from apikeyrouter.infrastructure.surface.problems import refuse
from apikeyrouter.infrastructure.surface.routes import Route

__all__ = ["ANYBODY", "Caller", "Headers", "check_provider", "make_call", "request_id_of"]

Headers = Mapping[bytes, bytes]

NAME_LENGTH_MAX = 256
OBJECTIVES_REMEMBERED_MAX = 64
TIMEOUT_MS_MAX = 24 * 3600 * 1000
WAIT_MS_MAX = 600_000
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PASSED_ON = frozenset((
    b"anthropic-version", b"anthropic-beta", b"openai-beta", b"idempotency-key", b"x-client-request-id",
    b"traceparent", b"tracestate",
))  # fmt: skip
"""Headers that may go upstream; the adapters have the last word (`providers.md` §5.2)."""
_OWN_CACHES = frozenset({"prompt_cache_key", "cache_salt"})
"""What keeps prompts apart in a provider's cache: where clients share a key, each has names of its own."""
_objectives: dict[bytes, RoutingObjective] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a request. `models` None: all. `lanes`: the client's own limits. `team` None: it may name one.

    `digest`: of the token that it came with, which is taken until `until_seconds` (Unix; 0: for ever). `priority`:
    whose requests are served first where requests wait. `refusal`: why its requests are refused, "" if they are not.
    """

    name: str | None = None
    team: str | None = None
    models: frozenset[str] | None = None
    lanes: tuple[str, ...] = ()
    weight: float = 1
    digest: bytes = b""
    until_seconds: float = 0.0
    priority: str = "interactive"
    refusal: str = ""


ANYBODY = Caller()
"""A caller without a token, where none is needed."""


def request_id_of(headers: Headers) -> str:
    """The client's `x-request-id` where it is a plain token, else a new id: Unix milliseconds, then random."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return f"req_{time.time_ns() // 1_000_000:011x}{random.getrandbits(64):016x}"


def check_provider(headers: Headers, known: Collection[str]) -> None:
    """Refuse a pinned provider that there is not. Raises InvalidRequestError."""
    pinned = headers.get(b"x-akr-provider")
    if pinned is not None and pinned.decode("latin-1").strip() not in known:
        raise InvalidRequestError(f"no such provider; there are {', '.join(known)}", field="x-akr-provider")


def is_dry_run(headers: Headers) -> bool:
    """Whether the client only asks what would happen. Raises InvalidRequestError."""
    asked = headers[b"x-akr-dry-run"].strip().lower()
    if asked not in (b"true", b"false"):
        raise InvalidRequestError("must be true or false", field="x-akr-dry-run")
    return asked == b"true"


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
    if name is not None and not _OWN_CACHES.isdisjoint(parsed.fields):
        parsed = _with_own_cache(parsed, name)
    if b"x-akr-team" in headers:
        team = _team(headers[b"x-akr-team"], caller)
    provider_id = objective = session = None
    if b"x-akr-provider" in headers:
        provider_id = _text(headers, b"x-akr-provider")
    if b"x-akr-objective" in headers:
        objective = _objective(headers[b"x-akr-objective"])
    if b"x-akr-session" in headers:
        session = _text(headers, b"x-akr-session")
    plain = b"x-akr-priority" not in headers and caller.priority == PRIORITIES[0]
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
        headers=() if _PASSED_ON.isdisjoint(headers) else _passed_on(headers),
        path_query=f"?{query.decode('latin-1')}" if query else "",
        session=session,
        deadline=_deadline(headers, started, stream=parsed.stream),
        wait_ms=_wait_ms(headers[b"x-akr-wait-ms"]) if b"x-akr-wait-ms" in headers else None,
        priority=0 if plain else _priority(headers.get(b"x-akr-priority"), caller),
    )


def _passed_on(headers: Headers) -> tuple[tuple[str, str], ...]:
    return tuple([(name.decode(), value.decode("latin-1")) for name, value in headers.items() if name in _PASSED_ON])


def _with_own_cache(parsed: ParsedRequest, client: str) -> ParsedRequest:
    """The request with its cache's name made the client's own: nobody learns what others have asked (64 characters)."""
    edits: dict[str, bytes | None] = {}
    for name in _OWN_CACHES & parsed.fields.keys():
        told = read_word(parsed.fields, name)
        if told is not None:
            digest = hashlib.blake2b(f"{client}\0{told}".encode("utf-8", "surrogatepass"), digest_size=24)
            edits[name] = b'"%b"' % digest.hexdigest().encode()
    fields = {**parsed.fields, **{name: msgspec.Raw(value) for name, value in edits.items() if value}}
    return msgspec.structs.replace(parsed, fields=fields, body=splice(parsed.body, parsed.fields, edits))


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


def _wait_ms(value: bytes) -> int:
    if not value.isdigit() or len(value) > 9 or int(value) > WAIT_MS_MAX:
        raise InvalidRequestError(f"must be a whole number between 0 and {WAIT_MS_MAX}", field="x-akr-wait-ms")
    return int(value)


def _priority(value: bytes | None, caller: Caller) -> int:
    """The class that a request asks for, and never a better one than its client's."""
    own = PRIORITIES.index(caller.priority)
    return own if value is None else max(own, read_priority(value.decode("latin-1"), field="x-akr-priority"))


def _deadline(headers: Headers, started: float, *, stream: bool) -> float | None:
    """The earlier of what the client asks for and what its SDK will wait for; None: nothing was said.

    Of a stream an SDK waits so long for each piece, so that it says nothing about the whole.
    """
    given = headers.get(b"x-akr-timeout-ms")
    hint = None
    if not stream:
        hint = headers.get(b"x-stainless-read-timeout") or headers.get(b"x-stainless-timeout")
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
