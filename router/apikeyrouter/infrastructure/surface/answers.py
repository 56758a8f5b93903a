"""Answers to clients: status and headers as prebuilt bytes, and `routing_metadata` spliced into JSON."""

from collections.abc import Iterable

import msgspec

from apikeyrouter.domain.models.call import Exchange, Facts
from apikeyrouter.domain.models.routing_decision import RoutingDecision

__all__ = [
    "dry_run_body", "head_lines", "identity_headers", "metadata_member", "pairs_of", "splice_metadata",
    "stream_headers", "whole_head",
]  # fmt: skip

Header = tuple[bytes, bytes]
PIECES_MAX = 4096
"""Encoded names remembered; beyond it the memory starts afresh."""
JSON_TYPE = b"application/json"
_BLANK = b" \t\r\n"
_LENGTH, _TYPE = b"content-length", b"content-type"
_NOT_BUFFERED: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_COUNTED_HERE: list[Header] = [(b"x-akr-token-count", b"estimate")]
"""Of an answer for which nobody was asked: tokens, counted by what was learned."""
_heads: dict[tuple[str, str, int], list[Header]] = {}
_beginnings: dict[tuple[str, str, int, str], bytes] = {}
_members: dict[tuple[str, str, str], bytes] = {}
_encode = msgspec.json.Encoder().encode


def identity_headers(request_id: str, dialect: str) -> list[Header]:
    """The request's id under the names that the SDKs look for."""
    value = request_id.encode()
    if dialect == "anthropic":
        return [(b"x-request-id", value), (b"request-id", value)]
    return [(b"x-request-id", value)]


def whole_head(exchange: Exchange, length: int, *, dialect: str) -> bytes:
    """The headers of a complete answer, as lines."""
    facts = exchange.facts
    attempts, told, request_id = facts.attempts, exchange.content_type, facts.request_id.encode()
    names = (attempts[-1].key_id, attempts[-1].provider_id, len(attempts), told) if attempts else ("", "", 0, told)
    head = b"%b%d\r\nx-akr-overhead-us: %d\r\nx-request-id: %b\r\n" % (
        _beginnings.get(names) or _remember_beginning(facts, names), length, facts.overhead_us, request_id,
    )  # fmt: skip
    if dialect == "openai":
        head += b"openai-processing-ms: %d\r\n" % (facts.total_us // 1000)
    elif dialect == "anthropic":
        head += b"request-id: %b\r\n" % request_id
    cost = facts.cost_nanousd
    if cost is not None:
        head += b"x-akr-cost-usd: %d.%09d\r\n" % divmod(cost, 1_000_000_000)
    if facts.standby:
        head += b"x-akr-store: away\r\n"
    if facts.token_cap is not None:
        head += b"x-akr-token-cap: %d\r\n" % facts.token_cap
    return head


def head_lines(headers: Iterable[Header]) -> bytes:
    """Headers as lines. Errors: RuntimeError: a line break in one, which would end it."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise RuntimeError("a header has a line break in it")
    return head


def pairs_of(head: bytes) -> list[Header]:
    """Lines of headers, taken apart again."""
    pairs = (line.partition(b": ") for line in head.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]


def stream_headers(exchange: Exchange, *, dialect: str) -> list[Header]:
    """The headers of a stream: its cost is not known yet, and the time spent here is that before its first event."""
    facts = exchange.facts
    headers = [
        (_TYPE, exchange.content_type.encode("latin-1")),
        *_NOT_BUFFERED,
        *_routing_headers(facts),
        *identity_headers(facts.request_id, dialect),
        (b"x-akr-overhead-us", b"%d" % facts.overhead_us),
    ]
    if dialect == "openai":
        headers.append((b"openai-processing-ms", b"%d" % (facts.first_token_us // 1000)))
    if facts.standby:
        headers.append((b"x-akr-store", b"away"))
    if facts.token_cap is not None:
        headers.append((b"x-akr-token-cap", b"%d" % facts.token_cap))
    return headers


def metadata_member(facts: Facts) -> bytes:
    """`"routing_metadata":{…}`: which key and provider served, after how many attempts, at what cost."""
    last = facts.attempts[-1] if facts.attempts else None
    names = (last.key_id, last.provider_id, last.model) if last else ("", "", facts.model)
    head = _members.get(names) or _remember_member(names)
    cost = facts.cost_nanousd
    money = b"null" if cost is None else b"%d.%09d" % divmod(cost, 1_000_000_000)
    return b'%b%d,"cost":%b,"request_id":"%b"}' % (head, len(facts.attempts), money, facts.request_id.encode())


def dry_run_body(decision: RoutingDecision) -> bytes:
    """What a client is told of what would happen to its request. Other keys' numbers are management's to see."""
    return msgspec.json.encode(
        {
            "object": "routing.dry_run",
            "would_be_served": bool(decision.selected_key_id),
            "key_id": decision.selected_key_id or None,
            "provider_id": decision.selected_provider_id or None,
            "model": decision.model,
            "objective": str(decision.objective.primary),
            "explanation": decision.explanation,
            "confidence": decision.confidence,
            "policy_ids": decision.policy_ids,
            "request_id": decision.request_id,
        }
    )


def splice_metadata(body: bytes, member: bytes) -> bytes:
    """A JSON object with one member more, nothing re-serialised; anything else stays as it is."""
    text = body.rstrip(_BLANK)
    if text[-1:] != b"}" or text.lstrip(_BLANK)[:1] != b"{":
        return body
    head = text[:-1].rstrip(_BLANK)
    return b"".join((head, b"" if head.endswith(b"{") else b",", member, b"}"))


def _routing_headers(facts: Facts) -> list[Header]:
    attempts = facts.attempts
    if not attempts:
        return _COUNTED_HERE
    last = attempts[-1]
    names = (last.key_id, last.provider_id, len(attempts))
    return _heads.get(names) or _remember_head(names)


def _remember_beginning(facts: Facts, names: tuple[str, str, int, str]) -> bytes:
    """What the heads of complete answers begin with that have these names, up to their length."""
    if len(_beginnings) >= PIECES_MAX:
        _beginnings.clear()
    headers = [(_TYPE, names[-1].encode("latin-1")), *_routing_headers(facts), (_LENGTH, b"")]
    made = _beginnings[names] = head_lines(headers)[: -len(b"\r\n")]
    return made


def _remember_head(names: tuple[str, str, int]) -> list[Header]:
    if len(_heads) >= PIECES_MAX:
        _heads.clear()
    key_id, provider_id, attempts = names
    made = _heads[names] = [
        (b"x-akr-key-id", _printable(key_id)),
        (b"x-akr-provider", _printable(provider_id)),
        (b"x-akr-attempts", b"%d" % attempts),
    ]
    return made


def _remember_member(names: tuple[str, str, str]) -> bytes:
    if len(_members) >= PIECES_MAX:
        _members.clear()
    key_id, provider_id, model = map(_encode, names)
    made = _members[names] = b'"routing_metadata":{"key_used":%b,"provider_id":%b,"model":%b,"attempts":' % (
        key_id,
        provider_id,
        model,
    )
    return made


def _printable(name: str) -> bytes:
    """A header value: what is not printable ASCII becomes a question mark."""
    return "".join([c if " " <= c <= "~" else "?" for c in name]).encode()
