"""Gemini's answers and streams. Each chunk of a stream is a whole answer's shape; usage on the last one wins, and no
event says that it is over: a finish reason does (`providers.md` §2.1, §3.1).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta, StreamStep
from apikeyrouter.domain.models.usage import MediaTokens, Usage
from apikeyrouter.domain.models.wire import Answer
from apikeyrouter.infrastructure.adapters.json_array import EitherFrames
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.sse import Event
from apikeyrouter.infrastructure.adapters.stream_failures import unreadable
from apikeyrouter.infrastructure.adapters.stream_reader import Classify, EventReader
from apikeyrouter.infrastructure.adapters.usage_reader import checked

__all__ = ["FINISH_REASONS", "GenerateReader", "generate_delta", "read_answer", "read_usage"]

FINISH_REASONS: Mapping[str, str] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        (
            "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION",
        ),
        "content_filter",
    ),
}  # fmt: skip
"""`finishReason` in the words of chat; others as they are, in lower case."""


class _Modality(msgspec.Struct, gc=False, rename="camel"):
    modality: str = ""
    token_count: int = 0


class GeminiUsage(msgspec.Struct, gc=False, rename="camel"):
    """`usageMetadata`: the prompt includes what was cached, the candidates exclude thoughts."""

    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    total_token_count: int | None = None
    prompt_tokens_details: list[_Modality] | None = None
    cache_tokens_details: list[_Modality] | None = None
    candidates_tokens_details: list[_Modality] | None = None

    def read(self) -> Usage | None:
        """As one Usage; None when the counts are absent or nonsense."""
        if self.prompt_token_count is None and self.candidates_token_count is None:
            return None
        thoughts = self.thoughts_token_count or 0
        prompt = (self.prompt_token_count or 0) + (self.tool_use_prompt_token_count or 0)
        output = (self.candidates_token_count or 0) + thoughts
        cached = self.cached_content_token_count or 0
        return checked(prompt, output, cached, 0, 0, thoughts, None, self._media())

    def _media(self) -> MediaTokens | None:
        read, cached, written = (
            {entry.modality: entry.token_count for entry in details or () if entry.modality not in ("", "TEXT")}
            for details in (self.prompt_tokens_details, self.cache_tokens_details, self.candidates_tokens_details)
        )
        if not (read or written):
            return None
        return MediaTokens(
            audio_input=read.get("AUDIO", 0),
            image_input=read.get("IMAGE", 0),
            video_input=read.get("VIDEO", 0),
            audio_cached=cached.get("AUDIO", 0),
            image_cached=cached.get("IMAGE", 0),
            audio_output=written.get("AUDIO", 0),
            image_output=written.get("IMAGE", 0),
            video_output=written.get("VIDEO", 0),
        )


class _FunctionCall(msgspec.Struct, gc=False):
    id: str = ""
    name: str = ""
    args: object = {}


class _Part(msgspec.Struct, gc=False, rename="camel"):
    text: str = ""
    thought: bool = False
    thought_signature: str | None = None
    function_call: _FunctionCall | None = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    index: int = 0
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class _Vector(msgspec.Struct, gc=False):
    values: list[float] = []


class _Chunk(msgspec.Struct, gc=False, rename="camel"):
    """A whole answer, or one chunk of a stream."""

    candidates: list[_Candidate] | None = None
    usage_metadata: GeminiUsage | None = None
    prompt_feedback: _Feedback | None = None
    model_version: str = ""
    response_id: str = ""
    error: object = None
    embedding: _Vector | None = None
    embeddings: list[_Vector] | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class GenerateReader(EventReader):
    """Reads one `streamGenerateContent`, as server-sent events or as a JSON array."""

    __slots__ = ("_calls", "_either")
    terminator = b""

    def __init__(self, classify: Classify) -> None:
        self._either = EitherFrames()
        super().__init__(classify, self._either)
        self._calls = False

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, _ = event
        if data is None:
            return raw if self._either.array is not None else b""  # the SDK takes no comments (§3.2)
        try:
            chunk = _CHUNK.decode(data)
        except msgspec.ValidationError:
            self._begun = True  # JSON of a shape we do not know: it may be part of the answer
            return self._without_comments(raw, data)
        except JsonError:
            step.failure = unreadable("an event is not JSON")
            return b""
        if chunk.error is not None:
            return self._fail(data, step)
        for candidate in chunk.candidates or ():
            self._read_candidate(candidate)
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            self.finish_reason = "content_filter"
            self._begun = True
        if chunk.usage_metadata is not None:
            self.usage = chunk.usage_metadata.read() or self.usage
        return self._without_comments(raw, data)

    def _without_comments(self, raw: bytes, data: bytes) -> bytes:
        """An event as the SDK takes it: nothing but data."""
        return raw if raw[:5] == b"data:" or self._either.array is not None else b"data: %b\r\n\r\n" % data

    def _read_candidate(self, candidate: _Candidate) -> None:
        for part in (candidate.content.parts if candidate.content else None) or ():
            size = len(part.text.encode("utf-8", "surrogatepass"))
            if part.function_call is not None:
                self._calls = True
                size += len(part.function_call.name) + len(msgspec.json.encode(part.function_call.args))
            self.output_bytes += size
            self._begun = True
        if candidate.finish_reason:
            self.finish_reason = _finish(candidate.finish_reason, calls=self._calls)
            self._begun = True

    def _supplied(self) -> bytes:
        array = self._either.array
        return b"]" if array is not None and not array.closed else b""

    def _last(self, out: bytes) -> bytes:
        return out if self._either.array is not None else super()._last(out)


def _finish(reason: str, *, calls: bool) -> str:
    word = FINISH_REASONS.get(reason, reason.lower())
    return "tool_calls" if calls and word == "stop" else word


def generate_delta(name: bytes, data: bytes) -> StreamDelta | None:
    """What one chunk adds to the first candidate; None when that is nothing."""
    try:
        chunk = _CHUNK.decode(data)
    except JsonError:
        return None
    if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
        return StreamDelta(refusal=_blocked(chunk.prompt_feedback), finish_reason="content_filter")
    candidate = next((candidate for candidate in chunk.candidates or () if candidate.index == 0), None)
    if candidate is None:
        return None
    parts = _parts(candidate)
    calls = _calls(parts, chunk.response_id)
    finish = _finish(candidate.finish_reason, calls=bool(calls)) if candidate.finish_reason else None
    text, reasoning = _texts(parts)
    if not (text or reasoning or calls or finish):
        return None
    return StreamDelta(text=text, reasoning=reasoning, tool_calls=calls, finish_reason=finish)


def read_usage(body: bytes) -> Usage | None:
    """Usage of a complete answer; None when it has none or the bytes are no answer."""
    try:
        counted = _CHUNK.decode(body).usage_metadata
    except JsonError:
        return None
    return counted.read() if counted is not None else None


def read_answer(body: bytes, decoded: Mapping[str, Any] | None = None) -> Answer:
    """A complete answer, its first candidate, in the words of chat; an empty one when the bytes are none.

    `decoded`: what the bytes say, if known.
    """
    try:
        answer = _CHUNK.decode(body) if decoded is None else msgspec.convert(decoded, _Chunk)
    except JsonError:
        return Answer()
    usage = answer.usage_metadata.read() if answer.usage_metadata is not None else None
    model, id_ = answer.model_version, answer.response_id
    if not answer.candidates:
        vectors = [answer.embedding] if answer.embedding is not None else answer.embeddings or []
        blocked = answer.prompt_feedback if answer.prompt_feedback and answer.prompt_feedback.block_reason else None
        return Answer(
            refusal=_blocked(blocked) if blocked else "",
            finish_reason="content_filter" if blocked else None,
            usage=usage,
            model=model,
            id=id_,
            embeddings=tuple(vector.values for vector in vectors),
        )
    candidate = answer.candidates[0]
    parts = _parts(candidate)
    calls = _calls(parts, id_)
    text, reasoning = _texts(parts)
    finish = _finish(candidate.finish_reason, calls=bool(calls)) if candidate.finish_reason else None
    return Answer(
        text=text,
        reasoning=reasoning,
        refusal=candidate.finish_message or "" if finish == "content_filter" else "",
        tool_calls=calls,
        finish_reason=finish,
        usage=usage,
        model=model,
        id=id_,
    )


def _parts(candidate: _Candidate) -> list[_Part]:
    return (candidate.content.parts if candidate.content else None) or []


def _texts(parts: list[_Part]) -> tuple[str, str]:
    """(text, reasoning) of the parts."""
    text = "".join([part.text for part in parts if not part.thought])
    return text, "".join([part.text for part in parts if part.thought])


def _blocked(feedback: _Feedback) -> str:
    return f"the prompt was blocked: {feedback.block_reason}"


def _calls(parts: list[_Part], answer_id: str) -> tuple[dict[str, Any], ...]:
    """Function calls in the shape of chat. A call without an id gets one; its signature goes where Google's own
    OpenAI-compatible endpoint puts it, so that it can come back."""
    found: list[dict[str, Any]] = []
    for part in parts:
        call = part.function_call
        if call is None:
            continue
        arguments = msgspec.json.encode(call.args).decode()
        made: dict[str, Any] = {
            "id": call.id or f"call_{answer_id or 'gemini'}_{call.name}_{len(found)}",
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }
        if part.thought_signature:
            made["extra_content"] = {"google": {"thought_signature": part.thought_signature}}
        found.append(made)
    return tuple(found)
