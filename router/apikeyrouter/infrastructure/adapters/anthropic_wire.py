"""Anthropic's dialect: messages and count_tokens, in bytes. Facts: `providers.md` §1–3 and §5."""

import os
import time
from collections.abc import Callable, Mapping

import msgspec

from apikeyrouter.domain.interfaces.wire import Headers, ParsedRequest, StreamDelta, StreamReader, UpstreamRequest
from apikeyrouter.domain.models.accounting import LimitKind, Metric, Observation
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters import failure_table
from apikeyrouter.infrastructure.adapters.anthropic_content import measure_messages
from apikeyrouter.infrastructure.adapters.anthropic_stream import AnthropicStream, read_deltas
from apikeyrouter.infrastructure.adapters.forwarding import FIXED, FORWARDED, forwarded, safe_query
from apikeyrouter.infrastructure.adapters.json_body import (
    JsonError,
    read_flag,
    read_members,
    read_text,
    read_whole,
    read_word,
    splice,
)
from apikeyrouter.infrastructure.adapters.openai_wire import DAY_US, MINUTE_US, _count
from apikeyrouter.infrastructure.adapters.retry_hints import rfc3339_us
from apikeyrouter.infrastructure.adapters.usage_reader import AnthropicUsage

BASE_URL = "https://api.anthropic.com"
"""Without `/v1`, as the SDK's ANTHROPIC_BASE_URL is."""

VERSION = "2023-06-01"
"""`anthropic-version` sent when the client gave none."""

PATHS = {"messages": "/v1/messages", "count_tokens": "/v1/messages/count_tokens"}
_FORWARDED = FORWARDED - {"openai-beta"}
_LIMITS = (
    ("requests", "rpm", Metric.REQUESTS),
    ("input-tokens", "itpm", Metric.INPUT_TOKENS),
    ("output-tokens", "otpm", Metric.OUTPUT_TOKENS),
)
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Error types of the API by status; what is missing is `api_error`, or `invalid_request_error` below 500."""

_KNOWN_TYPES = frozenset(_TYPES.values()) | {"api_error"}


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""


class _Answer(msgspec.Struct, gc=False):
    content: list[_Block] | None = None
    stop_reason: str | None = None


class _UsageOnly(msgspec.Struct, gc=False):
    usage: AnthropicUsage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_USAGE = msgspec.json.Decoder(_UsageOnly)


class AnthropicWire:
    """Anthropic and servers that speak its dialect. Implements the `Wire` port.

    Args:
        base_url: without `/v1`; absent: ANTHROPIC_BASE_URL, then Anthropic's own.
        provider_id: selects rows of the failure table.
        now: Unix seconds, for dates in answers.
    """

    cache_reads_are_free = True
    """Input tokens a minute do not count cache reads (`providers.md` §1.2)."""
    dialect = "anthropic"

    def __init__(
        self,
        base_url: str | None = None,
        provider_id: str = "anthropic",
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = (base_url or os.environ.get("ANTHROPIC_BASE_URL") or BASE_URL).rstrip("/")
        self.provider_id = provider_id
        self._now = now
        self._urls = {operation: self.base_url + path for operation, path in PATHS.items()}

    def parse(self, body: bytes, *, operation: str = "messages") -> ParsedRequest:
        """Read a client's body once. Raises InvalidRequestError that names the field."""
        if operation not in PATHS:
            raise InvalidRequestError(f"{operation!r} is not one of {', '.join(PATHS)}", field="operation")
        fields = read_members(body)
        model = read_text(fields, "model")
        counting = operation == "count_tokens"
        cap = 0 if counting else read_whole(fields, "max_tokens")
        if cap is None:
            raise InvalidRequestError("is required", field="max_tokens")
        size = measure_messages(fields)
        return ParsedRequest(
            model=model,
            stream=read_flag(fields, "stream"),
            choices=1,
            max_output_tokens=cap,
            input_bytes=size.raw if size.raw > 0 else 0,
            messages=size.messages,
            extra_tokens=size.extra,
            unbounded=size.unbounded,
            include_usage=True,
            fields=fields,
            text_bytes=size.text,
            media=size.media,
            service_tier=_tier(fields),
            body=body,
        )

    def build(
        self,
        parsed: ParsedRequest,
        *,
        operation: str,
        model: str,
        token_cap: int | None,
        key: str,
        headers: Headers = (),
        path_query: str = "",
    ) -> UpstreamRequest:
        """The request to send. Edits: model, a lower `max_tokens`, credentials, headers."""
        edits: dict[str, bytes | None] = {}
        if model != parsed.model:
            edits["model"] = msgspec.json.encode(model)
        cap = parsed.max_output_tokens
        if operation == "messages" and token_cap is not None and (cap is None or token_cap < cap):
            edits["max_tokens"] = b"%d" % token_cap
        kept = forwarded(headers, _FORWARDED)
        if not any(name == "anthropic-version" for name, _ in kept):
            kept.append(("anthropic-version", VERSION))
        url = self._urls[operation]
        return UpstreamRequest(
            method="POST",
            url=url + safe_query(path_query) if path_query else url,
            headers=(*FIXED, ("x-api-key", f"{key}"), *kept),
            body=splice(parsed.body, parsed.fields, edits),
        )

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none or the bytes are no answer."""
        try:
            usage = _USAGE.decode(body).usage
        except JsonError:
            return None
        return usage.read() if usage is not None else None

    def read_answer(self, body: bytes) -> tuple[str, str | None]:
        """(text, stop_reason) of a complete answer; ("", None) when the bytes are no answer."""
        try:
            answer = _ANSWER.decode(body)
        except JsonError:
            return "", None
        return "".join([block.text for block in answer.content or () if block.type == "text"]), answer.stop_reason

    def stream(self, *, hide_usage: bool, operation: str = "messages") -> StreamReader:
        """A reader for one stream. Usage is always part of the dialect, so nothing is hidden."""
        return AnthropicStream(self.classify)

    def read_deltas(self, events: bytes) -> list[StreamDelta]:
        """What whole events add to the answer."""
        return read_deltas(events)

    def classify(
        self, status: int, headers: Mapping[str, str], body: bytes, *, known_secrets: tuple[str, ...] = ()
    ) -> Failure:
        """What an error answer means. Total."""
        return failure_table.classify(
            failure_table.ANTHROPIC_TABLE,
            status,
            headers,
            body,
            now_us=int(self._now() * 1e6),
            provider=self.provider_id,
            known_secrets=known_secrets,
        )

    def observe(self, headers: Mapping[str, str]) -> list[Observation]:
        """`anthropic-ratelimit-*`: token buckets, resets in RFC 3339. `tokens-*` repeats the most restrictive of the
        others and is read only when those are missing (§1.2)."""
        found: list[Observation] = []
        if "anthropic-ratelimit-requests-remaining" in headers or "anthropic-ratelimit-requests-limit" in headers:
            for what, name, metric in _LIMITS:
                self._observe(found, headers, what, name, metric)
            if len(found) == 1:
                self._observe(found, headers, "tokens", "tpm", Metric.TOKENS)
        return found

    def _observe(
        self, found: list[Observation], headers: Mapping[str, str], what: str, name: str, metric: Metric
    ) -> None:
        prefix = "anthropic-ratelimit-" + what
        limit = _count(headers.get(prefix + "-limit"))
        remaining = _count(headers.get(prefix + "-remaining"))
        if limit is None and remaining is None:
            return
        reset = rfc3339_us(headers.get(prefix + "-reset", ""))
        wait_us = 0 if reset is None else reset - int(self._now() * 1e6)
        found.append(
            Observation(
                name=name,
                metric=metric,
                kind=LimitKind.BUCKET,
                period_us=MINUTE_US,
                limit=limit or 0,
                remaining=remaining,
                reset_us=min(max(wait_us, 0), DAY_US),
            )
        )

    def organization(self, headers: Mapping[str, str]) -> str | None:
        """The organisation; limits are its own, workspaces share them (§1.2)."""
        return headers.get("anthropic-organization-id") or None

    def error_body(
        self,
        *,
        status: int,
        type: str,
        code: str,
        message: str,
        request_id: str,
    ) -> bytes:
        """`{"type": "error", "error": {type, message}, "request_id"}`, with our code in `details.error_code`."""
        error: dict[str, object] = {"type": _type(status, type), "message": message}
        if code:
            error["details"] = {"error_code": code}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})

    def error_event(
        self,
        *,
        type: str,
        code: str,
        message: str,
        request_id: str,
        operation: str = "messages",
        status: int = 500,
    ) -> bytes:
        """An error inside a stream; the SDK skips it without `event: error` (§3.2)."""
        body = self.error_body(status=status, type=type, code=code, message=message, request_id=request_id)
        return b"event: error\ndata: " + body + b"\n\n"


def _tier(fields: dict[str, bytes]) -> str | None:
    """What makes a request dearer: `speed`, named as the price list names it, or `service_tier`."""
    speed = read_word(fields, "speed") if "speed" in fields else None
    if speed == "fast":
        return speed
    return read_word(fields, "service_tier") if "service_tier" in fields else None


def _type(status: int, wanted: str) -> str:
    if wanted in _KNOWN_TYPES:
        return wanted
    return _TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")
