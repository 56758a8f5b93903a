"""Pictures, sound, moderation and reranking of the OpenAI dialect: plain answers of the right shape, with usage."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from email import message_from_bytes
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from apikeyrouter.simulator.calls import Call, Context, Frame, InvalidRequest, encode, make_id
from apikeyrouter.simulator.clock import NS_PER_SECOND
from apikeyrouter.simulator.tokens import read_markers, slices, text_bytes, tokens_of_bytes

__all__ = ["PASSED_ENDPOINTS", "PASSED_KINDS", "body", "frames"]

TOKENS_PER_SOUND = 50
PICTURE = base64.b64encode(b"\x89PNG simulated").decode()
SOUND = b"ID3\x04simulated sound\x00\xff\xfb" * 16
PASSED_KINDS = frozenset({"images", "speech", "transcriptions", "moderations", "rerank"})
_PLAIN = frozenset({"text", "srt", "vtt"})


class _Image(Struct):
    prompt: Annotated[str, Meta(min_length=1)]
    model: str = "dall-e-2"
    n: Annotated[int, Meta(ge=1, le=10)] | None = 1
    stream: bool | None = False


class _Speech(Struct):
    model: str
    input: str
    voice: Any
    stream_format: str = "audio"


class _Moderation(Struct):
    input: str | list[Any]
    model: str = "omni-moderation-latest"


class _Rerank(Struct):
    model: str
    query: str
    documents: list[Any]


def _image(raw: bytes) -> Call:
    asked = _decode(raw, _Image)
    call = _call("images", asked.model, asked.prompt, stream=bool(asked.stream))
    call.choices = asked.n or 1
    return call


def _speech(raw: bytes) -> Call:
    asked = _decode(raw, _Speech)
    call = _call("speech", asked.model, asked.input, stream=asked.stream_format == "sse")
    call.answer_type = "audio/mpeg"
    return call


def _moderation(raw: bytes) -> Call:
    asked = _decode(raw, _Moderation)
    text = asked.input if isinstance(asked.input, str) else encode(asked.input).decode()
    return _call("moderations", asked.model, text)


def _rerank(raw: bytes) -> Call:
    asked = _decode(raw, _Rerank)
    call = _call("rerank", asked.model, asked.query + encode(asked.documents).decode())
    call.choices = len(asked.documents)
    return call


def _form(endpoint: str, file: str, *, default: str = "") -> Callable[[bytes], Call]:
    def parse(raw: bytes) -> Call:
        values, files = _read_form(raw)
        if file not in files and f"{file}[]" not in files:
            raise InvalidRequest(f"Missing required parameter: '{file}'.")
        model = values.get("model", default)
        if not model:
            raise InvalidRequest("you must provide a model parameter")
        call = _call(endpoint, model, values.get("prompt", ""), stream=values.get("stream") == "true")
        call.input_tokens += TOKENS_PER_SOUND * len(files)
        if values.get("response_format") in _PLAIN:
            call.answer_type = "text/plain; charset=utf-8"
        return call

    return parse


PASSED_ENDPOINTS: Mapping[str, Callable[[bytes], Call]] = {
    "/images/generations": _image,
    "/images/edits": _form("images", "image", default="dall-e-2"),
    "/images/variations": _form("images", "image", default="dall-e-2"),
    "/audio/speech": _speech,
    "/audio/transcriptions": _form("transcriptions", "file"),
    "/audio/translations": _form("transcriptions", "file"),
    "/moderations": _moderation,
    "/rerank": _rerank,
}


def body(call: Call, context: Context) -> bytes:
    """The answer that is not streamed."""
    if call.endpoint == "speech":
        return SOUND
    if call.endpoint == "transcriptions":
        if call.answer_type != "application/json":
            return call.text.encode()
        return encode({"text": call.text, "usage": _usage(call, details="input_token_details")})
    if call.endpoint == "moderations":
        result = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 0.01}}
        return encode({"id": make_id("modr-", context.serial), "model": call.model, "results": [result]})
    if call.endpoint == "rerank":
        found = [{"index": index, "relevance_score": 1 / (1 + index)} for index in range(call.choices)]
        usage = {"prompt_tokens": call.usage.input, "total_tokens": call.usage.input}
        return encode({"id": make_id("rerank-", context.serial), "model": call.model, "results": found, "usage": usage})
    pictures = [{"b64_json": PICTURE} for _ in range(call.choices)]
    return encode({"created": context.now_ns // NS_PER_SECOND, "data": pictures, "usage": _usage(call)})


def frames(call: Call, *, tokens_per_chunk: int) -> Iterator[Frame]:
    """The answer streamed; its last event has the usage."""
    if call.endpoint == "images":
        yield _event({"type": "image_generation.partial_image", "b64_json": PICTURE, "partial_image_index": 0}, 0)
        last = {"type": "image_generation.completed", "b64_json": PICTURE, "usage": _usage(call)}
    elif call.endpoint == "speech":
        sound = base64.b64encode(SOUND).decode()
        yield _event({"type": "speech.audio.delta", "audio": sound}, call.output_tokens)
        last = {"type": "speech.audio.done", "usage": _usage(call)}
    else:
        for text, tokens in slices(call.text, tokens_per_slice=tokens_per_chunk):
            yield _event({"type": "transcript.text.delta", "delta": text}, tokens)
        usage = _usage(call, details="input_token_details")
        last = {"type": "transcript.text.done", "text": call.text, "usage": usage}
    yield _event(last, call.output_tokens, content=False)


def _call(endpoint: str, model: str, text: str, *, stream: bool = False) -> Call:
    return Call(endpoint, model, max(1, tokens_of_bytes(text_bytes(text))), read_markers(text), stream=stream)


def _usage(call: Call, *, details: str = "input_tokens_details") -> dict[str, Any]:
    return {
        "type": "tokens",
        "input_tokens": call.usage.input,
        "output_tokens": call.usage.output,
        "total_tokens": call.usage.input + call.usage.output,
        details: {"text_tokens": call.usage.input, "image_tokens": 0},
    }


def _event(data: dict[str, Any], tokens: int, *, content: bool = True) -> Frame:
    return Frame(b"data: %b\n\n" % encode(data), tokens, content=content)


def _read_form(raw: bytes) -> tuple[dict[str, str], list[str]]:
    """(values, names of files) of a multipart form."""
    boundary = raw.partition(b"\r\n")[0][2:]
    message = message_from_bytes(b'content-type: multipart/form-data; boundary="' + boundary + b'"\r\n\r\n' + raw)
    if not message.is_multipart():
        raise InvalidRequest("Could not parse multipart form")
    values, files = {}, []
    for part in message.get_payload():
        assert not isinstance(part, str)
        name = str(part.get_param("name", header="content-disposition"))
        payload = part.get_payload(decode=True)
        if part.get_filename() is not None:
            files.append(name)
        elif isinstance(payload, bytes):
            values[name] = payload.decode("utf-8", "replace")
    return values, files


def _decode(raw: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Invalid request: {error}") from error
