"""A streamed answer, in the words of chat, written in each dialect as it comes."""

import time
from typing import Any, Protocol

import msgspec

from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer, StreamDelta
from apikeyrouter.infrastructure.adapters.translation.answers import (
    chat_usage,
    gemini_answer,
    message_stop,
    message_usage,
)

__all__ = ["ChatWriter", "CompletionWriter", "GenerateWriter", "MessageWriter", "StreamWriter"]

Event = dict[str, Any]


class StreamWriter(Protocol):
    """Writes one stream."""

    def delta(self, delta: StreamDelta) -> bytes:
        """What one piece of the answer looks like; the first brings along what opens a stream."""
        ...

    def end(self, finish_reason: str | None, usage: Usage | None) -> bytes:
        """What closes the stream."""
        ...


class ChatWriter:
    """Chat chunks, `[DONE]` last. `include_usage`: whether the client asked for the chunk with the usage."""

    def __init__(self, id_: str, model: str, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._opened = False
        self._envelope = {
            "id": f"chatcmpl-{id_}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def delta(self, delta: StreamDelta) -> bytes:
        """One chunk; a finish reason waits for the end."""
        out = b""
        if not self._opened:
            self._opened = True
            out = self._chunk({"role": "assistant", "content": ""})
        change: Event = {}
        if delta.text:
            change["content"] = delta.text
        if delta.reasoning:
            change["reasoning_content"] = delta.reasoning
        if delta.refusal:
            change["refusal"] = delta.refusal
        if delta.tool_calls:
            change["tool_calls"] = list(delta.tool_calls)
        return out + self._chunk(change) if change else out

    def end(self, finish_reason: str | None, usage: Usage | None) -> bytes:
        """The chunk with the finish reason, the one with the usage, `[DONE]`."""
        out = self._chunk({}, finish_reason or "stop")
        if self._include_usage and usage is not None:
            out += _data({**self._envelope, "choices": [], "usage": chat_usage(usage)})
        return out + b"data: [DONE]\n\n"

    def _chunk(self, change: Event, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": change, "logprobs": None, "finish_reason": finish_reason}
        return _data({**self._envelope, "choices": [choice]})


class CompletionWriter:
    """Chunks of a text completion, `[DONE]` last. Thoughts are left out, a refusal is text."""

    def __init__(self, id_: str, model: str, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._envelope = {
            "id": f"cmpl-{id_}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def delta(self, delta: StreamDelta) -> bytes:
        """One chunk of text."""
        text = delta.text or delta.refusal
        return self._chunk(text, None) if text else b""

    def end(self, finish_reason: str | None, usage: Usage | None) -> bytes:
        """The chunk with the finish reason, the one with the usage, `[DONE]`."""
        out = self._chunk("", finish_reason or "stop")
        if self._include_usage and usage is not None:
            out += _data({**self._envelope, "choices": [], "usage": chat_usage(usage)})
        return out + b"data: [DONE]\n\n"

    def _chunk(self, text: str, finish_reason: str | None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return _data({**self._envelope, "choices": [choice]})


class MessageWriter:
    """Events of Messages: blocks open and close as text, thoughts and tool calls take turns."""

    def __init__(self, id_: str, model: str) -> None:
        self._id, self._model = id_, model
        self._opened = False
        self._open: str | None = None
        """What the open block holds: `text`, or a tool call's number."""
        self._index = -1
        self._calls: dict[int, int] = {}
        """Tool call → its block."""

    def delta(self, delta: StreamDelta) -> bytes:
        """The events of one piece. Thoughts are left out: without a signature they could not come back."""
        out = b"" if self._opened else self._start()
        text = delta.text or delta.refusal
        if text:
            out += self._turn_to("text", {"type": "text", "text": ""})
            out += self._change(self._index, {"type": "text_delta", "text": text})
        for call in delta.tool_calls:
            out += self._call(call)
        return out

    def end(self, finish_reason: str | None, usage: Usage | None) -> bytes:
        """The last block's end, `message_delta` with the whole usage, `message_stop`."""
        out = (b"" if self._opened else self._start()) + self._close()
        delta = {"stop_reason": message_stop(finish_reason), "stop_sequence": None}
        told = message_usage(usage or Usage(input_tokens=0, output_tokens=0))
        return out + _named("message_delta", {"delta": delta, "usage": told}) + _named("message_stop", {})

    def _start(self) -> bytes:
        self._opened = True
        message: Event = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": message_usage(Usage(input_tokens=0, output_tokens=0)),
        }
        return _named("message_start", {"message": message})

    def _call(self, call: Event) -> bytes:
        number = int(call.get("index") or 0)
        function = call.get("function") or {}
        out = b""
        if number not in self._calls:
            block: Event = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
            out = self._turn_to(f"call {number}", block)
            self._calls[number] = self._index
        arguments = function.get("arguments")
        if arguments:
            change = {"type": "input_json_delta", "partial_json": arguments}
            out += self._change(self._calls[number], change)
        return out

    def _turn_to(self, what: str, block: Event) -> bytes:
        if self._open == what:
            return b""
        out = self._close()
        self._open = what
        self._index += 1
        return out + _named("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _named("content_block_stop", {"index": self._index})

    def _change(self, index: int, change: Event) -> bytes:
        return _named("content_block_delta", {"index": index, "delta": change})


class GenerateWriter:
    """Chunks of streamGenerateContent. A function call is whole, so it goes out when the next thing begins.

    `array`: a JSON array instead of server-sent events.
    """

    def __init__(self, id_: str, model: str, *, array: bool = False) -> None:
        self._id, self._model, self._array = id_, model, array
        self._calls: dict[int, dict[str, Any]] = {}
        self._written = 0

    def delta(self, delta: StreamDelta) -> bytes:
        """One chunk of text; calls are kept until they are whole."""
        for call in delta.tool_calls:
            known = self._calls.setdefault(int(call.get("index") or 0), {"function": {"name": "", "arguments": ""}})
            function = call.get("function") or {}
            known["id"] = call.get("id") or known.get("id")
            known["function"]["name"] = function.get("name") or known["function"]["name"]
            known["function"]["arguments"] += function.get("arguments") or ""
        text = delta.text or delta.refusal
        if not (text or delta.reasoning):
            return b""
        return self._chunk(Answer(text=text, reasoning=delta.reasoning, id=self._id))

    def end(self, finish_reason: str | None, usage: Usage | None) -> bytes:
        """The last chunk: calls, the finish reason, the usage."""
        calls = tuple(self._calls[number] for number in sorted(self._calls))
        last = Answer(tool_calls=calls, finish_reason=finish_reason or "stop", usage=usage, id=self._id)
        return self._chunk(last) + (b"]" if self._array else b"")

    def _chunk(self, answer: Answer) -> bytes:
        body = msgspec.json.encode(gemini_answer(answer, self._model))
        self._written += 1
        if not self._array:
            return b"data: " + body + b"\r\n\r\n"
        return (b"[" if self._written == 1 else b",\r\n") + body


def _data(event: Event) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _named(name: str, event: Event) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode({"type": name, **event}) + b"\n\n"
