"""Gemini's dialect: generateContent, streamGenerateContent, embedContent and countTokens, in bytes. The model and the
method stand in the path. Facts: `providers.md` §1–3 and §5.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from apikeyrouter.domain.interfaces.wire import Answer, DeltaReader, ParsedRequest, StreamReader
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters import gemini_stream
from apikeyrouter.infrastructure.adapters.base_wire import BaseWire, parsed_request
from apikeyrouter.infrastructure.adapters.failure_table import GEMINI_TABLE
from apikeyrouter.infrastructure.adapters.forwarding import FORWARDED
from apikeyrouter.infrastructure.adapters.gemini_content import measure_embedding, measure_generate
from apikeyrouter.infrastructure.adapters.json_array import EitherFrames
from apikeyrouter.infrastructure.adapters.json_body import decode, read_members, said_once
from apikeyrouter.infrastructure.adapters.stream_deltas import Deltas

__all__ = ["BASE_URL", "GeminiWire"]

BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
_VERSIONED = re.compile(r"/v\d+(?:alpha|beta)?$")
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}


class _Generation(msgspec.Struct, gc=False):
    """What decides the size of an answer; camelCase, or snake_case as the API takes it too."""

    cap: int | None = msgspec.field(name="maxOutputTokens", default=None)
    cap_snake: int | None = msgspec.field(name="max_output_tokens", default=None)
    choices: int | None = msgspec.field(name="candidateCount", default=None)
    choices_snake: int | None = msgspec.field(name="candidate_count", default=None)


_GENERATION = msgspec.json.Decoder(_Generation | None)
_CONFIG_NAMES = ("generationConfig", "generation_config")


class GeminiWire(BaseWire):
    """The Gemini API. Implements the `Wire` port.

    Args:
        base_url: with or without its version; absent: GOOGLE_GEMINI_BASE_URL, then Google's own.
        now: Unix seconds, for dates in answers.
    """

    dialect = "gemini"
    rows = GEMINI_TABLE
    paths: ClassVar[Mapping[str, str]] = {
        "generate": ":generateContent",
        "stream_generate": ":streamGenerateContent",
        "stream_events": ":streamGenerateContent?alt=sse",
        "embedding": ":embedContent",
        "count_tokens": ":countTokens",
    }
    forwards = FORWARDED - {"openai-beta", "anthropic-beta", "anthropic-version"}

    def __init__(self, base_url: str | None = None, *, now: Callable[[], float] = time.time) -> None:
        address = (base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL") or BASE_URL).rstrip("/")
        super().__init__(address if _VERSIONED.search(address) else address + "/v1beta", "gemini", now=now)
        self._places: dict[tuple[str, str], str] = {}

    def parse(self, body: bytes, *, operation: str = "generate", model: str = "") -> ParsedRequest:
        """Read a client's body once; `model` comes from the path. Raises InvalidRequestError that names the field."""
        fields = self._members(body, operation)
        if not model:
            raise InvalidRequestError("is required", field="model")
        if operation == "embedding":
            size, generation = measure_embedding(fields), None
        else:
            counted = _counted(fields) if operation == "count_tokens" else fields
            size, generation = measure_generate(counted), _generation(fields)
        cap = None if generation is None else _either(generation.cap, generation.cap_snake)
        choices = None if generation is None else _either(generation.choices, generation.choices_snake)
        return parsed_request(
            body,
            fields,
            size,
            model=model.removeprefix("models/"),
            stream=operation in STREAMING,
            output_cap=0 if operation in ("embedding", "count_tokens") else cap,
            choices=choices or 1,
        )

    def credentials(self, key: str) -> tuple[tuple[str, str], ...]:
        """`x-goog-api-key`; never `?key=`, which ends in logs."""
        return (("x-goog-api-key", f"{key}"),)

    def _url(self, parsed: ParsedRequest, operation: str, model: str) -> str:
        if operation == "embedding" and "requests" in parsed.fields:
            operation = "batch_embedding"
        known = self._places.get((operation, model))
        if known is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            known = self._places[operation, model] = self._place(operation, model)
        return known

    def _place(self, operation: str, model: str) -> str:
        method = ":batchEmbedContents" if operation == "batch_embedding" else self.paths[operation]
        name = quote(model, safe="/") if "/" in model else "models/" + quote(model, safe="")
        return f"{self.base_url}/{name}{method}"

    def _edits(
        self, parsed: ParsedRequest, operation: str, model: str, token_cap: int | None
    ) -> dict[str, bytes | None]:
        edits: dict[str, bytes | None] = {}
        if token_cap is not None and operation in ("generate", *STREAMING):
            cap = parsed.max_output_tokens
            if cap is None or token_cap < cap:
                _cap(edits, parsed.fields, token_cap)
        if model != parsed.model:
            _rename(edits, parsed.fields, model)
        return edits

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none or the bytes are no answer."""
        return gemini_stream.read_usage(body)

    def read_answer(self, body: bytes, decoded: Mapping[str, Any] | None = None) -> Answer:
        """A complete answer in the words of chat; an empty one when the bytes are none."""
        return gemini_stream.read_answer(body, decoded)

    def stream(self, *, hide_usage: bool, operation: str = "stream_generate") -> StreamReader:
        """A reader for one stream, in either framing. Usage is always part of the dialect, so nothing is hidden."""
        return gemini_stream.GenerateReader(self.classify)

    def deltas(self, *, operation: str = "stream_generate") -> DeltaReader:
        """What the events of one stream add to the answer."""
        return Deltas(gemini_stream.generate_delta, EitherFrames())

    def organization(self, headers: Mapping[str, str]) -> str | None:
        """Gemini's answers name no project."""
        return None

    def error_body(self, *, status: int, type: str, code: str, message: str, request_id: str) -> bytes:
        """`{"error": {code, message, status, details}}`, with our code as the reason of an ErrorInfo."""
        name = _STATUSES.get(status) or ("INVALID_ARGUMENT" if 400 <= status < 500 else "INTERNAL")
        details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code.upper(), "domain": "router"}]
        error = {"code": status, "message": message, "status": name, "details": details if code else []}
        return msgspec.json.encode({"error": error})

    def error_event(
        self,
        *,
        type: str,
        code: str,
        message: str,
        request_id: str,
        operation: str = "stream_events",
        status: int = 500,
    ) -> bytes:
        """An error inside a stream: a chunk with `error`, which the SDK raises (§3.2); in an array its last member."""
        body = self.error_body(status=status, type=type, code=code, message=message, request_id=request_id)
        return b",\r\n" + body + b"]" if operation == "stream_generate" else b"data: " + body + b"\r\n\r\n"


STREAMING = ("stream_generate", "stream_events")
"""As a client asks for it (a JSON array, unless its query says `alt=sse`), and as we do."""
PLACES_MAX = 512
"""URLs remembered; anybody may ask for models that nobody has heard of."""


def _either(first: int | None, second: int | None) -> int | None:
    if first is not None and second is not None:
        raise InvalidRequestError("says the same in two spellings", field="generationConfig")
    value = second if first is None else first
    if value is not None and value < 0:
        raise InvalidRequestError("must not be negative", field="generationConfig")
    return value


def _generation(fields: dict[str, bytes]) -> _Generation | None:
    """The caps of a request. What says them is made to say each once: the provider shall read no other than we did."""
    names = [name for name in _CONFIG_NAMES if name in fields]
    if not names:
        return None
    if len(names) > 1:
        raise InvalidRequestError("is given in two spellings", field="generationConfig")
    raw = fields[names[0]] = said_once(fields[names[0]])
    found: _Generation | None = decode(_GENERATION, raw, "generationConfig")
    return found


def _counted(fields: dict[str, bytes]) -> dict[str, bytes]:
    """What is to be counted: `contents`, or a whole request inside."""
    inner = fields.get("generateContentRequest") or fields.get("generate_content_request")
    return fields if inner is None else read_members(bytes(inner))


def _cap(edits: dict[str, bytes | None], fields: Mapping[str, bytes], token_cap: int) -> None:
    """Lower the cap where it stands, the rest of the configuration as it came."""
    name = next((name for name in _CONFIG_NAMES if name in fields), _CONFIG_NAMES[0])
    raw = fields.get(name)
    members = {} if raw is None or bytes(raw) == b"null" else read_members(bytes(raw))
    members.pop("max_output_tokens", None)
    members["maxOutputTokens"] = msgspec.Raw(b"%d" % token_cap)
    edits[name] = msgspec.json.encode(members)


def _rename(edits: dict[str, bytes | None], fields: Mapping[str, bytes], model: str) -> None:
    """Some requests name their model inside as well."""
    name = msgspec.Raw(msgspec.json.encode(f"models/{model.removeprefix('models/')}"))
    if "model" in fields:
        edits["model"] = name
    if "requests" in fields:
        requests = [read_members(bytes(raw)) for raw in msgspec.json.decode(fields["requests"], type=list[msgspec.Raw])]
        edits["requests"] = msgspec.json.encode([{**request, "model": name} for request in requests])
    counted = fields.get("generateContentRequest")
    if counted is not None:
        edits["generateContentRequest"] = msgspec.json.encode({**read_members(bytes(counted)), "model": name})
