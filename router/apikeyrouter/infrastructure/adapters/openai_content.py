"""What an OpenAI request makes the provider count: bytes of text, images, sounds, and what no bound exists for.

The bound rests on byte-level tokenizers: a token is at least one byte of UTF-8, and JSON is never shorter than what
it encodes (`\\u00e9` is six bytes for two). The scaffold of a message (`{"role":…}`) exceeds its control tokens.
"""

from dataclasses import dataclass

import msgspec

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import JsonError, decode, read_whole, refuse

IMAGE_TOKENS_MAX = 48_169
"""Most tokens one image costs at OpenAI: gpt-4o-mini in high detail, 2,833 + 8 tiles × 5,667 (vision guide; K). The
patch-counting models stay below: 10,000 patches × 2.46. An image by URL is scaled likewise, so it is bounded too."""

AUDIO_BYTES_PER_TOKEN = 16
"""Least base64 bytes behind one audio token: MP3 at 8 kbit/s, the lowest rate there is, is 1,365 base64 bytes and 10
tokens a second (audio guide; K); eight times that is allowed for."""

TOOLS_TOKENS_MAX = 1024
"""Allowance for the provider's own text around tool definitions."""

PARTS_DEPTH_MAX = 4

CHOICES_MAX = 128
"""Largest `n` at OpenAI (API reference)."""

UNCOUNTED = frozenset(
    {
        "model", "stream", "stream_options", "temperature", "top_p", "n", "best_of", "max_tokens",
        "max_completion_tokens", "max_output_tokens", "presence_penalty", "frequency_penalty", "seed", "user",
        "metadata", "store", "service_tier", "logprobs", "top_logprobs", "parallel_tool_calls", "reasoning_effort",
        "modalities", "audio", "prompt_cache_key", "safety_identifier", "verbosity", "logit_bias", "dimensions",
        "encoding_format", "truncation", "include", "background", "max_tool_calls", "messages", "input",
    }
)  # fmt: skip
"""Members that are no input text, and `messages` and `input`, which are measured part by part."""

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})
_IMAGE_PARTS = frozenset({"image_url", "input_image", "computer_screenshot"})
_BOUNDED_ITEMS = frozenset(
    {
        "message", "reasoning", "function_call", "function_call_output", "custom_tool_call",
        "custom_tool_call_output", "local_shell_call", "local_shell_call_output", "apply_patch_call",
        "apply_patch_call_output", "shell_call", "shell_call_output", "computer_call", "computer_call_output",
    }
)  # fmt: skip
_BOUNDED_TOOLS = frozenset({"function", "custom", "local_shell", "apply_patch"})


class Part(msgspec.Struct, gc=False):
    """A content part. Only what decides its size is looked at."""

    type: str = ""
    text: str = ""
    image_url: msgspec.Raw = msgspec.Raw()
    file_id: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()


class Message(msgspec.Struct, gc=False):
    """A chat message. Only what decides its size is looked at."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()


class Item(msgspec.Struct, gc=False):
    """An input item of the Responses API."""

    type: str = "message"
    content: str | list[Part] | None = None
    output: str | list[Part] | Part | None = None
    arguments: msgspec.Raw = msgspec.Raw()


class _Tool(msgspec.Struct, gc=False):
    type: str = "function"


_MESSAGES = msgspec.json.Decoder(list[Message])
_ITEMS = msgspec.json.Decoder(str | list[Item])
_TOOLS = msgspec.json.Decoder(list[_Tool] | None)


@dataclass(slots=True)
class Measure:
    """Running totals. `raw`: bytes for the bound; `text`: decoded bytes for the expected estimate. `unbounded`: what is
    here does not bound the input; `open_ended`: the model's context does not, either."""

    raw: int = 0
    text: int = 0
    messages: int = 0
    media: int = 0
    extra: int = 0
    output: int = 0
    unbounded: bool = False
    open_ended: bool = False

    def add_text(self, text: str) -> None:
        """Decoded text, already part of `raw`."""
        self.text += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def add_image(self, raw_bytes: int, tokens: int) -> None:
        """An image whose bytes do not count, only its size in pixels."""
        self.raw -= raw_bytes
        self.media += 1
        self.extra += tokens


def measure_chat(fields: dict[str, bytes]) -> Measure:
    """Size of a chat request. Raises InvalidRequestError naming the wrong part."""
    raw = fields.get("messages")
    if raw is None:
        raise InvalidRequestError("is required", field="messages")
    messages: list[Message] = decode(_MESSAGES, raw, "messages")
    if not messages:
        raise InvalidRequestError("must not be empty", field="messages")
    total = Measure(raw=len(raw), messages=len(messages))
    for message in messages:
        content = message.content
        if isinstance(content, str):
            total.text += len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
        elif content is not None:
            _add_parts(total, content)
        if message.tool_calls or message.function_call:
            total.text += len(message.tool_calls) + len(message.function_call)
        if message.audio:
            total.unbounded = total.open_ended = True
    _add_members(total, fields)
    if "web_search_options" in fields:
        total.unbounded = total.open_ended = True
    return total


def measure_responses(fields: dict[str, bytes]) -> Measure:
    """Size of a Responses request; what refers to stored state or lets the provider fetch has no bound."""
    total = Measure(messages=1)
    raw = fields.get("input")
    if raw is not None:
        items = decode(_ITEMS, raw, "input")
        total.raw = len(raw)
        if isinstance(items, str):
            total.add_text(items)
        else:
            total.messages = len(items)
            for item in items:
                _add_item(total, item)
    _add_members(total, fields)
    if _given(fields, "previous_response_id") or _given(fields, "conversation"):
        total.unbounded = True
    if _given(fields, "prompt"):  # what is kept there may have tools
        total.unbounded = total.open_ended = True
    return total


def measure_completion(fields: dict[str, bytes]) -> Measure:
    """Size of a legacy completion: `prompt` is text, texts, tokens, or lists of tokens (a token takes ≥ 2 bytes)."""
    return _measure_texts(fields, "prompt", needed=False)


def measure_embedding(fields: dict[str, bytes]) -> Measure:
    """Size of an embedding request."""
    total = _measure_texts(fields, "input", needed=True)
    total.output = 0
    return total


def prompts_of(fields: dict[str, bytes]) -> int:
    """How many prompts a legacy completion carries; each has its own choices."""
    raw = fields.get("prompt")
    if raw is None:
        return 1
    prompt = _texts(raw, "prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _texts(raw: bytes, name: str) -> str | list[str] | list[int] | list[list[int]]:
    try:
        value = msgspec.json.decode(raw)
    except JsonError as exc:
        refuse(name, exc)
    if isinstance(value, str) or (isinstance(value, list) and value and _same_kind(value)):
        return value
    raise InvalidRequestError("expected text, a list of texts, or tokens", field=name)


def _same_kind(values: list[object]) -> bool:
    return all(isinstance(v, str) for v in values) or all(
        (isinstance(v, int) and not isinstance(v, bool)) or isinstance(v, list) for v in values
    )


def _measure_texts(fields: dict[str, bytes], name: str, *, needed: bool) -> Measure:
    raw = fields.get(name)
    if raw is None:
        if needed:
            raise InvalidRequestError("is required", field=name)
        return Measure(messages=1)
    texts = _texts(raw, name)
    total = Measure(raw=len(raw), messages=1)
    if isinstance(texts, str):
        total.add_text(texts)
    else:
        total.messages = len(texts) if isinstance(texts[0], str) else 1
        for text in texts:
            if isinstance(text, str):
                total.add_text(text)
            else:
                total.text += 4 if isinstance(text, int) else 4 * len(text)
    for other in ("suffix",):
        total.raw += len(fields.get(other, b""))
    return total


def _add_members(total: Measure, fields: dict[str, bytes]) -> None:
    for name, raw in fields.items():
        if name not in UNCOUNTED:
            total.raw += len(raw)
            total.text += len(raw)
    tools = fields.get("tools")
    if tools is not None:
        total.extra += TOOLS_TOKENS_MAX
        listed = decode(_TOOLS, tools, "tools")
        if any(tool.type not in _BOUNDED_TOOLS for tool in listed or ()):
            total.unbounded = total.open_ended = True
    prediction = fields.get("prediction")
    if prediction is not None:
        total.output += len(prediction)


def _add_item(total: Measure, item: Item) -> None:
    if item.type not in _BOUNDED_ITEMS:
        total.unbounded = True
    for value in (item.content, item.output):
        if isinstance(value, str):
            total.add_text(value)
        elif isinstance(value, list):
            _add_parts(total, value)
        elif value is not None:
            _add_parts(total, [value])
    total.text += len(item.arguments)


def _add_parts(total: Measure, parts: list[Part]) -> None:
    for part in parts:
        kind = part.type
        if kind in _TEXT_PARTS:
            total.add_text(part.text)
        elif kind in _IMAGE_PARTS and not part.file_id:
            total.add_image(len(part.image_url), IMAGE_TOKENS_MAX)
        elif kind == "input_audio":
            size = len(part.input_audio)
            total.add_image(size, size // AUDIO_BYTES_PER_TOKEN + 64)
        elif kind in _IMAGE_PARTS:
            total.add_image(0, IMAGE_TOKENS_MAX)
        else:
            total.media += 1
            total.unbounded = True


def choices_of(fields: dict[str, bytes]) -> int:
    """How many answers are asked for: `n`, or `best_of` where it is larger."""
    if "n" not in fields and "best_of" not in fields:
        return 1
    asked = read_whole(fields, "n", least=1, most=CHOICES_MAX) if "n" in fields else None
    tried = read_whole(fields, "best_of", least=1, most=CHOICES_MAX) if "best_of" in fields else None
    return max(asked or 1, tried or 1)


def _given(fields: dict[str, bytes], name: str) -> bool:
    raw = fields.get(name)
    return raw is not None and bytes(raw) != b"null"
