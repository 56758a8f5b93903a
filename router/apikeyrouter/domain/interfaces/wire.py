"""The wire port: what the data plane asks of a provider family whose dialect it speaks.

Everything here is pure and synchronous: bytes and headers in, facts or bytes out. I/O belongs to the HTTP transport.
One file per provider family implements it (`infrastructure/adapters/`); nothing above ever names a provider.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from apikeyrouter.domain.models.accounting import Observation
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer, Headers, ParsedRequest, StreamDelta, StreamStep, UpstreamRequest

__all__ = [
    "Answer",
    "DeltaReader",
    "Headers",
    "ParsedRequest",
    "StreamDelta",
    "StreamReader",
    "StreamStep",
    "UpstreamRequest",
    "Wire",
]


class StreamReader(Protocol):
    """Reads one stream incrementally; keeps no more than the current event. `finish_reason` in the words of chat."""

    usage: Usage | None
    finish_reason: str | None
    output_bytes: int

    def feed(self, chunk: bytes) -> StreamStep:
        """Read bytes as they come, split anywhere."""
        ...

    def end(self) -> StreamStep:
        """The provider closed the connection. A `failure` here means truncation."""
        ...


class DeltaReader(Protocol):
    """Reads whole events of one stream as what they add to the answer; numbers tool calls from 0."""

    def read(self, events: bytes) -> list[StreamDelta]:
        """What these events add. Never raises; what cannot be read adds nothing."""
        ...


class Wire(Protocol):
    """A provider family's dialect."""

    dialect: str
    base_url: str
    operations: frozenset[str]
    """What it can be asked for."""

    def parse(self, body: bytes, *, operation: str, model: str = "") -> ParsedRequest:
        """Read a client's body. `model`: the one that the path names, in dialects that have it there.

        Raises InvalidRequestError that names the field.
        """
        ...

    def credentials(self, key: str) -> tuple[tuple[str, str], ...]:
        """The headers that carry a key."""
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

    def models_url(self) -> str:
        """Where models are listed, which costs nothing: for health checks."""
        ...

    def check_headers(self, key: str) -> Headers:
        """What a health check of a key sends along: credentials, and whatever the provider demands."""
        ...

    def read_usage(self, body: bytes) -> Usage | None:
        """Usage of a complete answer; None when it has none."""
        ...

    def read_answer(self, body: bytes, decoded: Mapping[str, Any] | None = None) -> Answer:
        """A complete answer in the words of chat; an empty one when the bytes are none.

        `decoded`: the body as JSON, where somebody has read it already.
        """
        ...

    def stream(self, *, hide_usage: bool, operation: str = "chat") -> StreamReader:
        """A reader for one stream. `hide_usage`: the client did not ask for the usage chunk."""
        ...

    def deltas(self, *, operation: str = "chat") -> DeltaReader:
        """A reader of what the events in `StreamStep.out` add to one answer: for callers that want text, not bytes."""
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

    def error_body(self, *, status: int, type: str, code: str, message: str, request_id: str) -> bytes:
        """Our own error in this dialect."""
        ...

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
        """Our own error inside a stream of this dialect, framed."""
        ...
