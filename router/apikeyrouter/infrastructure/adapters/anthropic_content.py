"""What an Anthropic request makes the provider count. The reasons are `openai_content`'s; the sizes are Anthropic's."""

import msgspec

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import decode
from apikeyrouter.infrastructure.adapters.openai_content import PARTS_DEPTH_MAX, Measure

IMAGE_TOKENS_MAX = 5_000
"""Most tokens one image costs: long edge scaled to at most 2,576 px, width × height ÷ 750, 4,784 (vision guide; K)."""

TOOLS_TOKENS_MAX = 2_048
"""Allowance for the tool-use system prompt and the built-in client tools' definitions (bash 245, text editor 700,
computer use ~1,250 tokens: tool-use guide; K)."""

_UNCOUNTED = frozenset(
    {
        "model", "stream", "max_tokens", "temperature", "top_p", "top_k", "metadata", "service_tier", "messages",
        "system", "thinking", "speed", "inference_geo", "cache_control", "stop_sequences",
    }
)  # fmt: skip
_TEXT_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "search_result"})
_RESULT_BLOCKS = frozenset({"tool_result", "mcp_tool_result"})
_BOUNDED_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
"""Tools that run at the client. Server tools (search, fetch, code) let the provider add input by itself."""


class _Source(msgspec.Struct, gc=False):
    """Where an image or document comes from; only its text form counts as bytes."""

    type: str = ""
    data: msgspec.Raw = msgspec.Raw()
    url: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()


class _Tool(msgspec.Struct, gc=False):
    type: str | None = None


class _Block(msgspec.Struct, gc=False):
    """A content block. Only what decides its size is looked at."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    source: _Source | None = None
    content: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Block]


_MESSAGES = msgspec.json.Decoder(list[_Message])
_SYSTEM = msgspec.json.Decoder(str | list[_Block])
_TOOLS = msgspec.json.Decoder(list[_Tool] | None)


def measure_messages(fields: dict[str, bytes]) -> Measure:
    """Size of a Messages request. Raises InvalidRequestError naming the wrong part."""
    raw = fields.get("messages")
    if raw is None:
        raise InvalidRequestError("is required", field="messages")
    messages: list[_Message] = decode(_MESSAGES, raw, "messages")
    if not messages:
        raise InvalidRequestError("must not be empty", field="messages")
    total = Measure(raw=len(raw), messages=len(messages), open_ended=True)  # a header makes the context longer
    for message in messages:
        _add_content(total, message.content)
    system = fields.get("system")
    if system is not None and bytes(system) != b"null":
        total.raw += len(system)
        _add_content(total, decode(_SYSTEM, system, "system"))
    _add_members(total, fields)
    return total


def _add_members(total: Measure, fields: dict[str, bytes]) -> None:
    for name, raw in fields.items():
        if name not in _UNCOUNTED:
            total.raw += len(raw)
            total.text += len(raw)
    tools = fields.get("tools")
    if tools is not None:
        total.extra += TOOLS_TOKENS_MAX
        for tool in decode(_TOOLS, tools, "tools") or ():
            if tool.type is not None and not tool.type.startswith(_BOUNDED_TOOLS):
                total.unbounded = True
    if "mcp_servers" in fields or "container" in fields:
        total.unbounded = True


def _add_content(total: Measure, content: str | list[_Block], depth: int = 0) -> None:
    if isinstance(content, str):
        total.text += len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
        return
    for block in content:
        _add_block(total, block, depth)


def _add_block(total: Measure, block: _Block, depth: int) -> None:
    kind = block.type
    if kind == "text":
        total.add_text(block.text)
    elif kind in _TEXT_BLOCKS:
        total.add_text(block.thinking)
        total.text += len(block.input) + len(block.content)
    elif kind == "image":
        source = block.source
        if source is None or source.type not in ("base64", "url"):
            total.unbounded = True
        else:
            total.add_image(len(source.data) + len(source.url), IMAGE_TOKENS_MAX)
    elif kind == "document" and block.source is not None and block.source.type == "text":
        total.text += len(block.source.data)
    elif kind in _RESULT_BLOCKS and depth < PARTS_DEPTH_MAX:
        _add_result(total, block.content, depth)
    else:
        total.media += 1
        total.unbounded = True


def _add_result(total: Measure, raw: msgspec.Raw, depth: int) -> None:
    if not raw:
        return
    content = decode(_SYSTEM, raw, "messages[].content[].content") if bytes(raw) != b"null" else ""
    _add_content(total, content, depth + 1)
