"""Anthropic's dialect: messages and count_tokens, in bytes. Facts: `providers.md` §1–3 and §5."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from apikeyrouter.domain.interfaces.wire import Answer, DeltaReader, ParsedRequest, StreamReader
from apikeyrouter.domain.models.accounting import Metric, Observation
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters import rate_headers
from apikeyrouter.infrastructure.adapters.anthropic_content import measure_messages
from apikeyrouter.infrastructure.adapters.anthropic_stream import MessageReader, finish_reason, message_delta
from apikeyrouter.infrastructure.adapters.base_wire import BaseWire, parsed_request
from apikeyrouter.infrastructure.adapters.failure_table import ANTHROPIC_TABLE
from apikeyrouter.infrastructure.adapters.forwarding import FORWARDED
from apikeyrouter.infrastructure.adapters.json_body import JsonError, read_flag, read_text, read_whole, read_word
from apikeyrouter.infrastructure.adapters.rate_headers import MINUTE_US, header_limits
from apikeyrouter.infrastructure.adapters.stream_deltas import Deltas
from apikeyrouter.infrastructure.adapters.usage_reader import AnthropicUsage

__all__ = ["BASE_URL", "VERSION", "AnthropicWire"]

BASE_URL = "https://api.anthropic.com"
"""Without `/v1`, as the SDK's ANTHROPIC_BASE_URL is."""

VERSION = "2023-06-01"
"""`anthropic-version` sent when the client gave none."""

_STEM = "anthropic-ratelimit-{which}-{what}"
_LIMITS = header_limits(
    _STEM,
    ("requests", "rpm", Metric.REQUESTS, MINUTE_US),
    ("input-tokens", "itpm", Metric.INPUT_TOKENS, MINUTE_US),
    ("output-tokens", "otpm", Metric.OUTPUT_TOKENS, MINUTE_US),
)
_TIGHTEST = header_limits(_STEM, ("tokens", "tpm", Metric.TOKENS, MINUTE_US))
"""Repeats the most restrictive of the others; read only where those are missing (§1.2)."""
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
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: object = {}


class _StopDetails(msgspec.Struct, gc=False):
    explanation: str | None = None


class _UsageOnly(msgspec.Struct, gc=False):
    usage: AnthropicUsage | None = None


class _Answer(_UsageOnly, gc=False):
    id: str = ""
    model: str = ""
    content: list[_Block] | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_USAGE = msgspec.json.Decoder(_UsageOnly)


class AnthropicWire(BaseWire):
    """Anthropic and servers that speak its dialect. Implements the `Wire` port.

    Args:
        base_url: without `/v1`; absent: ANTHROPIC_BASE_URL, then Anthropic's own.
        now: Unix seconds, for dates in answers.
    """

    cache_reads_are_free = True
    """Input tokens a minute do not count cache reads (`providers.md` §1.2)."""
    dialect = "anthropic"
    rows = ANTHROPIC_TABLE
    paths: ClassVar[Mapping[str, str]] = {"messages": "/v1/messages", "count_tokens": "/v1/messages/count_tokens"}
    models_path = "/v1/models"
    forwards = FORWARDED - {"openai-beta"}
    limits = _LIMITS

    def __init__(self, base_url: str | None = None, *, now: Callable[[], float] = time.time) -> None:
        super().__init__(base_url or os.environ.get("ANTHROPIC_BASE_URL") or BASE_URL, "anthropic", now=now)

    def parse(self, body: bytes, *, operation: str = "messages", model: str = "") -> ParsedRequest:
        """Read a client's body once. Raises InvalidRequestError that names the field."""
        fields = self._members(body, operation)
        model = read_text(fields, "model")
        cap = 0 if operation == "count_tokens" else read_whole(fields, "max_tokens")
        if cap is None:
            raise InvalidRequestError("is required", field="max_tokens")
        return parsed_request(
            body,
            fields,
            measure_messages(fields),
            model=model,
            stream=read_flag(fields, "stream"),
            output_cap=cap,
            service_tier=_tier(fields),
        )

    def credentials(self, key: str) -> tuple[tuple[str, str], ...]:
        """`x-api-key`."""
        return (("x-api-key", f"{key}"),)

    def _always(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if not any(name == "anthropic-version" for name, _ in headers):
            headers.append(("anthropic-version", VERSION))
        return headers

    def _edits(
        self, parsed: ParsedRequest, operation: str, model: str, token_cap: int | None
    ) -> dict[str, bytes | None]:
        edits: dict[str, bytes | None] = {}
        if model != parsed.model:
            edits["model"] = msgspec.json.encode(model)
        cap = parsed.max_output_tokens
        if operation == "messages" and token_cap is not None and (cap is None or token_cap < cap):
            edits["max_tokens"] = b"%d" % token_cap
        return edits

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none or the bytes are no answer."""
        try:
            usage = _USAGE.decode(body).usage
        except JsonError:
            return None
        return usage.read() if usage is not None else None

    def read_answer(self, body: bytes, decoded: Mapping[str, Any] | None = None) -> Answer:
        """A complete answer in the words of chat; an empty one when the bytes are none."""
        try:
            answer = _ANSWER.decode(body) if decoded is None else msgspec.convert(decoded, _Answer)
        except JsonError:
            return Answer(usage=self.read_usage(body))
        blocks = answer.content or ()
        text = "".join([block.text for block in blocks if block.type == "text"])
        return Answer(
            text=text,
            reasoning="".join([block.thinking for block in blocks if block.type == "thinking"]),
            refusal=_refusal(answer, text) if answer.stop_reason == "refusal" else "",
            tool_calls=tuple(_tool_call(block) for block in blocks if block.type == "tool_use"),
            finish_reason=finish_reason(answer.stop_reason),
            usage=answer.usage.read() if answer.usage is not None else None,
            model=answer.model,
            id=answer.id,
        )

    def stream(self, *, hide_usage: bool, operation: str = "messages") -> StreamReader:
        """A reader for one stream. Usage is always part of the dialect, so nothing is hidden."""
        return MessageReader(self.classify)

    def deltas(self, *, operation: str = "messages") -> DeltaReader:
        """What the events of one stream add to the answer."""
        return Deltas(message_delta)

    def observe(self, headers: Mapping[str, str]) -> list[Observation]:
        """`anthropic-ratelimit-*`: token buckets, resets in RFC 3339."""
        found = super().observe(headers)
        if len(found) == 1 and found[0].name == "rpm":
            found += rate_headers.observe(_TIGHTEST, headers, now_us=int(self._now() * 1e6))
        return found

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


def _tool_call(block: _Block) -> dict[str, Any]:
    """A tool use in the shape of chat; its input becomes JSON text."""
    function = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _refusal(answer: _Answer, text: str) -> str:
    explained = answer.stop_details.explanation if answer.stop_details else None
    return explained or text or "the model declined to answer"


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
