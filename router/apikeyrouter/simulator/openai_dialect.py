"""The OpenAI dialect: answers, streams, headers and the model list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from apikeyrouter.simulator import openai_errors, openai_passed, openai_responses
from apikeyrouter.simulator.calls import WITHOUT_OUTPUT, Call, Context, Frame, InvalidRequest, Reply, encode, make_id
from apikeyrouter.simulator.clock import NS_PER_SECOND
from apikeyrouter.simulator.config import DialectName
from apikeyrouter.simulator.formats import go_duration
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.meters import Meter
from apikeyrouter.simulator.openai_requests import parse_chat, parse_completion, parse_embeddings, parse_response
from apikeyrouter.simulator.organisations import Denial, Organisation
from apikeyrouter.simulator.tokens import slices

__all__ = ["ALL_ENDPOINTS", "OpenAIDialect", "event", "tightest"]

EMBEDDING_DIMENSIONS = 8
MODEL_CREATED = 1_700_000_000
_DONE = b"data: [DONE]\n\n"
_STOPS = {"end": "stop", "length": "length", "tool": "tool_calls", "filter": "content_filter"}
ALL_ENDPOINTS: Mapping[str, Callable[[bytes], Call]] = {
    "/chat/completions": parse_chat,
    "/completions": parse_completion,
    "/embeddings": parse_embeddings,
    "/responses": parse_response,
    **openai_passed.PASSED_ENDPOINTS,
}


class OpenAIDialect:
    """See :class:`apikeyrouter.simulator.calls.Dialect`; other servers that speak it are subclasses."""

    name: DialectName = "openai"
    prefix = "/v1"
    endpoints = ALL_ENDPOINTS

    def __init__(self) -> None:
        self._parsers = {self.prefix + path: parse for path, parse in self.endpoints.items()}
        self.paths = frozenset(self._parsers)
        self.models_path = self.prefix + "/models"

    def serves(self, path: str) -> bool:
        """See :meth:`Dialect.serves`."""
        return path in self.paths

    def key_material(self, request: Request) -> str | None:
        """The bearer token."""
        scheme, _, token = (request.header(b"authorization") or "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def parse(self, request: Request) -> Call:
        """See :meth:`Dialect.parse`; also refuses a client request id above 512 ASCII characters."""
        client_id = request.headers.get(b"x-client-request-id")
        if client_id is not None and (len(client_id) > 512 or not client_id.isascii()):
            raise InvalidRequest("X-Client-Request-Id must be at most 512 ASCII characters.")
        return self._parsers[request.path](request.body)

    def charge_tokens(self, call: Call, organisation: Organisation) -> tuple[int, int]:
        """Input plus the cap (or what will be produced, without one) of each choice; or the larger of the two."""
        per_choice = call.output_per_choice if call.cap is None else call.cap
        output = 0 if call.endpoint in WITHOUT_OUTPUT else per_choice * call.choices
        if organisation.config.charge_formula == "max":
            return max(call.input_tokens, output), call.input_tokens
        return call.input_tokens + output, call.input_tokens

    # --- answers
    def body(self, call: Call, context: Context) -> bytes:
        """See :meth:`Dialect.body`."""
        if call.endpoint == "responses":
            return openai_responses.body(call, context)
        if call.endpoint == "embeddings":
            return _embeddings_body(call, self.embedding_usage(call, context))
        if call.endpoint in openai_passed.PASSED_KINDS:
            return openai_passed.body(call, context)
        return encode(
            {
                **_envelope(call, context, "chat.completion" if call.endpoint == "chat" else "text_completion"),
                "choices": [_choice(call, context, index) for index in range(call.choices)],
                "usage": self.usage(call, context),
            }
        )

    def frames(self, call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
        """See :meth:`Dialect.frames`; ``usage`` is null on all chunks but the last when usage is asked for."""
        if call.endpoint == "responses":
            yield from openai_responses.frames(call, context, tokens_per_chunk=tokens_per_chunk)
            return
        if call.endpoint in openai_passed.PASSED_KINDS:
            yield from openai_passed.frames(call, tokens_per_chunk=tokens_per_chunk)
            return
        envelope = _envelope(call, context, "chat.completion.chunk" if call.endpoint == "chat" else "text_completion")
        if call.include_usage and self.shows_null_usage:
            envelope["usage"] = None
        yield from self.opening(envelope)
        if call.endpoint == "chat":
            for index in range(call.choices):
                yield Frame(event({**envelope, "choices": [_first_delta(call, context, index)]}), 0)
        yield from _deltas(call, envelope, tokens_per_chunk=tokens_per_chunk)
        for index in range(call.choices):
            last = {**envelope, "choices": [_last_delta(call, index)]}
            if index == call.choices - 1:
                last.update(self.with_the_last(call, context))
            yield Frame(event(last), call.output_tokens)
        if call.include_usage and self.has_usage_chunk:
            yield Frame(event({**envelope, "choices": [], "usage": self.usage(call, context)}), call.output_tokens)
        yield Frame(_DONE, call.output_tokens)

    # --- what varies from server to server
    shows_null_usage = True
    """Whether chunks say ``usage: null`` when usage was asked for."""
    has_usage_chunk = True
    """Whether usage comes in a chunk of its own when it was asked for."""

    def usage(self, call: Call, context: Context) -> dict[str, Any]:
        """The usage member."""
        return _usage(call)

    def embedding_usage(self, call: Call, context: Context) -> dict[str, Any]:
        """The same of embeddings."""
        return {"prompt_tokens": call.usage.input, "total_tokens": call.usage.input}

    def opening(self, envelope: dict[str, Any]) -> Iterator[Frame]:
        """What comes before the first chunk."""
        return iter(())

    def with_the_last(self, call: Call, context: Context) -> dict[str, Any]:
        """Members of the chunk with the finish reason."""
        return {}

    def error_frame(self, call: Call, context: Context) -> bytes:
        """``data: {"error": …}`` in chat streams, ``event: error`` in Responses streams."""
        if call.endpoint == "responses":
            return openai_responses.error_event()
        message = "The server had an error while processing your request. Sorry about that!"
        error = {"message": message, "type": "server_error", "param": None, "code": "server_error"}
        return event({"error": error})

    # --- headers and errors
    def headers(self, context: Context, *, processing_ms: int) -> str:
        """Identity and the most restrictive request and token limits; ``reset`` is a Go duration."""
        lines = f"x-request-id: {context.request_id}\r\nopenai-version: 2020-10-01\r\n"
        key, organisation = context.key, context.organisation
        if key is None or organisation is None:
            return lines
        lines += f"openai-organization: {organisation.id}\r\nopenai-processing-ms: {processing_ms}\r\n"
        if organisation.config.project:
            lines += f"openai-project: {organisation.config.project}\r\n"
        for metric in ("requests", "tokens"):
            meter = tightest(key.meters_for(context.model).timed, metric, context.now_ns)
            if meter is not None:
                lines += (
                    f"x-ratelimit-limit-{metric}: {meter.amount}\r\n"
                    f"x-ratelimit-remaining-{metric}: {meter.limit.remaining(context.now_ns)}\r\n"
                    f"x-ratelimit-reset-{metric}: {go_duration(meter.limit.replenished_in_ns(context.now_ns))}\r\n"
                )
        return lines

    def denial(self, denial: Denial, context: Context) -> Reply:
        """See :meth:`Dialect.denial`."""
        return openai_errors.denial_reply(denial, context)

    def invalid(self, message: str, context: Context) -> Reply:
        """See :meth:`Dialect.invalid`."""
        return openai_errors.error_reply(400, type_="invalid_request_error", message=message)

    def failure(self, name: str, context: Context, *, seconds: float | None) -> Reply | None:
        """See :meth:`Dialect.failure`."""
        return openai_errors.failure_reply(name, context, seconds=seconds)

    def models(self, organisation: Organisation, model_id: str | None, context: Context) -> Reply:
        """``GET …/models`` and ``…/models/{id}``."""
        served = organisation.config.models or organisation.priced_models
        cards = [{"id": name, "object": "model", "created": MODEL_CREATED, "owned_by": self.name} for name in served]
        if model_id is None:
            return Reply(200, encode({"object": "list", "data": cards}))
        for card in cards:
            if card["id"] == model_id:
                return Reply(200, encode(card))
        missing = self.failure("model_not_found", replace(context, model=model_id), seconds=None)
        assert missing is not None
        return missing


def tightest(meters: tuple[Meter, ...], metric: str, now_ns: int) -> Meter | None:
    """The limit over ``metric`` with the least left, or None."""
    best: Meter | None = None
    for meter in meters:
        if meter.metric == metric and (best is None or meter.limit.remaining(now_ns) < best.limit.remaining(now_ns)):
            best = meter
    return best


def event(data: dict[str, Any]) -> bytes:
    """One event, framed."""
    return b"data: %b\n\n" % encode(data)


def _envelope(call: Call, context: Context, kind: str) -> dict[str, Any]:
    return {
        "id": make_id("chatcmpl-" if call.endpoint == "chat" else "cmpl-", context.serial),
        "object": kind,
        "created": context.now_ns // NS_PER_SECOND,
        "model": call.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulator",
    }


def _usage(call: Call) -> dict[str, Any]:
    return {
        "prompt_tokens": call.usage.input,
        "completion_tokens": call.usage.output,
        "total_tokens": call.usage.input + call.usage.output,
        "prompt_tokens_details": {"cached_tokens": call.usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tool_id(context: Context, index: int) -> str:
    return make_id("call_", context.serial * 128 + index)


def _choice(call: Call, context: Context, index: int) -> dict[str, Any]:
    stop = _STOPS[call.stop]
    if call.endpoint == "completions":
        return {"index": index, "text": call.text, "logprobs": None, "finish_reason": stop}
    message: dict[str, Any] = {"role": "assistant", "content": call.text, "refusal": None, "annotations": []}
    if call.tool is not None:
        function = {"name": call.tool.name, "arguments": call.text}
        message["content"] = None
        message["tool_calls"] = [{"id": _tool_id(context, index), "type": "function", "function": function}]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": stop}


def _first_delta(call: Call, context: Context, index: int) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if call.tool is not None:
        function = {"name": call.tool.name, "arguments": ""}
        tool = {"index": 0, "id": _tool_id(context, index), "type": "function", "function": function}
        delta = {"role": "assistant", "content": None, "tool_calls": [tool]}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _last_delta(call: Call, index: int) -> dict[str, Any]:
    stop = _STOPS[call.stop]
    if call.endpoint == "completions":
        return {"index": index, "text": "", "logprobs": None, "finish_reason": stop}
    return {"index": index, "delta": {}, "logprobs": None, "finish_reason": stop}


def _deltas(call: Call, envelope: dict[str, Any], *, tokens_per_chunk: int) -> Iterator[Frame]:
    """The content, choice by choice in turn; everything but the text is encoded once per choice."""
    frames_of = [
        _choice_deltas(call, envelope, index, tokens_per_chunk=tokens_per_chunk) for index in range(call.choices)
    ]
    produced = [0] * call.choices
    for turn in zip_longest(*frames_of):
        for index, item in enumerate(turn):
            if item is not None:
                produced[index] = item.tokens
                yield Frame(item.data, sum(produced), content=True)


def _choice_deltas(call: Call, envelope: dict[str, Any], index: int, *, tokens_per_chunk: int) -> Iterator[Frame]:
    hole = "\x00"
    choice: dict[str, Any] = {"index": index, "delta": {"content": hole}, "logprobs": None, "finish_reason": None}
    if call.endpoint == "completions":
        choice = {"index": index, "text": hole, "logprobs": None, "finish_reason": None}
    elif call.tool is not None:
        choice["delta"] = {"tool_calls": [{"index": 0, "function": {"arguments": hole}}]}
    before, after = event({**envelope, "choices": [choice], "obfuscation": "a1B2c3"}).split(encode(hole))
    for text, tokens in slices(call.text, tokens_per_slice=tokens_per_chunk):
        yield Frame(before + encode(text) + after, tokens)


def _embeddings_body(call: Call, usage: dict[str, Any]) -> bytes:
    salt = len(call.markers.text) * 31
    values = [((salt + at * 17) % 200 - 100) / 100 for at in range(EMBEDDING_DIMENSIONS)]
    data = [{"object": "embedding", "index": index, "embedding": values} for index in range(call.choices)]
    return encode({"object": "list", "data": data, "model": call.model, "usage": usage})
