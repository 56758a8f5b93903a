"""An answer, in the words of chat, written as the Responses API has it: whole, or event by event."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer, StreamDelta

__all__ = ["ResponseWriter", "response_echo", "write_response"]

Event = dict[str, Any]
_ECHOED: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "reasoning": None,
    "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": None,
    "truncation": "disabled", "user": None,
}  # fmt: skip
"""What a response repeats of its request, with what it says where that said nothing (API reference)."""
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_IDS = ("chatcmpl-", "msg_")


def response_echo(fields: Mapping[str, bytes]) -> Event:
    """What a response repeats of a request's members, still encoded."""
    given = {name: msgspec.Raw(fields[name]) for name in _ECHOED if name in fields and bytes(fields[name]) != b"null"}
    return {**_ECHOED, **given}


def write_response(answer: Answer, model: str, echo: Event) -> bytes:
    """A complete `response`."""
    id_ = answer.id
    for prefix in _IDS:
        id_ = id_.removeprefix(prefix)
    writer = ResponseWriter(id_, answer.model or model, echo)
    calls = tuple({**call, "index": number} for number, call in enumerate(answer.tool_calls))
    writer.delta(StreamDelta(text=answer.text, reasoning=answer.reasoning, refusal=answer.refusal, tool_calls=calls))
    writer.close()
    return msgspec.json.encode(writer.response(answer.finish_reason or "stop", answer.usage))


class ResponseWriter:
    """Events of the Responses API. Thoughts and text are closed when something else begins, calls at the end."""

    def __init__(self, id_: str, model: str, echo: Event) -> None:
        self._id, self._model, self._echo = id_, model, echo
        self._created = int(time.time())
        self._number = 0
        self._output: list[Event] = []
        self._open: Event | None = None
        """The item of thoughts or text that is being said."""
        self._calls: dict[int, int] = {}
        """Tool call → its place in the output."""

    def delta(self, delta: StreamDelta) -> bytes:
        """The events of one piece; the first brings along those that open a response."""
        out = b"" if self._number else self._start()
        if delta.reasoning:
            out += self._thought(delta.reasoning)
        if delta.text:
            out += self._said("output_text", "text", delta.text)
        if delta.refusal:
            out += self._said("refusal", "refusal", delta.refusal)
        for call in delta.tool_calls:
            out += self._call(call)
        return out

    def end(self, finish_reason: str | None, usage: Usage | None) -> bytes:
        """What closes the items, and the last event, with the whole response."""
        out = (b"" if self._number else self._start()) + self.close()
        response = self.response(finish_reason or "stop", usage)
        return out + self._event(f"response.{response['status']}", {"response": response})

    def response(self, finish_reason: str, usage: Usage | None) -> Event:
        """The whole response; to be asked for when it is closed."""
        refused = any(part["type"] == "refusal" for item in self._output for part in item.get("content", ()))
        reason = None if refused and finish_reason == "content_filter" else _INCOMPLETE.get(finish_reason)
        made = self._envelope("completed" if reason is None else "incomplete")
        if reason is not None:
            made["incomplete_details"] = {"reason": reason}
        made["output"] = self._output
        made["usage"] = None if usage is None else _usage(usage)
        return made

    def close(self) -> bytes:
        """The last events of everything that is open."""
        out = self._close()
        for place in self._calls.values():
            item = self._output[place]
            item["status"] = "completed"
            told = {"item_id": item["id"], "output_index": place}
            out += self._event(
                "response.function_call_arguments.done", {**told, "name": item["name"], "arguments": item["arguments"]}
            )
            out += self._event("response.output_item.done", {"output_index": place, "item": item})
        return out

    def _start(self) -> bytes:
        begun = {**self._envelope("in_progress"), "output": [], "usage": None}
        return self._event("response.created", {"response": begun}) + self._event(
            "response.in_progress", {"response": begun}
        )

    def _thought(self, text: str) -> bytes:
        out = b""
        if self._open is None or self._open["type"] != "reasoning":
            out = self._begin("reasoning", "rs", summary=[{"type": "summary_text", "text": ""}])
            out += self._event("response.reasoning_summary_part.added", {**self._place(), "part": self._part()})
        self._part()["text"] += text
        return out + self._event("response.reasoning_summary_text.delta", {**self._place(), "delta": text})

    def _said(self, kind: str, member: str, text: str) -> bytes:
        out = b""
        if self._open is None or self._open["type"] != "message" or self._part()["type"] != kind:
            part: Event = {"type": kind, member: ""}
            if kind == "output_text":
                part.update(annotations=[], logprobs=[])
            out = self._begin("message", "msg", status="in_progress", role="assistant", content=[part])
            out += self._event("response.content_part.added", {**self._place(), "part": part})
        self._part()[member] += text
        return out + self._event(f"response.{kind}.delta", {**self._place(), "delta": text, **_logprobs(kind)})

    def _call(self, call: Event) -> bytes:
        number = int(call.get("index") or 0)
        function = call.get("function") or {}
        out = b""
        if number not in self._calls:
            out = self._close()
            self._calls[number] = len(self._output)
            named = {"call_id": call.get("id"), "name": function.get("name"), "arguments": ""}
            out += self._add({"type": "function_call", "id": self._item_id("fc"), "status": "in_progress", **named})
        item = self._output[self._calls[number]]
        arguments = function.get("arguments")
        if arguments:
            item["arguments"] += arguments
            told = {"item_id": item["id"], "output_index": self._calls[number], "delta": arguments}
            out += self._event("response.function_call_arguments.delta", told)
        return out

    # --- items ---------------------------------------------------------------------------------------------------

    def _begin(self, kind: str, prefix: str, **members: Any) -> bytes:
        """Close what is open, and open an item with one part."""
        out = self._close()
        item = {"type": kind, "id": self._item_id(prefix), **members}
        shown = {**item, "summary" if kind == "reasoning" else "content": []}
        out += self._add(item, shown)
        self._open = item
        return out

    def _add(self, item: Event, shown: Event | None = None) -> bytes:
        self._output.append(item)
        told = {"output_index": len(self._output) - 1, "item": shown or item}
        return self._event("response.output_item.added", told)

    def _close(self) -> bytes:
        item = self._open
        if item is None:
            return b""
        part, place = self._part(), self._place()
        if item["type"] == "reasoning":
            out = self._event("response.reasoning_summary_text.done", {**place, "text": part["text"]})
            out += self._event("response.reasoning_summary_part.done", {**place, "part": part})
        else:
            kind, member = part["type"], "refusal" if part["type"] == "refusal" else "text"
            item["status"] = "completed"
            out = self._event(f"response.{kind}.done", {**place, member: part[member], **_logprobs(kind)})
            out += self._event("response.content_part.done", {**place, "part": part})
        self._open = None
        return out + self._event("response.output_item.done", {"output_index": place["output_index"], "item": item})

    def _part(self) -> Event:
        assert self._open is not None
        part: Event = (self._open.get("content") or self._open.get("summary"))[0]  # type: ignore[index]
        return part

    def _place(self) -> Event:
        """Where the open part is. Nothing is added while it is open."""
        assert self._open is not None
        index = "summary_index" if self._open["type"] == "reasoning" else "content_index"
        return {"item_id": self._open["id"], "output_index": len(self._output) - 1, index: 0}

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self._output)}"

    def _envelope(self, status: str) -> Event:
        return {
            "id": f"resp_{self._id}", "object": "response", "created_at": self._created, "status": status,
            "error": None, "incomplete_details": None, "model": self._model, "previous_response_id": None,
            "store": False, **self._echo,
        }  # fmt: skip

    def _event(self, name: str, told: Event) -> bytes:
        event = {"type": name, "sequence_number": self._number, **told}
        self._number += 1
        return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _logprobs(kind: str) -> Event:
    return {"logprobs": []} if kind == "output_text" else {}


def _usage(usage: Usage) -> Event:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
