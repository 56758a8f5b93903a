"""The simulator's tokenizer, and the text it answers with.

Rule: a prompt is ``3 + 4 per message + ceil(UTF-8 bytes / 4)`` tokens, and 765 for each image and 1,000 for each
file or audio part. Tool definitions count by the bytes of their JSON. An answer of N tokens is exactly 4 × N bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

__all__ = ["BYTES_PER_TOKEN", "Markers", "compose", "read_markers", "slices", "text_bytes", "tokens_of_bytes"]

BYTES_PER_TOKEN = 4
TOKENS_PER_PROMPT = 3
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 765
TOKENS_PER_FILE = 1_000
_ECHO_CHARACTERS_MAX = 400

_MARKER = re.compile(r"\[\[(fail_once|fail|tokens|tool):?([^\]]*)\]\]")


class Markers(NamedTuple):
    """What a prompt asks for: ``[[fail:NAME]]``, ``[[fail_once:NAME:ID]]``, ``[[tokens:N]]``, ``[[tool]]``."""

    text: str
    fail: str | None = None
    fail_once: str | None = None
    tokens: int | None = None
    tool: bool = False


def read_markers(text: str) -> Markers:
    """The markers of a prompt, and its text without them. The last marker of a kind wins."""
    if "[[" not in text:
        return Markers(text)
    found = dict(_MARKER.findall(text))
    tokens = found.get("tokens", "")
    return Markers(
        text=_MARKER.sub("", text).strip(),
        fail=found.get("fail"),
        fail_once=found.get("fail_once"),
        tokens=int(tokens) if tokens.isdecimal() else None,
        tool="tool" in found,
    )


def text_bytes(text: str) -> int:
    """The UTF-8 length of ``text``."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of_bytes(size: int) -> int:
    """How many tokens ``size`` bytes of text are."""
    return -(-size // BYTES_PER_TOKEN)


@lru_cache(maxsize=512)
def compose(prompt: str, tokens: int) -> str:
    """An answer to ``prompt`` of exactly ``tokens`` tokens: it echoes, then goes on; always the same for the same."""
    size = tokens * BYTES_PER_TOKEN
    phrase = f"You said: {prompt[:_ECHO_CHARACTERS_MAX]} "
    whole = phrase * (size // text_bytes(phrase) + 1)
    if whole.isascii():
        return whole[:size]
    cut = whole.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")
    return cut + "." * (size - text_bytes(cut))


def slices(text: str, *, tokens_per_slice: int) -> Iterator[tuple[str, int]]:
    """Cut an answer into stream deltas: (text, tokens so far), never inside a character."""
    size = tokens_per_slice * BYTES_PER_TOKEN
    if text.isascii():
        for end in range(size, len(text) + size, size):
            yield text[end - size : end], tokens_of_bytes(min(end, len(text)))
        return
    held, sent = "", 0
    for character in text:
        held += character
        if text_bytes(held) >= size:
            sent += text_bytes(held)
            yield held, tokens_of_bytes(sent)
            held = ""
    if held:
        yield held, tokens_of_bytes(sent + text_bytes(held))
