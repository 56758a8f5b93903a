"""The Anthropic dialect: messages, their event stream, headers and the model list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from apikeyrouter.simulator import anthropic_errors
from apikeyrouter.simulator.anthropic_requests import parse_messages
from apikeyrouter.simulator.calls import Call, Context, Frame, Reply, encode, make_id
from apikeyrouter.simulator.config import DialectName
from apikeyrouter.simulator.formats import rfc3339
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.meters import Meter
from apikeyrouter.simulator.organisations import Denial, Organisation
from apikeyrouter.simulator.tokens import slices

__all__ = ["AnthropicDialect"]

MODEL_CREATED = "2026-01-01T00:00:00Z"
_STOPS = {"end": "end_turn", "length": "max_tokens", "tool": "tool_use", "filter": "refusal"}
_HEADER_METRICS = (("requests", "requests"), ("input_tokens", "input-tokens"), ("output_tokens", "output-tokens"))


class AnthropicDialect:
    """See :class:`apikeyrouter.simulator.calls.Dialect`."""

    name: DialectName = "anthropic"
    paths = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
    models_path = "/v1/models"

    def serves(self, path: str) -> bool:
        """See :meth:`Dialect.serves`."""
        return path in self.paths

    def key_material(self, request: Request) -> str | None:
        """``x-api-key``, or else the bearer token."""
        material = request.header(b"x-api-key")
        if material:
            return material
        scheme, _, token = (request.header(b"authorization") or "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def parse(self, request: Request) -> Call:
        """See :meth:`Dialect.parse`."""
        return parse_messages(request)

    def charge_tokens(self, call: Call, organisation: Organisation) -> tuple[int, int]:
        """Input without cache reads; ``max_tokens`` is free, output is counted as it is produced."""
        uncached = call.usage.input - call.usage.cached
        return uncached, uncached

    # --- answers
    def body(self, call: Call, context: Context) -> bytes:
        """The message, or the token count."""
        if call.endpoint == "count_tokens":
            return encode({"input_tokens": call.input_tokens})
        return encode(_message(call, context, content=[_block(call, context)], done=True))

    def frames(self, call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
        """message_start, block start, ping, deltas, block stop, message_delta (cumulative usage), message_stop."""
        start = _message(call, context, content=[], done=False)
        yield Frame(_event("message_start", {"message": start}), 0)
        empty = {"type": "text", "text": ""}
        block = empty if call.tool is None else {**_block(call, context), "input": {}}
        yield Frame(_event("content_block_start", {"index": 0, "content_block": block}), 0)
        yield Frame(_event("ping", {}), 0)
        yield from _deltas(call, tokens_per_chunk=tokens_per_chunk)
        produced = call.output_tokens
        yield Frame(_event("content_block_stop", {"index": 0}), produced)
        delta = {"stop_reason": _STOPS[call.stop], "stop_sequence": None}
        usage = {
            "input_tokens": call.usage.input - call.usage.cached - call.usage.cache_write,
            "cache_creation_input_tokens": call.usage.cache_write,
            "cache_read_input_tokens": call.usage.cached,
            "output_tokens": call.usage.output,
        }
        yield Frame(_event("message_delta", {"delta": delta, "usage": usage}), produced)
        yield Frame(_event("message_stop", {}), produced)

    def error_frame(self, call: Call, context: Context) -> bytes:
        """``event: error`` with ``overloaded_error``."""
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return _event("error", {"error": error, "request_id": context.request_id})

    # --- headers and errors
    def headers(self, context: Context, *, processing_ms: int) -> str:
        """Identity and limits; tokens left are rounded to thousands, ``reset`` is RFC 3339."""
        lines = f"request-id: {context.request_id}\r\n"
        key, organisation = context.key, context.organisation
        if key is None or organisation is None:
            return lines
        lines += f"anthropic-organization-id: {organisation.id}\r\n"
        if organisation.config.workspace:
            lines += f"anthropic-workspace-id: {organisation.config.workspace}\r\n"
        tokens: list[Meter] = []
        for meter in key.meters_for(context.model).timed:
            name = dict(_HEADER_METRICS).get(meter.metric)
            if meter.metric != "requests" and meter.metric != "spend":
                tokens.append(meter)
            if name is not None:
                lines += _limit_lines(name, meter, context.now_ns)
        if tokens:
            restrictive = min(tokens, key=lambda meter: meter.limit.remaining(context.now_ns))
            lines += _limit_lines("tokens", restrictive, context.now_ns)
        return lines

    def denial(self, denial: Denial, context: Context) -> Reply:
        """See :meth:`Dialect.denial`."""
        return anthropic_errors.denial_reply(denial, context)

    def invalid(self, message: str, context: Context) -> Reply:
        """See :meth:`Dialect.invalid`."""
        return anthropic_errors.error_reply(
            400, type_="invalid_request_error", message=message, request_id=context.request_id
        )

    def failure(self, name: str, context: Context, *, seconds: float | None) -> Reply | None:
        """See :meth:`Dialect.failure`."""
        return anthropic_errors.failure_reply(name, context, seconds=seconds)

    def models(self, organisation: Organisation, model_id: str | None, context: Context) -> Reply:
        """``GET /v1/models`` and ``/v1/models/{id}``, in Anthropic's shape."""
        served = organisation.config.models or organisation.priced_models
        cards = [{"type": "model", "id": name, "display_name": name, "created_at": MODEL_CREATED} for name in served]
        if model_id is None:
            ends = {"first_id": served[0], "last_id": served[-1]} if served else {"first_id": None, "last_id": None}
            return Reply(200, encode({"data": cards, "has_more": False, **ends}))
        for card in cards:
            if card["id"] == model_id:
                return Reply(200, encode(card))
        missing = anthropic_errors.failure_reply("not_found_error", replace(context, model=model_id), seconds=None)
        assert missing is not None
        return missing


def _limit_lines(name: str, meter: Meter, now_ns: int) -> str:
    remaining = meter.limit.remaining(now_ns)
    if name != "requests":
        remaining = (remaining + 500) // 1_000 * 1_000
    reset = rfc3339(now_ns + meter.limit.replenished_in_ns(now_ns))
    stem = f"anthropic-ratelimit-{name}"
    return f"{stem}-limit: {meter.amount}\r\n{stem}-remaining: {remaining}\r\n{stem}-reset: {reset}\r\n"


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **data}) + b" " * 4)


def _block(call: Call, context: Context) -> dict[str, Any]:
    if call.tool is None:
        return {"type": "text", "text": call.text}
    arguments = json.loads(call.text) if call.stop == "tool" else {}
    return {"type": "tool_use", "id": make_id("toolu_", context.serial), "name": call.tool.name, "input": arguments}


def _message(call: Call, context: Context, *, content: list[dict[str, Any]], done: bool) -> dict[str, Any]:
    usage = call.usage
    return {
        "id": make_id("msg_", context.serial),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": _STOPS[call.stop] if done else None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input - usage.cached - usage.cache_write,
            "cache_creation_input_tokens": usage.cache_write,
            "cache_read_input_tokens": usage.cached,
            "cache_creation": {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0},
            "output_tokens": usage.output if done else 1,
            "service_tier": "standard",
        },
    }


def _deltas(call: Call, *, tokens_per_chunk: int) -> Iterator[Frame]:
    hole = "\x00"
    delta = {"type": "text_delta", "text": hole}
    if call.tool is not None:
        delta = {"type": "input_json_delta", "partial_json": hole}
    before, after = _event("content_block_delta", {"index": 0, "delta": delta}).split(encode(hole))
    for text, tokens in slices(call.text, tokens_per_slice=tokens_per_chunk):
        yield Frame(before + encode(text) + after, tokens, content=True)
