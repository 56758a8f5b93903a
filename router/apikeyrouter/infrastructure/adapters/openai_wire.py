"""OpenAI's dialect: chat, completions, embeddings and responses, in bytes. Facts: `providers.md` §1–3 and §5."""

import os
import time
from collections.abc import Callable, Mapping

import msgspec

from apikeyrouter.domain.interfaces.wire import Headers, ParsedRequest, StreamDelta, StreamReader, UpstreamRequest
from apikeyrouter.domain.models.accounting import LimitKind, Metric, Observation
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters import failure_table, openai_content
from apikeyrouter.infrastructure.adapters.forwarding import FIXED, forwarded, safe_query
from apikeyrouter.infrastructure.adapters.json_body import (
    JsonError,
    decode,
    read_flag,
    read_members,
    read_text,
    read_whole,
    read_word,
    splice,
)
from apikeyrouter.infrastructure.adapters.openai_stream import OpenAIStream, ResponsesStream, read_deltas
from apikeyrouter.infrastructure.adapters.retry_hints import duration_us
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage

BASE_URL = "https://api.openai.com/v1"
"""Includes `/v1`, as the SDK's OPENAI_BASE_URL does."""

PATHS = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embedding": "/embeddings",
    "responses": "/responses",
}
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
OBSERVED_MAX = 2**53 - 1


class _Content(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""
    refusal: str = ""


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Content] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Output(msgspec.Struct, gc=False):
    type: str = ""
    content: list[_Content] | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    output: list[_Output] | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None


class _UsageOnly(msgspec.Struct, gc=False):
    usage: OpenAIUsage | None = None
    service_tier: str | None = None


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_USAGE = msgspec.json.Decoder(_UsageOnly)
_OPTIONS = msgspec.json.Decoder(_StreamOptions | None)
_OPTION_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_TRUE = msgspec.Raw(b"true")


class OpenAIWire:
    """OpenAI and servers that speak its dialect. Implements the `Wire` port.

    Args:
        base_url: with `/v1`; absent: OPENAI_BASE_URL, then OpenAI's own.
        provider_id: selects the rows of the failure table and the period of `requests` headers (Groq's is a day).
        inject_usage: ask for the usage chunk when the client did not (some servers refuse unknown `stream_options`).
        cap_member: member for a token cap in chat when the client gave none.
        organization, project: sent as `openai-organization` and `openai-project`.
        now: Unix seconds, for dates in answers.
    """

    meters_output_cap = True
    """Tokens a minute are charged with the output cap at arrival (`providers.md` §1.2)."""
    dialect = "openai"

    def __init__(
        self,
        base_url: str | None = None,
        provider_id: str = "openai",
        *,
        inject_usage: bool = True,
        cap_member: str = "max_completion_tokens",
        organization: str | None = None,
        project: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or BASE_URL).rstrip("/")
        self.provider_id = provider_id
        self._inject_usage = inject_usage
        self._cap_member = cap_member
        self._now = now
        self._urls = {operation: self.base_url + path for operation, path in PATHS.items()}
        named = (("openai-organization", organization), ("openai-project", project))
        self._fixed = FIXED + tuple((name, value) for name, value in named if value)
        daily = provider_id == "groq"
        self._requests = ("rpd", DAY_US) if daily else ("rpm", MINUTE_US)

    def parse(self, body: bytes, *, operation: str = "chat") -> ParsedRequest:
        """Read a client's body once. Raises InvalidRequestError that names the field."""
        if operation not in PATHS:
            raise InvalidRequestError(f"{operation!r} is not one of {', '.join(PATHS)}", field="operation")
        fields = read_members(body)
        model = read_text(fields, "model")
        stream = read_flag(fields, "stream")
        cap = _output_cap(fields, operation)
        if operation == "chat":
            size = openai_content.measure_chat(fields)
            choices = openai_content.choices_of(fields)
        else:
            size, choices = _measure_other(fields, operation)
        return ParsedRequest(
            model=model,
            stream=stream,
            choices=choices,
            max_output_tokens=cap,
            input_bytes=size.raw if size.raw > 0 else 0,
            messages=size.messages,
            extra_tokens=size.extra,
            unbounded=size.unbounded,
            include_usage=_asks_for_usage(fields),
            fields=fields,
            text_bytes=size.text,
            media=size.media,
            extra_output_tokens=size.output,
            service_tier=read_word(fields, "service_tier") if "service_tier" in fields else None,
            body=body,
        )

    def build(
        self,
        parsed: ParsedRequest,
        *,
        operation: str,
        model: str,
        token_cap: int | None,
        key: str,
        headers: Headers = (),
        path_query: str = "",
    ) -> UpstreamRequest:
        """The request to send. Edits: model, `stream_options.include_usage`, token cap, credentials, headers."""
        edits: dict[str, bytes | None] = {}
        if model != parsed.model:
            edits["model"] = msgspec.json.encode(model)
        if parsed.stream and self._inject_usage and not parsed.include_usage and operation in ("chat", "completion"):
            edits["stream_options"] = _with_usage(parsed.fields.get("stream_options"))
        if token_cap is not None and (parsed.max_output_tokens is None or token_cap < parsed.max_output_tokens):
            self._cap(edits, parsed.fields, operation, token_cap)
        url = self._urls[operation]
        return UpstreamRequest(
            method="POST",
            url=url + safe_query(path_query) if path_query else url,
            headers=(*self._fixed, ("authorization", "Bearer " + key), *forwarded(headers)),
            body=splice(parsed.body, parsed.fields, edits),
        )

    def _cap(self, edits: dict[str, bytes | None], fields: Mapping[str, bytes], operation: str, token_cap: int) -> None:
        value = b"%d" % token_cap
        if operation == "responses":
            edits["max_output_tokens"] = value
        elif operation == "completion":
            edits["max_tokens"] = value
        elif operation == "chat":
            given = [name for name in ("max_tokens", "max_completion_tokens") if _is_given(fields, name)]
            for name in given or (self._cap_member,):
                edits[name] = value

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none or the bytes are no answer."""
        try:
            answer = _USAGE.decode(body)
        except JsonError:
            return None
        return answer.usage.read(answer.service_tier) if answer.usage is not None else None

    def read_answer(self, body: bytes) -> tuple[str, str | None]:
        """(text, finish_reason) of a complete answer; ("", None) when the bytes are no answer."""
        try:
            answer = _ANSWER.decode(body)
        except JsonError:
            return "", None
        if answer.choices:
            choice = answer.choices[0]
            return _text_of(choice), choice.finish_reason
        if answer.output is not None:
            return _output_text(answer.output), _responses_finish(answer)
        return "", None

    def stream(self, *, hide_usage: bool, operation: str = "chat") -> StreamReader:
        """A reader for one stream."""
        if operation == "responses":
            return ResponsesStream(self.classify)
        return OpenAIStream(self.classify, hide_usage=hide_usage)

    def read_deltas(self, events: bytes) -> list[StreamDelta]:
        """What whole events add to the answer."""
        return read_deltas(events)

    def classify(
        self, status: int, headers: Mapping[str, str], body: bytes, *, known_secrets: tuple[str, ...] = ()
    ) -> Failure:
        """What an error answer means. Total."""
        return failure_table.classify(
            failure_table.OPENAI_TABLE,
            status,
            headers,
            body,
            now_us=int(self._now() * 1e6),
            provider=self.provider_id,
            known_secrets=known_secrets,
        )

    def observe(self, headers: Mapping[str, str]) -> list[Observation]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; negatives and nonsense are ignored (Azure: −1)."""
        found: list[Observation] = []
        if "x-ratelimit-remaining-requests" in headers or "x-ratelimit-limit-requests" in headers:
            name, period_us = self._requests
            _observe(found, headers, "requests", name, Metric.REQUESTS, period_us)
        if "x-ratelimit-remaining-tokens" in headers or "x-ratelimit-limit-tokens" in headers:
            _observe(found, headers, "tokens", "tpm", Metric.TOKENS, MINUTE_US)
        return found

    def organization(self, headers: Mapping[str, str]) -> str | None:
        """The organisation, with the project when the answer names one: together they are the quota group."""
        organization = headers.get("openai-organization")
        project = headers.get("openai-project")
        if organization and project:
            return f"{organization}/{project}"
        return organization or project or None

    def error_body(
        self,
        *,
        status: int,
        type: str,
        code: str,
        message: str,
        request_id: str,
    ) -> bytes:
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
        if operation == "responses":
            event = {"type": "error", "code": code or type, "message": message, "param": None, "sequence_number": 0}
            return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
        body = self.error_body(status=status, type=type, code=code, message=message, request_id=request_id)
        return b"data: " + body + b"\n\n"


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


def _text_of(choice: _Choice) -> str:
    if choice.message is None:
        return choice.text or ""
    content = choice.message.content
    if isinstance(content, list):
        return "".join([part.text for part in content])
    return content or ""


def _output_text(output: list[_Output]) -> str:
    return "".join([part.text for item in output for part in item.content or () if item.type == "message"])


def _responses_finish(answer: _Answer) -> str | None:
    if answer.incomplete_details is not None and answer.incomplete_details.reason is not None:
        return answer.incomplete_details.reason
    return answer.status


def _observe(
    found: list[Observation], headers: Mapping[str, str], what: str, name: str, metric: Metric, period_us: int
) -> None:
    limit = _count(headers.get("x-ratelimit-limit-" + what))
    remaining = _count(headers.get("x-ratelimit-remaining-" + what))
    if limit is None and remaining is None:
        return
    reset_us = duration_us(headers.get("x-ratelimit-reset-" + what, "")) or 0
    found.append(
        Observation(
            name=name,
            metric=metric,
            kind=LimitKind.BUCKET,
            period_us=period_us,
            limit=limit or 0,
            remaining=remaining,
            reset_us=min(reset_us, DAY_US),
        )
    )


def _count(text: str | None) -> int | None:
    """A non-negative count; None for absent, negative, fractional or absurd ones."""
    if text is None or len(text) > 16 or not (text.isascii() and text.isdigit()):
        return None
    value = int(text)
    return value if value <= OBSERVED_MAX else None
