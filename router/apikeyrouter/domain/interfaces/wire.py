"""The wire port: what the data plane asks of a provider family whose dialect it speaks.

Everything here is pure and synchronous: bytes and headers in, facts or bytes out. I/O belongs to the HTTP transport.
One file per provider family implements it (`infrastructure/adapters/`); nothing above ever names a provider.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from apikeyrouter.domain.models.accounting import Observation
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.usage import Usage

Headers = Sequence[tuple[str, str]]
"""Header names in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """The few fields routing needs from a client's body, read once.

    `fields` holds the top-level members still encoded (name → JSON bytes), so that an edit splices, not re-serialises.
    `input_bytes` is the UTF-8 length of all text that the provider will count; `extra_tokens` a flat allowance for
    images and the like (upper bound); `unbounded` True when no upper bound on input exists (e.g. a file id or URL).
    `text_bytes` is the tighter count of decoded text, the base of the expected (not the bound) estimate; `media` the
    number of images, sounds and files; `extra_output_tokens` what may be billed as output beyond the token cap
    (predicted outputs). `service_tier` is the tier asked for, where it changes the price. `body` is the client's body
    as it came.
    """

    model: str
    stream: bool
    choices: int
    max_output_tokens: int | None
    input_bytes: int
    messages: int
    extra_tokens: int
    unbounded: bool
    include_usage: bool
    fields: Mapping[str, bytes]
    """Values are bytes-like (`msgspec.Raw`): `bytes(value)` gives the JSON text."""
    text_bytes: int = 0
    media: int = 0
    extra_output_tokens: int = 0
    service_tier: str | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRequest:
    """What goes to the provider."""

    method: str
    url: str
    headers: Headers
    body: bytes


@dataclass(slots=True, kw_only=True)
class StreamStep:
    """What one chunk of a provider's stream means.

    `out`: bytes to pass on (may be empty). `substantive`: from here on the answer has begun, failover is over.
    `failure`: an error event arrived in the stream. `done`: the dialect's terminator was seen.
    """

    out: bytes = b""
    substantive: bool = False
    failure: Failure | None = None
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDelta:
    """What one event of a stream adds to the answer. `tool_calls` is the dialect's own JSON, still encoded."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: bytes = b""
    finish_reason: str | None = None


class StreamReader(Protocol):
    """Reads one stream incrementally; keeps no more than the current event."""

    usage: Usage | None
    finish_reason: str | None
    output_bytes: int

    def feed(self, chunk: bytes) -> StreamStep:
        """Read bytes as they come, split anywhere."""
        ...

    def end(self) -> StreamStep:
        """The provider closed the connection. A `failure` here means truncation."""
        ...


class Wire(Protocol):
    """A provider family's dialect."""

    dialect: str
    base_url: str

    def parse(self, body: bytes, *, operation: str) -> ParsedRequest:
        """Read a client's body. Raises InvalidRequestError that names the field."""
        ...

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
        """The request to send: credentials, model, usage switch and token cap edited in, all else as it came."""
        ...

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none."""
        ...

    def read_answer(self, body: bytes) -> tuple[str, str | None]:
        """(text, finish_reason) of a complete answer."""
        ...

    def stream(self, *, hide_usage: bool, operation: str = "chat") -> StreamReader:
        """A reader for one stream. `hide_usage`: the client did not ask for the usage chunk."""
        ...

    def read_deltas(self, events: bytes) -> list[StreamDelta]:
        """What the whole events in a `StreamStep.out` add to the answer: for callers that want text, not bytes."""
        ...

    def classify(
        self, status: int, headers: Mapping[str, str], body: bytes, *, known_secrets: tuple[str, ...] = ()
    ) -> Failure:
        """What an error answer means and at which scope. Never raises, whatever the bytes.

        `known_secrets`: key material in use, which the message must not repeat, whatever it looks like.
        """
        ...

    def observe(self, headers: Mapping[str, str]) -> list[Observation]:
        """Rate-limit headers of an answer as observations; empty when there are none or they are nonsense."""
        ...

    def organization(self, headers: Mapping[str, str]) -> str | None:
        """The organisation an answer reveals, e.g. `openai-organization`."""
        ...

    def error_body(self, *, status: int, type: str, code: str, message: str, request_id: str) -> bytes:  # noqa: A002
        """Our own error in this dialect."""
        ...

    def error_event(
        self,
        *,
        type: str,  # noqa: A002
        code: str,
        message: str,
        request_id: str,
        operation: str = "chat",
        status: int = 500,
    ) -> bytes:
        """Our own error inside a stream of this dialect, framed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResponse:
    """Status and headers of an answer; names in lower case, last one wins."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
