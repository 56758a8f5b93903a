"""What passes between the data plane and a provider family's dialect: plain slotted data, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.usage import Usage

Headers = Sequence[tuple[str, str]]
"""Header names in lower case."""


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The few fields routing needs from a client's body, read once.

    `fields` holds the top-level members still encoded (name → JSON bytes), so that an edit splices, not re-serialises.
    `input_bytes` is the UTF-8 length of all text that the provider will count; `extra_tokens` a flat allowance for
    images and the like (upper bound); `unbounded` True when it has no upper bound on its input (e.g. a file id or URL),
    `within_context` when the model's context still is one (a stored conversation; not the tools of a provider).
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
    within_context: bool = False
    text_bytes: int = 0
    media: int = 0
    extra_output_tokens: int = 0
    service_tier: str | None = None
    body: bytes = b""
    content_type: str = ""
    """Of the body, where it is not JSON."""
    opaque: bool = False
    """Whether its answer may be anything: pictures, sound, text; then its length says nothing about what it costs."""
    resource: str = ""
    """What was made before and is asked about: its id in the path."""
    stated: tuple[int, int, int | None, int | None] | None = None
    """Where there is no body: expected input and output tokens, and the bounds of both (None: there is none)."""


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What goes to the provider."""

    method: str
    url: str
    headers: Headers
    body: bytes


class StreamStep(msgspec.Struct, kw_only=True, gc=False):
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
    """What one event of a stream adds to the (first) answer, in the words of chat.

    `tool_calls`: pieces as chat streams them, `{"index", "id", "type", "function": {"name", "arguments"}}`: the first
    piece of a call has its id and name, all of them some text of the arguments.
    """

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete answer in the words of chat, whatever the dialect. Empty where the bytes were none.

    `tool_calls` as chat has them, arguments as JSON text. `embeddings` of an embedding, in the order of its inputs.
    """

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    id: str = ""
    embeddings: tuple[list[float], ...] = ()
