"""OpenAI's operations that are passed on as they come: pictures, sound, moderation; and reranking, as servers that
speak its dialect have it. What routing needs is read; answers may be anything, and cost what their usage says.
"""

from collections.abc import Mapping

import msgspec

from apikeyrouter.domain.interfaces.wire import ParsedRequest, StreamStep
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.form import Form, read_form
from apikeyrouter.infrastructure.adapters.json_body import JsonError, read_flag, read_members, read_word
from apikeyrouter.infrastructure.adapters.sse import Event
from apikeyrouter.infrastructure.adapters.stream_failures import unreadable
from apikeyrouter.infrastructure.adapters.stream_reader import EventReader
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage

__all__ = ["PASSED_PATHS", "PassedReader", "parse_passed"]

PASSED_PATHS: Mapping[str, str] = {
    "image": "/images/generations",
    "image_edit": "/images/edits",
    "image_variation": "/images/variations",
    "speech": "/audio/speech",
    "transcription": "/audio/transcriptions",
    "translation": "/audio/translations",
    "moderation": "/moderations",
    "rerank": "/rerank",
}
_DEFAULT_MODELS = {
    "image": "dall-e-2",
    "image_edit": "dall-e-2",
    "image_variation": "dall-e-2",
    "moderation": "omni-moderation-latest",
}
"""What OpenAI takes where none is named (API reference, November 2026)."""
_BOUNDED = frozenset({"moderation", "rerank"})
"""Operations that cost no more than their text; what a picture or sound will cost is not known before."""
MODEL_BYTES_MAX = 256


def parse_passed(body: bytes, *, operation: str) -> ParsedRequest:
    """What routing needs of a request, as JSON or as a form. Raises InvalidRequestError."""
    if body.startswith(b"--"):
        form = read_form(body)
        model = _value(form, body, "model")
        stream = _value(form, body, "stream").lower() == "true"
        text = sum(end - start for start, end in form.values.values())
        fields: dict[str, bytes] = {}
        content_type = form.content_type
    else:
        fields = read_members(body)
        model = (read_word(fields, "model") or "") if "model" in fields else ""
        stream = read_flag(fields, "stream") or _speaks_in_events(fields)
        text, content_type = len(body), ""
    model = model or _DEFAULT_MODELS.get(operation, "")
    if not model:
        raise InvalidRequestError("is required", field="model")
    return ParsedRequest(
        model=model, stream=stream, choices=1, max_output_tokens=0, input_bytes=text, messages=1, extra_tokens=0,
        unbounded=operation not in _BOUNDED, include_usage=True, fields=fields, text_bytes=text, body=body,
        content_type=content_type, opaque=True,
    )  # fmt: skip


def _value(form: Form, body: bytes, name: str) -> str:
    start, end = form.values.get(name, (0, 0))
    if end - start > MODEL_BYTES_MAX:
        raise InvalidRequestError("is too long", field=name)
    return body[start:end].decode("utf-8", "replace").strip()


def _speaks_in_events(fields: Mapping[str, bytes]) -> bool:
    return "stream_format" in fields and read_word(fields, "stream_format") == "sse"


class _PassedEvent(msgspec.Struct, gc=False):
    type: str = ""
    usage: OpenAIUsage | None = None
    error: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_PassedEvent)


class PassedReader(EventReader):
    """Reads streams of pictures, speech and transcripts: any events, the last ones named `….done` or `….completed`."""

    __slots__ = ()
    terminator = b""

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, _ = event
        if data is None or data[:6] == b"[DONE]":
            return raw
        try:
            told = _EVENT.decode(data)
        except msgspec.ValidationError:
            self._begun = True
            return raw
        except JsonError:
            step.failure = unreadable("an event is not JSON")
            return b""
        if told.type == "error" or (told.error and bytes(told.error) != b"null"):
            return self._fail(data, step)
        self._begun = True
        if told.usage is not None:
            self.usage = told.usage.read() or self.usage
        if told.type.endswith((".done", ".completed")):
            self.finish_reason = "stop"
        return raw
