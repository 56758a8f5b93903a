"""OpenAI streams, read as they pass: chat and completions (`data:` only, `[DONE]`), and responses (named events).

Bytes pass untouched. An event is decoded only when a byte search says that it may carry usage, an error or a finish
reason, or while the answer has not begun. Inside a JSON string a quote is escaped, so `"usage"` never matches in text.
"""

import re
from collections.abc import Callable, Mapping

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta, StreamStep
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.sse import Event, EventTooLongError, SSEParser
from apikeyrouter.infrastructure.adapters.stream_failures import truncated, unreadable
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage

Classify = Callable[[int, Mapping[str, str], bytes], Failure]

_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


class Function(msgspec.Struct, gc=False):
    """The function part of a tool call."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """One tool call's delta."""

    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    """What a choice gains. Names of reasoning text: DeepSeek, vLLM (`reasoning_content`), OpenRouter (`reasoning`)."""

    content: str | list[msgspec.Raw] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk: chat has `delta`, legacy completions `text`."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _XGroq(msgspec.Struct, gc=False):
    usage: OpenAIUsage | None = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a chat stream. `error`: still encoded, absent in a good one."""

    choices: list[Choice] | None = None
    usage: OpenAIUsage | None = None
    error: msgspec.Raw = msgspec.Raw()
    service_tier: str | None = None
    x_groq: _XGroq | None = None


_CHUNK = msgspec.json.Decoder(Chunk)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TOOL_CALLS = msgspec.json.Decoder(list[ToolCall] | None)
_FUNCTION = msgspec.json.Decoder(Function | None)


class OpenAIStream:
    """Reads one chat or completion stream. Implements `StreamReader`."""

    __slots__ = ("_begun", "_classify", "_done", "_hide_usage", "_parser", "finish_reason", "output_bytes", "usage")

    def __init__(self, classify: Classify, *, hide_usage: bool) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_bytes = 0
        self._classify = classify
        self._hide_usage = hide_usage
        self._parser = SSEParser()
        self._begun = False
        self._done = False

    def feed(self, chunk: bytes) -> StreamStep:
        """Read bytes as they come, split anywhere. After `[DONE]` nothing more is passed on."""
        if self._begun and not self._done and self._parser.idle and _is_one_event(chunk) and self._is_plain(chunk):
            return StreamStep(out=_without_null_usage(chunk) if self._hide_usage else chunk, substantive=True)
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        try:
            events = self._parser.feed(chunk)
        except EventTooLongError as exc:
            step.failure = unreadable(str(exc))
            return step
        if len(events) == 1:
            step.out = self._read(events[0], step)
        elif events:
            step.out = self._read_all(events, step)
        step.substantive = self._begun
        return step

    def end(self) -> StreamStep:
        """The connection closed. Complete if `[DONE]` or a finish reason was seen; otherwise a truncation."""
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        left = self._parser.end()
        if left is not None:
            out = self._read(left, step)
            step.out = out.rstrip(b"\r\n") + b"\n\n" if out else b""
        if step.failure is None and not step.done:
            if self.finish_reason is not None:
                step.out += b"data: [DONE]\n\n"
                step.done = self._done = True
            else:
                step.failure = truncated()
        step.substantive = self._begun
        return step

    def _read_all(self, events: list[Event], step: StreamStep) -> bytes:
        parts = []
        for event in events:
            parts.append(self._read(event, step))
            if step.done or step.failure is not None:
                break
        return b"".join(parts)

    def _read(self, event: Event, step: StreamStep) -> bytes:
        """What to pass on of one event."""
        raw, data, name = event
        if data is None:
            return raw
        if data[:6] == b"[DONE]":
            self._done = step.done = True
            return raw
        if self._begun and name != b"error" and self._is_plain(data):
            return raw if not self._hide_usage else _without_null_usage(raw)
        return self._read_closely(event, step)

    def _is_plain(self, data: bytes) -> bool:
        """Whether nothing but text can be in it; counts that text."""
        if b'"error"' in data:
            return False
        finish = data.find(b'"finish_reason":')
        if finish >= 0 and data[finish + 16 : finish + 20] != b"null":
            return False
        usage = data.find(b'"usage"')
        if usage >= 0 and data[usage + 7 : usage + 12] != b":null":
            return False
        start = data.find(b'"content":"')
        if start < 0:
            return False
        self.output_bytes += _string_bytes(data, start + 11)
        return True

    def _read_closely(self, event: Event, step: StreamStep) -> bytes:
        raw, data, name = event
        assert data is not None
        try:
            chunk = _CHUNK.decode(data)
        except msgspec.ValidationError:
            self._begun = True  # JSON of a shape we do not know: it may be part of the answer
            return raw
        except JsonError:
            step.failure = unreadable("an event is not JSON")
            return b""
        if name == b"error" or (chunk.error and bytes(chunk.error) != b"null"):
            step.failure = self._classify(200, {}, data)
            return b""
        for choice in chunk.choices or ():
            self._read_choice(choice)
        counted = chunk.usage or (chunk.x_groq.usage if chunk.x_groq else None)
        if counted is not None:
            self.usage = counted.read(chunk.service_tier) or self.usage
        if not self._hide_usage or b'"usage"' not in data:
            return raw
        if chunk.usage is None:
            return _without_null_usage(raw)
        return _without_usage(data) if chunk.choices else b""

    def _read_choice(self, choice: Choice) -> None:
        delta = choice.delta
        size = len(choice.text.encode("utf-8", "surrogatepass")) if choice.text else 0
        if delta is not None:
            size += _delta_bytes(delta)
            if delta.audio:
                self._begun = True
        self.output_bytes += size
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
        if size or choice.finish_reason:
            self._begun = True


def _is_one_event(chunk: bytes) -> bool:
    """The usual chunk: one event on one `data` line, with LF line ends. It needs no parser."""
    return (
        chunk.startswith(b"data: {")
        and chunk.find(b"\n") == len(chunk) - 2
        and chunk.endswith(b"\n\n")
        and b"\r" not in chunk
    )


def _string_bytes(data: bytes, start: int) -> int:
    """Bytes of the JSON string that starts at `start`; escapes count as written (an upper count)."""
    stop = data.find(b'"', start)
    while stop > 0 and data[stop - 1] == 92 and _is_escaped(data, stop):
        stop = data.find(b'"', stop + 1)
    return max(0, stop - start)


def _is_escaped(data: bytes, position: int) -> bool:
    slashes = 0
    while data[position - 1 - slashes] == 92:
        slashes += 1
    return slashes % 2 == 1


def _delta_bytes(delta: Delta) -> int:
    size = 0
    for text in (delta.content, delta.reasoning_content, delta.reasoning, delta.refusal):
        if isinstance(text, list):
            size += sum(map(len, text))
        elif text:
            size += len(text.encode("utf-8", "surrogatepass"))
    if delta.tool_calls:
        for call in _decoded(_TOOL_CALLS, delta.tool_calls) or ():
            size += _function_bytes(call.function)
    if delta.function_call:
        size += _function_bytes(_decoded(_FUNCTION, delta.function_call))
    return size


def _decoded(decoder: "msgspec.json.Decoder[object]", raw: bytes):  # type: ignore[no-untyped-def]
    try:
        return decoder.decode(raw)
    except JsonError:
        return None


def _function_bytes(function: Function | None) -> int:
    if function is None:
        return 0
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in (function.name, function.arguments) if text)


def _without_null_usage(raw: bytes) -> bytes:
    cut = raw.replace(b',"usage":null', b"", 1)
    if len(cut) != len(raw):
        return cut
    return _NULL_USAGE.sub(b"", raw, count=1) if b'"usage"' in raw else raw


def _without_usage(data: bytes) -> bytes:
    members = _MEMBERS.decode(data)
    members.pop("usage", None)
    return b"data: " + msgspec.json.encode(members) + b"\n\n"


class _Failed(msgspec.Struct, gc=False):
    code: str | int | None = None
    message: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    usage: OpenAIUsage | None = None
    status: str | None = None
    error: _Failed | None = None
    incomplete_details: _Incomplete | None = None
    service_tier: str | None = None


class _ResponseEvent(msgspec.Struct, gc=False):
    type: str = ""
    response: _Response | None = None
    delta: str | None = None


_EVENT = msgspec.json.Decoder(_ResponseEvent)
_TYPE = re.compile(rb'"type"\s*:\s*"([\w.]{1,80})"')
_NOT_YET = frozenset({b"response.created", b"response.queued", b"response.in_progress", b"ping", b"keepalive"})
_LAST = frozenset({b"response.completed", b"response.incomplete", b"response.failed", b"response.cancelled"})


class ResponsesStream:
    """Reads one stream of the Responses API. Implements `StreamReader`. It has no `[DONE]`; its last event says so."""

    __slots__ = ("_begun", "_classify", "_done", "_parser", "finish_reason", "output_bytes", "usage")

    def __init__(self, classify: Classify) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_bytes = 0
        self._classify = classify
        self._parser = SSEParser()
        self._begun = False
        self._done = False

    def feed(self, chunk: bytes) -> StreamStep:
        """Read bytes as they come, split anywhere."""
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        try:
            events = self._parser.feed(chunk)
        except EventTooLongError as exc:
            step.failure = unreadable(str(exc))
            return step
        parts = []
        for event in events:
            parts.append(self._read(event, step))
            if step.done or step.failure is not None:
                break
        step.out = b"".join(parts)
        step.substantive = self._begun
        return step

    def end(self) -> StreamStep:
        """The connection closed; without a last event that is a truncation."""
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        left = self._parser.end()
        if left is not None:
            out = self._read(left, step)
            step.out = out.rstrip(b"\r\n") + b"\n\n" if out else b""
        if step.failure is None and not step.done:
            step.failure = truncated()
        step.substantive = self._begun
        return step

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, name = event
        if data is None:
            return raw
        if data[:6] == b"[DONE]":
            self._done = step.done = True
            return raw
        kind = name or _kind(data)
        if kind == b"error" or (kind == b"" and b'"error"' in data):
            step.failure = self._classify(200, {}, data)
            return b""
        if kind in _LAST:
            return self._finish(kind, raw, data, step)
        if kind not in _NOT_YET:
            self._begun = True
        if kind.endswith(b".delta"):
            start = data.find(b'"delta":"')
            self.output_bytes += _string_bytes(data, start + 9) if start >= 0 else _delta_of(data)
        return raw

    def _finish(self, kind: bytes, raw: bytes, data: bytes, step: StreamStep) -> bytes:
        try:
            response = _EVENT.decode(data).response or _Response()
        except JsonError:
            response = _Response()
        if response.usage is not None:
            self.usage = response.usage.read(response.service_tier)
        if kind == b"response.failed":
            error = {"code": response.error.code, "message": response.error.message} if response.error else {}
            step.failure = self._classify(200, {}, msgspec.json.encode({"error": error}))
            return b""
        reason = response.incomplete_details.reason if response.incomplete_details else None
        self.finish_reason = reason or response.status or kind[9:].decode("ascii")
        self._begun = self._done = step.done = True
        return raw


def _kind(data: bytes) -> bytes:
    found = _TYPE.search(data)
    return found.group(1) if found else b""


def _delta_of(data: bytes) -> int:
    try:
        return len((_EVENT.decode(data).delta or "").encode("utf-8", "surrogatepass"))
    except JsonError:
        return 0


def read_deltas(events: bytes) -> list[StreamDelta]:
    """What whole events of either kind add to the answer; what cannot be read adds nothing."""
    found = []
    for _, data, name in SSEParser().feed(events):
        if data is None or data[:6] == b"[DONE]":
            continue
        delta = _response_delta(name, data) if name else _chat_delta(data)
        if delta is not None:
            found.append(delta)
    return found


def _chat_delta(data: bytes) -> StreamDelta | None:
    try:
        choices = _CHUNK.decode(data).choices
    except JsonError:
        return None
    if not choices:
        return None
    choice = choices[0]
    delta = choice.delta or Delta()
    if not (_delta_bytes(delta) or choice.text or choice.finish_reason):
        return None
    return StreamDelta(
        text=(delta.content if isinstance(delta.content, str) else choice.text) or "",
        reasoning=delta.reasoning_content or delta.reasoning or "",
        refusal=delta.refusal or "",
        tool_calls=bytes(delta.tool_calls),
        finish_reason=choice.finish_reason,
    )


def _response_delta(name: bytes, data: bytes) -> StreamDelta | None:
    if name not in (b"response.output_text.delta", b"response.refusal.delta", b"response.reasoning_text.delta"):
        return None
    try:
        text = _EVENT.decode(data).delta or ""
    except JsonError:
        return None
    if name == b"response.output_text.delta":
        return StreamDelta(text=text)
    return StreamDelta(refusal=text) if name == b"response.refusal.delta" else StreamDelta(reasoning=text)
