"""OpenAI's dialect: chat, completions, embeddings and responses, in bytes. Facts: `providers.md` §1–3 and §5."""

import os
import re
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import msgspec

from apikeyrouter.domain.interfaces.wire import Answer, DeltaReader, ParsedRequest, StreamReader
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters import openai_answer, openai_content
from apikeyrouter.infrastructure.adapters.base_wire import BaseWire, parsed_request
from apikeyrouter.infrastructure.adapters.failure_table import OPENAI_TABLE
from apikeyrouter.infrastructure.adapters.forwarding import FIXED
from apikeyrouter.infrastructure.adapters.json_body import decode, read_flag, read_text, read_whole, read_word
from apikeyrouter.infrastructure.adapters.openai_stream import ChatReader, chat_delta
from apikeyrouter.infrastructure.adapters.passed_through import PASSED_PATHS, PassedReader, parse_passed
from apikeyrouter.infrastructure.adapters.profiles import OPENAI, Profile, find_profile
from apikeyrouter.infrastructure.adapters.responses_stream import ResponsesReader, response_delta
from apikeyrouter.infrastructure.adapters.stream_deltas import Deltas

__all__ = ["BASE_URL", "NEW_CAP", "STORED_PATHS", "OpenAIWire"]

BASE_URL = OPENAI.base_url
"""Includes `/v1`, as the SDK's OPENAI_BASE_URL does."""


STORED_PATHS: Mapping[str, str] = MappingProxyType(
    {
        "response": "/responses/{id}",
        "delete_response": "/responses/{id}",
        "cancel_response": "/responses/{id}/cancel",
        "input_items": "/responses/{id}/input_items",
    }
)
"""What can be asked about a response that was made before. All of it is free."""
_RESPONSES = ("responses", "response")
"""Operations whose streams are those of the Responses API."""
NEW_CAP = re.compile(r"^(?:o\d|gpt-[5-9])", re.IGNORECASE)
"""Models that refuse `max_tokens` for `max_completion_tokens` (API reference; K)."""


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


_OPTIONS = msgspec.json.Decoder(_StreamOptions | None)
_OPTION_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_TRUE = msgspec.Raw(b"true")


class OpenAIWire(BaseWire):
    """OpenAI and servers that speak its dialect. Implements the `Wire` port.

    Args:
        base_url: with `/v1`; absent: the profile's own (of OpenAI: OPENAI_BASE_URL first).
        profile: which variety it is (`profiles.py`); absent: told by the host of the URL.
        inject_usage: ask for the usage chunk when the client did not; absent: as the profile says.
        organization, project: sent as `openai-organization` and `openai-project`.
        now: Unix seconds, for dates in answers.

    Raises:
        ConfigurationError: no such profile, or one that has no address of its own and none is given.
    """

    dialect = "openai"
    rows = OPENAI_TABLE
    paths: ClassVar[Mapping[str, str]] = {
        "chat": "/chat/completions",
        "completion": "/completions",
        "embedding": "/embeddings",
        "responses": "/responses",
        **PASSED_PATHS,
        **STORED_PATHS,
    }
    methods: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"response": "GET", "input_items": "GET", "delete_response": "DELETE"}
    )
    caches_unasked = True
    """Long prompts are cached without being asked to (`providers.md` §2.3)."""

    def __init__(
        self,
        base_url: str | None = None,
        profile: str | Profile | None = None,
        *,
        inject_usage: bool | None = None,
        organization: str | None = None,
        project: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        if base_url is None and profile in (None, OPENAI.name):
            base_url = os.environ.get("OPENAI_BASE_URL") or None
        self.profile = profile if isinstance(profile, Profile) else find_profile(profile, base_url)
        address = base_url or self.profile.base_url
        if address is None:
            raise ConfigurationError(f"the profile {self.profile.name!r} needs a base_url")
        super().__init__(address, self.profile.name, now=now)
        self.operations = self.profile.operations
        if "responses" in self.operations:
            self.operations |= STORED_PATHS.keys()
        self.limits = self.profile.limits
        self.meters_output_cap = self.profile.meters_output_cap
        self.cache_reads_are_free = self.profile.free_cache
        self._inject_usage = self.profile.inject_usage if inject_usage is None else inject_usage
        named = (("openai-organization", organization), ("openai-project", project))
        self._fixed = FIXED + tuple((name, value) for name, value in named if value)

    def parse(self, body: bytes, *, operation: str = "chat", model: str = "") -> ParsedRequest:
        """Read a client's body once. Raises InvalidRequestError that names the field."""
        if operation in PASSED_PATHS:
            return parse_passed(body, operation=operation)
        if operation in STORED_PATHS:
            return _about(model)
        fields = self._members(body, operation)
        model = read_text(fields, "model")
        stream = read_flag(fields, "stream")
        cap = _output_cap(fields, operation)
        if operation == "chat":
            size = openai_content.measure_chat(fields)
            choices = openai_content.choices_of(fields)
        else:
            size, choices = _measure_other(fields, operation)
        return parsed_request(
            body,
            fields,
            size,
            model=model,
            stream=stream,
            output_cap=cap,
            choices=choices,
            include_usage=_asks_for_usage(fields),
            service_tier=read_word(fields, "service_tier") if "service_tier" in fields else None,
        )

    def credentials(self, key: str) -> tuple[tuple[str, str], ...]:
        """`Authorization: Bearer`."""
        return (("authorization", "Bearer " + key),)

    def _edits(
        self, parsed: ParsedRequest, operation: str, model: str, token_cap: int | None
    ) -> dict[str, bytes | None]:
        edits: dict[str, bytes | None] = {}
        if model != parsed.model:
            edits["model"] = msgspec.json.encode(model)
        if parsed.stream and self._inject_usage and not parsed.include_usage and operation in ("chat", "completion"):
            edits["stream_options"] = _with_usage(parsed.fields.get("stream_options"))
        if token_cap is not None and (parsed.max_output_tokens is None or token_cap < parsed.max_output_tokens):
            self._cap(edits, parsed.fields, operation, model, token_cap)
        if self.profile.renamed:
            self._rename(edits, parsed.fields)
        return edits

    def _rename(self, edits: dict[str, bytes | None], fields: Mapping[str, bytes]) -> None:
        """Members that this server knows by another name, or refuses although they change no answer."""
        for name, own in self.profile.renamed:
            value = edits.get(name, fields.get(name))
            if value is None:
                continue
            edits[name] = None
            if own is not None and own not in fields:
                edits.setdefault(own, value)

    def _cap(
        self, edits: dict[str, bytes | None], fields: Mapping[str, bytes], operation: str, model: str, token_cap: int
    ) -> None:
        value = b"%d" % token_cap
        if operation == "responses":
            edits["max_output_tokens"] = value
        elif operation == "completion":
            edits["max_tokens"] = value
        elif operation == "chat":
            given = [name for name in ("max_tokens", "max_completion_tokens") if _is_given(fields, name)]
            for name in given or (self._cap_member(model),):
                edits[name] = value

    def _cap_member(self, model: str) -> str:
        return "max_completion_tokens" if NEW_CAP.match(model) else self.profile.cap_member

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none or the bytes are no answer."""
        return openai_answer.read_usage(body, tells_cost=self.profile.tells_cost)

    def read_answer(self, body: bytes, decoded: Mapping[str, Any] | None = None) -> Answer:
        """A complete answer of any operation, its first choice; an empty one when the bytes are none."""
        return openai_answer.read_answer(body, decoded, tells_cost=self.profile.tells_cost)

    def stream(self, *, hide_usage: bool, operation: str = "chat") -> StreamReader:
        """A reader for one stream."""
        if operation in _RESPONSES:
            return ResponsesReader(self.classify)
        if operation in PASSED_PATHS:
            return PassedReader(self.classify)
        return ChatReader(self.classify, hide_usage=hide_usage, tells_cost=self.profile.tells_cost)

    def deltas(self, *, operation: str = "chat") -> DeltaReader:
        """What the events of one stream add to the answer."""
        return Deltas(response_delta if operation in _RESPONSES else chat_delta)

    def organization(self, headers: Mapping[str, str]) -> str | None:
        """The organisation, with the project when the answer names one: together they are the quota group."""
        organization = headers.get("openai-organization")
        project = headers.get("openai-project")
        if organization and project:
            return f"{organization}/{project}"
        return organization or project or None

    def error_body(self, *, status: int, type: str, code: str, message: str, request_id: str) -> bytes:
        """`{"error": {message, type, param, code}}`: all four are required by the specification."""
        return msgspec.json.encode({"error": {"message": message, "type": type, "param": None, "code": code or None}})

    def error_event(
        self,
        *,
        type: str,
        code: str,
        message: str,
        request_id: str,
        operation: str = "chat",
        status: int = 500,
    ) -> bytes:
        """An error inside a stream: `data: {"error":…}`; for responses `event: error` (§3.1)."""
        if operation in _RESPONSES:
            event = {"type": "error", "code": code or type, "message": message, "param": None, "sequence_number": 0}
            return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
        body = self.error_body(status=status, type=type, code=code, message=message, request_id=request_id)
        return b"data: " + body + b"\n\n"


def _about(made_id: str) -> ParsedRequest:
    """A request about what was made before; whoever knows where fills in its model."""
    if not made_id:
        raise InvalidRequestError("is required", field="response_id")
    return ParsedRequest(
        model="", stream=False, choices=1, max_output_tokens=0, input_bytes=0, messages=0, extra_tokens=0,
        unbounded=False, include_usage=True, fields={}, opaque=True, resource=made_id,
    )  # fmt: skip


def _measure_other(fields: dict[str, bytes], operation: str) -> tuple[openai_content.Measure, int]:
    if operation == "responses":
        return openai_content.measure_responses(fields), 1
    if operation == "embedding":
        return openai_content.measure_embedding(fields), 1
    size = openai_content.measure_completion(fields)
    return size, openai_content.choices_of(fields) * openai_content.prompts_of(fields)


def _output_cap(fields: Mapping[str, bytes], operation: str) -> int | None:
    if operation == "embedding":
        return 0
    if operation == "responses":
        return read_whole(fields, "max_output_tokens")
    first = read_whole(fields, "max_tokens") if "max_tokens" in fields else None
    second = read_whole(fields, "max_completion_tokens") if "max_completion_tokens" in fields else None
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)


def _is_given(fields: Mapping[str, bytes], name: str) -> bool:
    raw = fields.get(name)
    return raw is not None and bytes(raw) != b"null"


def _asks_for_usage(fields: Mapping[str, bytes]) -> bool:
    raw = fields.get("stream_options")
    if raw is None:
        return False
    options = decode(_OPTIONS, raw, "stream_options")
    return bool(options and options.include_usage)


def _with_usage(raw: bytes | None) -> bytes:
    if raw is None:
        return b'{"include_usage":true}'
    members = _OPTION_MEMBERS.decode(raw) or {}
    members["include_usage"] = _TRUE
    return msgspec.json.encode(members)
