"""What every dialect shares: a request understood, an answer to send, a frame of a stream, a plain reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import msgspec

from apikeyrouter.simulator.config import DialectName
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.organisations import Denial, Key, Organisation
from apikeyrouter.simulator.prices import Usage
from apikeyrouter.simulator.tokens import (
    BYTES_PER_TOKEN,
    TOKENS_PER_MESSAGE,
    TOKENS_PER_PROMPT,
    Markers,
    compose,
    tokens_of_bytes,
)

__all__ = ["Call", "Context", "Dialect", "Frame", "InvalidRequest", "Prompt", "Reply", "ToolUse", "encode", "make_id"]

encode = msgspec.json.Encoder().encode
OUTPUT_TOKENS_MAX = 1_000_000
WITHOUT_OUTPUT = frozenset({"embeddings", "moderations", "rerank"})
"""Endpoints that bill no output."""
JSON_HEADER = "content-type: application/json\r\n"
_MASK = 2**64 - 1


class Reply(NamedTuple):
    """A whole answer: status, body, and header lines of its own (each with CRLF)."""

    status: int
    body: bytes
    headers: str = JSON_HEADER


class InvalidRequest(Exception):
    """The request is the caller's mistake; the message says which. :meth:`Dialect.invalid` makes the reply."""


class Frame(NamedTuple):
    """One piece of a stream. ``tokens``: output tokens produced up to and including it; ``content``: carries output."""

    data: bytes
    tokens: int
    content: bool = False


class ToolUse(NamedTuple):
    """A tool that the answer calls: name and JSON arguments."""

    name: str
    arguments: str


class Prompt(NamedTuple):
    """The size of a prompt by the simulator's tokenizer (see ``tokens.py``)."""

    size: int
    messages: int
    flat_tokens: int

    def tokens(self) -> int:
        """Input tokens."""
        return TOKENS_PER_PROMPT + TOKENS_PER_MESSAGE * self.messages + tokens_of_bytes(self.size) + self.flat_tokens


@dataclass(slots=True)
class Call:
    """A generation request understood, and the answer planned by :meth:`plan`. Token counts are exact.

    ``thoughts`` are output tokens that nobody sees, ``style`` a dialect's own variety of the answer. ``cap`` is the
    caller's limit of output tokens per choice; ``prefix`` identifies the cacheable start of the prompt; ``form`` is the
    text of an answer whose structure was demanded (``[[tokens:N]]`` in the prompt breaks it).
    ``previous``: the response that this one goes on from; ``stored``: whether this one can be gone on from.
    """

    endpoint: str
    model: str
    input_tokens: int
    markers: Markers
    stream: bool = False
    cap: int | None = None
    choices: int = 1
    include_usage: bool = False
    tool: ToolUse | None = None
    prefix: tuple[str, str] | None = None
    prefix_tokens: int = 0
    form: str = ""
    text: str = ""
    output_per_choice: int = 0
    stop: str = "end"
    thoughts: int = 0
    answer_type: str = "application/json"
    previous: str = ""
    stored: bool = False
    style: Literal["", "sse", "array", "batch"] = ""
    usage: Usage = field(default=Usage(0))

    @property
    def output_tokens(self) -> int:
        """Output tokens of all choices."""
        return self.output_per_choice * self.choices

    def plan(self, natural_tokens: int) -> None:
        """Decide the answer: as long as natural, never above the cap; ``stop`` becomes end, length or tool."""
        if self.endpoint in WITHOUT_OUTPUT:
            return
        wanted = self.markers.tokens or natural_tokens
        fixed = ("" if self.markers.tokens else self.form) if self.tool is None else self.tool.arguments
        if fixed:
            wanted = max(1, tokens_of_bytes(len(fixed)))
        wanted = min(wanted, OUTPUT_TOKENS_MAX)
        self.output_per_choice = wanted if self.cap is None else min(wanted, self.cap)
        cut = self.output_per_choice < wanted
        self.stop = "length" if cut else "end" if self.tool is None else "tool"
        if fixed:
            self.text = fixed[: self.output_per_choice * BYTES_PER_TOKEN]
        else:
            self.text = compose(self.markers.text, self.output_per_choice)


@dataclass(slots=True)
class Context:
    """Facts of one exchange that answers and errors mention; ``material`` is the key as it was sent."""

    request_id: str
    serial: int
    now_ns: int
    model: str = ""
    key: Key | None = None
    organisation: Organisation | None = None
    material: str = ""


class Dialect(Protocol):
    """How one provider speaks: requests in, answers, streams, headers and errors out."""

    name: DialectName
    paths: frozenset[str]
    """Paths that generate; those with a name in them are known by :meth:`serves` alone."""
    models_path: str

    def serves(self, path: str) -> bool:
        """Whether a path generates."""

    def key_material(self, request: Request) -> str | None:
        """The key that the request carries."""

    def parse(self, request: Request) -> Call:
        """The request understood; raises :class:`InvalidRequest`."""

    def charge_tokens(self, call: Call, organisation: Organisation) -> tuple[int, int]:
        """What the provider charges at arrival: (tokens, input tokens)."""

    def body(self, call: Call, context: Context) -> bytes:
        """The answer that is not streamed."""

    def frames(self, call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
        """The answer streamed, terminator included."""

    def error_frame(self, call: Call, context: Context) -> bytes:
        """An error event in the midst of a stream."""

    def headers(self, context: Context, *, processing_ms: int) -> str:
        """Identity and rate-limit headers, as lines."""

    def denial(self, denial: Denial, context: Context) -> Reply:
        """The answer to an arrival over a limit."""

    def invalid(self, message: str, context: Context) -> Reply:
        """The 400 of a malformed request."""

    def failure(self, name: str, context: Context, *, seconds: float | None) -> Reply | None:
        """The error that the provider sends for failure ``name``; None if it has no such error."""

    def models(self, organisation: Organisation, model_id: str | None, context: Context) -> Reply:
        """The model list, or one model."""


def make_id(prefix: str, serial: int) -> str:
    """An id that looks random and never repeats in one process."""
    return f"{prefix}{serial * 0x9E3779B97F4A7C15 & _MASK:016x}{serial:08x}"
