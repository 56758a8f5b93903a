"""What a request needs, read from each dialect's own body and from an intent alike."""

import json
from typing import Any

import pytest

from apikeyrouter.domain.components.fitness import lacking, needs_of, too_long
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.capabilities import ModelCapabilities, Needs
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire

PNG = "data:image/png;base64,AAAA"
CHAT_IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}
PLAIN = [{"role": "user", "content": "hello"}]
ANTHROPIC_IMAGE = [
    {
        "role": "user",
        "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}}],
    }
]
GEMINI_PLAIN = [{"parts": [{"text": "x"}]}]
WIRES: dict[str, Any] = {
    "openai": OpenAIWire("http://x/v1"), "anthropic": AnthropicWire("http://x"), "gemini": GeminiWire("http://x"),
}  # fmt: skip
BODIES: list[tuple[str, str, dict[str, Any], str]] = [
    ("openai", "chat", {"messages": CHAT_IMAGE}, "vision"),
    ("openai", "chat", {"messages": PLAIN, "tools": [TOOL]}, "tools"),
    ("openai", "chat", {"messages": PLAIN, "response_format": SCHEMA}, "structured_output"),
    ("openai", "chat", {"messages": PLAIN, "tools": []}, ""),
    ("openai", "chat", {"messages": PLAIN, "response_format": {"type": "text"}}, ""),
    ("openai", "responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PNG}]}]},
     "vision"),
    ("openai", "responses", {"input": "hi", "text": {"format": SCHEMA}}, "structured_output"),
    ("anthropic", "messages", {"messages": ANTHROPIC_IMAGE, "max_tokens": 9}, "vision"),
    ("anthropic", "messages", {"messages": PLAIN, "max_tokens": 9, "tools": [{"name": "f"}]}, "tools"),
    ("anthropic", "messages",
     {"messages": PLAIN, "max_tokens": 9, "output_config": {"format": {"type": "json_schema"}}}, "structured_output"),
    ("anthropic", "messages", {"messages": PLAIN, "max_tokens": 9}, ""),
    ("gemini", "generate", {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}]},
     "vision"),
    ("gemini", "generate", {"contents": GEMINI_PLAIN, "tools": [{"functionDeclarations": []}]}, "tools"),
    ("gemini", "generate", {"contents": GEMINI_PLAIN, "generationConfig": {"responseSchema": {}}},
     "structured_output"),
]  # fmt: skip


def wanted(feature: str) -> Needs:
    return Needs(**{feature: True}) if feature else Needs()


def call_of(**fields: Any) -> Call:
    return Call(request_id="r", operation="chat", model="m", stream=False, started=0.0, **fields)


@pytest.mark.parametrize(("dialect", "operation", "body", "feature"), BODIES)
def test_a_body_says_what_it_needs(dialect: str, operation: str, body: dict[str, Any], feature: str) -> None:
    raw = json.dumps({"model": "m", **body}).encode()
    parsed = WIRES[dialect].parse(raw, operation=operation, model="m")
    found = needs_of(call_of(parsed=parsed, dialect=dialect), parsed)
    assert (found.vision, found.tools, found.structured_output) == (
        wanted(feature).vision, wanted(feature).tools, wanted(feature).structured_output,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"messages": CHAT_IMAGE}, "vision"),
        ({"messages": PLAIN, "parameters": {"tools": [TOOL]}}, "tools"),
        ({"messages": PLAIN, "parameters": {"response_format": SCHEMA}}, "structured_output"),
        ({"messages": PLAIN, "parameters": {"tools": [], "response_format": {"type": "text"}}}, ""),
    ],
)
def test_an_intent_says_what_it_needs(fields: dict[str, Any], feature: str) -> None:
    intent = RequestIntent.parse({"model": "m", **fields})
    assert needs_of(call_of(intent=intent), None) == wanted(feature)


def test_what_is_not_known_stands_in_nobodys_way() -> None:
    everything = Needs(input_tokens=10**9, vision=True, tools=True, structured_output=True)
    assert (lacking(everything, ModelCapabilities()), too_long(everything, ModelCapabilities())) == ("", "")
    able = ModelCapabilities(context_tokens=10**9, vision=True, tools=True, structured_output=True)
    assert (lacking(everything, able), too_long(everything, able)) == ("", "")
    assert too_long(everything, ModelCapabilities(context_tokens=10)) == "its context of 10 tokens is too short"
