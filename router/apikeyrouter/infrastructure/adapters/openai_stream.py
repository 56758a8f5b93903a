"""OpenAI's chat and completion streams: `data:` lines only, `[DONE]` last (`providers.md` §3.1).

Inside a JSON string a quote is escaped, so a search for `"usage"` never finds text.
"""

import re
from typing import TypeVar

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta, StreamStep
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.sse import Event
from apikeyrouter.infrastructure.adapters.stream_failures import unreadable
from apikeyrouter.infrastructure.adapters.stream_reader import Classify, EventReader, string_bytes, whole_events
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage

__all__ = ["ChatReader", "chat_delta"]

_DATA = b"data: {"
_TEXT = b'"content":"'
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


class Function(msgspec.Struct, gc=False):
    """The function part of a tool call."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """A piece of a tool call."""

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


class _ContentPart(msgspec.Struct, gc=False):
    """Mistral streams the content of reasoning models as parts."""

    type: str = ""
    text: str = ""
    thinking: list["_ContentPart"] | None = None


_T = TypeVar("_T")
_CHUNK = msgspec.json.Decoder(Chunk)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TOOL_CALLS = msgspec.json.Decoder(list[ToolCall] | None)
_FUNCTION = msgspec.json.Decoder(Function | None)
_CALLS = msgspec.json.Decoder(list[dict[str, object]])
_PART = msgspec.json.Decoder(_ContentPart)


class ChatReader(EventReader):
    """Reads one chat or completion stream."""

    __slots__ = ("_hide_usage", "_tells_cost")
    terminator = b"data: [DONE]\n\n"

    def __init__(self, classify: Classify, *, hide_usage: bool, tells_cost: bool = False) -> None:
        super().__init__(classify)
        self._hide_usage = hide_usage
        self._tells_cost = tells_cost

    def _plain(self, chunk: bytes) -> bytes | None:
        events = whole_events(chunk, _DATA, 2)
        if not events:
            return None
        size = _plain_bytes(chunk) if events == 1 else _plain_bytes_of(chunk, events)
        if size < 0:
            return None
        self.output_bytes += size
        return _without_null_usage(chunk, events) if self._hide_usage else chunk

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, name = event
        if data is None:
            return raw
        if data[:6] == b"[DONE]":
            self._end_here(step)
            return raw
        if self._begun and name != b"error" and (size := _plain_bytes(data)) >= 0:
            self.output_bytes += size
            return _without_null_usage(raw) if self._hide_usage else raw
        return self._read_closely(event, step)

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
            return self._fail(data, step)
        for choice in chunk.choices or ():
            self._read_choice(choice)
        counted = chunk.usage or (chunk.x_groq.usage if chunk.x_groq else None)
        if counted is not None:
            self.usage = counted.read(chunk.service_tier, tells_cost=self._tells_cost) or self.usage
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


def _plain_bytes(data: bytes) -> int:
    """Bytes of text in one event that has one piece of text and nothing else that matters; else -1."""
    if b'"error"' in data:
        return -1
    finish = data.find(b'"finish_reason":')
    if finish >= 0 and data[finish + 16 : finish + 20] != b"null":
        return -1
    usage = data.find(b'"usage"')
    if usage >= 0 and data[usage + 7 : usage + 12] != b":null":
        return -1
    start = data.find(_TEXT)
    if start < 0:
        return -1
    size = string_bytes(data, start + 11)
    # Without text there may be reasoning or a tool call; with two texts there are several choices.
    return size if size and data.find(b'"delta":', start) < 0 else -1


def _plain_bytes_of(chunk: bytes, events: int) -> int:
    """The same for several events, each with one piece of text."""
    if (
        b'"error"' in chunk
        or chunk.count(b'"finish_reason":') != chunk.count(b'"finish_reason":null')
        or chunk.count(b'"usage"') != chunk.count(b'"usage":null')
        or chunk.count(b'"delta":') != events
        or chunk.count(_TEXT) != events
    ):
        return -1
    size = place = 0
    for _ in range(events):
        place = chunk.find(_TEXT, place) + 11
        found = string_bytes(chunk, place)
        if not found:
            return -1
        size += found
    return size


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


def _decoded(decoder: "msgspec.json.Decoder[_T]", raw: bytes) -> _T | None:
    try:
        return decoder.decode(raw)
    except JsonError:
        return None


def _function_bytes(function: Function | None) -> int:
    if function is None:
        return 0
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in (function.name, function.arguments) if text)


def _without_null_usage(raw: bytes, events: int = 1) -> bytes:
    cut = raw.replace(b',"usage":null', b"", events)
    if len(raw) - len(cut) == 13 * events or b'"usage"' not in cut:
        return cut
    return _NULL_USAGE.sub(b"", cut, count=events)


def _without_usage(data: bytes) -> bytes:
    members = _MEMBERS.decode(data)
    members.pop("usage", None)
    return b"data: " + msgspec.json.encode(members) + b"\n\n"


def chat_delta(name: bytes, data: bytes) -> StreamDelta | None:
    """What one chunk adds to the first choice; None when that is nothing."""
    try:
        choices = _CHUNK.decode(data).choices
    except JsonError:
        return None
    choice = next((choice for choice in choices or () if choice.index == 0), None)
    if choice is None:
        return None
    delta = choice.delta or Delta()
    if not (_delta_bytes(delta) or choice.text or choice.finish_reason):
        return None
    text, reasoning = _texts(delta)
    return StreamDelta(
        text=text or choice.text or "",
        reasoning=reasoning or delta.reasoning_content or delta.reasoning or "",
        refusal=delta.refusal or "",
        tool_calls=_calls(delta),
        finish_reason=choice.finish_reason,
    )


def _texts(delta: Delta) -> tuple[str, str]:
    """(text, reasoning) of the content."""
    if not isinstance(delta.content, list):
        return delta.content or "", ""
    parts = [part for raw in delta.content if (part := _decoded(_PART, raw)) is not None]
    thought = [inner.text for part in parts for inner in part.thinking or ()]
    return "".join([part.text for part in parts]), "".join(thought)


def _calls(delta: Delta) -> tuple[dict[str, object], ...]:
    """The pieces as they came, whatever else they carry."""
    if delta.function_call:
        return ({"index": 0, "function": msgspec.json.decode(delta.function_call)},)
    calls = _decoded(_CALLS, delta.tool_calls) if delta.tool_calls else None
    return tuple(calls or ())
