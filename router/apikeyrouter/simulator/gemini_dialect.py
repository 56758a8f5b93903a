"""The Gemini dialect: answers, streams of events or one growing array, embeddings, counts, and the model list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from apikeyrouter.simulator import gemini_errors
from apikeyrouter.simulator.calls import Call, Context, Frame, Reply, encode, make_id
from apikeyrouter.simulator.config import DialectName
from apikeyrouter.simulator.gemini_requests import PATH, parse_gemini
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.organisations import Denial, Organisation
from apikeyrouter.simulator.tokens import slices

__all__ = ["GeminiDialect"]

EMBEDDING_DIMENSIONS = 8
_STOPS = {"end": "STOP", "length": "MAX_TOKENS", "tool": "STOP", "filter": "SAFETY"}


class GeminiDialect:
    """See :class:`apikeyrouter.simulator.calls.Dialect`."""

    name: DialectName = "gemini"
    paths: frozenset[str] = frozenset()
    models_path = "/v1beta/models"

    def serves(self, path: str) -> bool:
        """See :meth:`Dialect.serves`."""
        return PATH.fullmatch(path) is not None

    def key_material(self, request: Request) -> str | None:
        """``x-goog-api-key``, or ``?key=``."""
        return request.header(b"x-goog-api-key") or parse_qs(request.query).get("key", [None])[0]

    def parse(self, request: Request) -> Call:
        """See :meth:`Dialect.parse`."""
        return parse_gemini(request)

    def charge_tokens(self, call: Call, organisation: Organisation) -> tuple[int, int]:
        """The input: Gemini's tokens per minute are input tokens."""
        return call.input_tokens, call.input_tokens

    # --- answers
    def body(self, call: Call, context: Context) -> bytes:
        """See :meth:`Dialect.body`."""
        if call.endpoint == "count_tokens":
            return encode({"totalTokens": call.input_tokens})
        if call.endpoint == "embeddings":
            return _embeddings(call)
        parts = _parts(call)
        candidates = [_candidate(index, parts, _STOPS[call.stop]) for index in range(call.choices)]
        return encode(_answer(call, context, candidates, produced=call.output_tokens))

    def frames(self, call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
        """See :meth:`Dialect.frames`; each chunk has the usage so far, the last one the finish reason."""
        chunks = self._chunks(call, context, tokens_per_chunk=tokens_per_chunk)
        for number, (chunk, tokens, content) in enumerate(chunks):
            data = encode(chunk)
            if call.style == "sse":
                yield Frame(b"data: %b\r\n\r\n" % data, tokens, content)
            else:
                yield Frame((b"[" if number == 0 else b",\r\n") + data, tokens, content)
        if call.style == "array":
            yield Frame(b"\n]\n", call.usage.output)

    def _chunks(
        self, call: Call, context: Context, *, tokens_per_chunk: int
    ) -> Iterator[tuple[dict[str, Any], int, bool]]:
        thoughts = call.thoughts
        if thoughts:
            parts = [{"text": "Thinking about it.", "thought": True}]
            yield _answer(call, context, [_candidate(0, parts)], produced=0), thoughts, False
        if call.tool is None:
            for index in range(call.choices):
                before = index * call.output_per_choice
                for text, tokens in slices(call.text, tokens_per_slice=tokens_per_chunk):
                    chunk = [_candidate(index, [{"text": text}])]
                    produced = before + tokens
                    yield _answer(call, context, chunk, produced=produced), thoughts + produced, True
        last = [
            _candidate(index, _parts(call) if call.tool is not None else [{"text": ""}], _STOPS[call.stop])
            for index in range(call.choices)
        ]
        yield _answer(call, context, last, produced=call.output_tokens), call.usage.output, call.tool is not None

    def error_frame(self, call: Call, context: Context) -> bytes:
        """A chunk with ``error``."""
        body = encode(gemini_errors.error_body(503, "UNAVAILABLE", "The model is overloaded. Please try again later."))
        return b"data: %b\r\n\r\n" % body if call.style == "sse" else b",\r\n" + body

    # --- headers and errors
    def headers(self, context: Context, *, processing_ms: int) -> str:
        """Gemini tells no limits."""
        return f"server-timing: gfet4t7; dur={processing_ms}\r\nvary: X-Origin\r\n"

    def denial(self, denial: Denial, context: Context) -> Reply:
        """See :meth:`Dialect.denial`."""
        return gemini_errors.denial_reply(denial, context)

    def invalid(self, message: str, context: Context) -> Reply:
        """See :meth:`Dialect.invalid`."""
        return Reply(400, encode(gemini_errors.error_body(400, "INVALID_ARGUMENT", message)))

    def failure(self, name: str, context: Context, *, seconds: float | None) -> Reply | None:
        """See :meth:`Dialect.failure`."""
        return gemini_errors.failure_reply(name, context, seconds=seconds)

    def models(self, organisation: Organisation, model_id: str | None, context: Context) -> Reply:
        """``GET /v1beta/models`` and ``/v1beta/models/{id}``."""
        served = organisation.config.models or organisation.priced_models
        cards = [
            {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": ["generateContent"]}
            for name in served
        ]
        if model_id is None:
            return Reply(200, encode({"models": cards}))
        for card in cards:
            if card["name"] == f"models/{model_id}":
                return Reply(200, encode(card))
        context.model = model_id
        missing = gemini_errors.failure_reply("gemini_not_found", context, seconds=None)
        assert missing is not None
        return missing


def _parts(call: Call) -> list[dict[str, Any]]:
    if call.tool is None:
        return [{"text": call.text}]
    arguments = json.loads(call.text) if call.stop == "tool" else {}
    return [{"functionCall": {"name": call.tool.name, "args": arguments}}]


def _candidate(index: int, parts: list[dict[str, Any]], finish: str | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": index}
    if finish is not None:
        made["finishReason"] = finish
    return made


def _answer(call: Call, context: Context, candidates: list[dict[str, Any]], *, produced: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "promptTokenCount": call.usage.input,
        "candidatesTokenCount": produced,
        "totalTokenCount": call.usage.input + call.thoughts + produced,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": call.usage.input}],
    }
    if call.thoughts:
        usage["thoughtsTokenCount"] = call.thoughts
    if call.usage.cached:
        usage["cachedContentTokenCount"] = call.usage.cached
    return {
        "candidates": candidates,
        "usageMetadata": usage,
        "modelVersion": call.model,
        "responseId": make_id("resp-", context.serial),
    }


def _embeddings(call: Call) -> bytes:
    salt = len(call.markers.text) * 31
    values = [((salt + at * 17) % 200 - 100) / 100 for at in range(EMBEDDING_DIMENSIONS)]
    usage = {"promptTokenCount": call.usage.input}
    if call.style == "batch":
        return encode({"embeddings": [{"values": values}] * call.choices, "usageMetadata": usage})
    return encode({"embedding": {"values": values}, "usageMetadata": usage})
