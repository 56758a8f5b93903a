"""``POST /v1/responses`` of the OpenAI dialect: the response object and its event stream (which has no ``[DONE]``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from apikeyrouter.simulator import openai_errors
from apikeyrouter.simulator.calls import Call, Context, Frame, Reply, encode, make_id
from apikeyrouter.simulator.clock import NS_PER_SECOND
from apikeyrouter.simulator.organisations import Organisation
from apikeyrouter.simulator.tokens import slices

__all__ = ["STORED", "body", "error_event", "frames", "unknown", "view"]

STORED = re.compile(r"/responses/([^/]+)((?:/cancel|/input_items)?)$")
"""Paths of responses that were made before."""
STORED_MAX = 10_000
_VIEWS = frozenset({("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")})


def body(call: Call, context: Context) -> bytes:
    """The whole response object."""
    made = _response(call, context, status=_final_status(call), output=[_item(call, context, done=True)])
    _keep(call, context, made)
    return encode(made)


def view(method: str, response_id: str, part: str, organisation: Organisation) -> Reply | None:
    """What an organisation sees of a response that it had made; None: there is no such request."""
    if (method, part) not in _VIEWS:
        return None
    made = organisation.responses.get(response_id)
    if made is None:
        return unknown(response_id, status=404)
    if method == "DELETE":
        del organisation.responses[response_id]
        return Reply(200, encode({"id": response_id, "object": "response", "deleted": True}))
    if part == "/input_items":
        return Reply(200, encode({"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}))
    return Reply(200, encode(made))


def unknown(response_id: str, *, status: int) -> Reply:
    """The error about a response that this organisation never had made."""
    if status == 404:
        message = f"Response with id '{response_id}' not found."
        return openai_errors.error_reply(404, type_="invalid_request_error", message=message)
    message = f"Previous response with id '{response_id}' not found."
    code = "previous_response_not_found"
    return openai_errors.error_reply(status, type_="invalid_request_error", message=message, code=code)


def _keep(call: Call, context: Context, made: dict[str, Any]) -> None:
    if call.stored and context.organisation is not None:
        context.organisation.responses[made["id"]] = made
        if len(context.organisation.responses) > STORED_MAX:
            context.organisation.responses.popitem(last=False)


def frames(call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
    """created, in_progress, item added, part added, deltas, dones, completed (or incomplete)."""
    number = 0

    def event(kind: str, data: dict[str, Any], tokens: int, *, content: bool = False) -> Frame:
        nonlocal number
        payload = encode({"type": kind, "sequence_number": number, **data})
        number += 1
        return Frame(b"event: %b\ndata: %b\n\n" % (kind.encode(), payload), tokens, content)

    empty = _response(call, context, status="in_progress", output=[])
    item = _item(call, context, done=True)
    at: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    yield event("response.created", {"response": empty}, 0)
    yield event("response.in_progress", {"response": empty}, 0)
    yield event("response.output_item.added", {"output_index": 0, "item": _item(call, context, done=False)}, 0)
    stem = "response.output_text" if call.tool is None else "response.function_call_arguments"
    if call.tool is None:
        at["content_index"] = 0
        yield event("response.content_part.added", {**at, "part": _part("")}, 0)
    extra: dict[str, Any] = {"logprobs": []} if call.tool is None else {}
    for text, tokens in slices(call.text, tokens_per_slice=tokens_per_chunk):
        yield event(f"{stem}.delta", {**at, "delta": text, **extra}, tokens, content=True)
    produced = call.output_tokens
    if call.tool is None:
        yield event(f"{stem}.done", {**at, "text": call.text, **extra}, produced)
        yield event("response.content_part.done", {**at, "part": _part(call.text)}, produced)
    else:
        yield event(f"{stem}.done", {**at, "name": call.tool.name, "arguments": call.text}, produced)
    yield event("response.output_item.done", {"output_index": 0, "item": item}, produced)
    status = _final_status(call)
    made = _response(call, context, status=status, output=[item])
    _keep(call, context, made)
    yield event(f"response.{status}", {"response": made}, produced)


def error_event(number: int = 0) -> bytes:
    """``event: error`` as the Responses stream carries it."""
    data = {
        "type": "error",
        "sequence_number": number,
        "code": "server_error",
        "message": "The server had an error while processing your request. Sorry about that!",
        "param": None,
    }
    return b"event: error\ndata: %b\n\n" % encode(data)


def _final_status(call: Call) -> str:
    return "completed" if call.stop in ("end", "tool") else "incomplete"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(call: Call, context: Context, *, done: bool) -> dict[str, Any]:
    status = _final_status(call) if done else "in_progress"
    if call.tool is not None:
        return {
            "type": "function_call",
            "id": make_id("fc_", context.serial),
            "call_id": make_id("call_", context.serial),
            "name": call.tool.name,
            "arguments": call.text if done else "",
            "status": status,
        }
    content = [_part(call.text)] if done else []
    item_id = make_id("msg_", context.serial)
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}


def _response(call: Call, context: Context, *, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    reason = {"length": "max_output_tokens", "filter": "content_filter"}.get(call.stop)
    return {
        "id": make_id("resp_", context.serial),
        "object": "response",
        "created_at": context.now_ns // NS_PER_SECOND,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "model": call.model,
        "output": output,
        "previous_response_id": call.previous or None,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "max_output_tokens": call.cap,
        "usage": None if status == "in_progress" else _usage(call),
    }


def _usage(call: Call) -> dict[str, Any]:
    return {
        "input_tokens": call.usage.input,
        "input_tokens_details": {"cached_tokens": call.usage.cached, "cache_write_tokens": call.usage.cache_write},
        "output_tokens": call.usage.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": call.usage.input + call.usage.output,
    }
