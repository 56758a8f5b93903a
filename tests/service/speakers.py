"""The three official SDKs as one: each asks for the same things in its own dialect."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anthropic import AsyncAnthropic
from google import genai
from google.genai import types
from openai import AsyncOpenAI

from tests.service.running import Running

__all__ = ["SDKS", "Said", "Speaker", "gemini", "speaking"]

SDKS = ("openai", "anthropic", "gemini")
WEATHER: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER: Any = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer: text, calls of functions as (name, arguments), why it ended, tokens in and out."""

    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    finish: str = ""
    usage: tuple[int, int] = (0, 0)


def gemini(running: Running, token: str = "none-needed") -> genai.Client:
    """The official SDK."""
    return genai.Client(api_key=token, http_options=types.HttpOptions(base_url=running.url))


@asynccontextmanager
async def speaking(running: Running, sdk: str) -> AsyncIterator["Speaker"]:
    """A speaker of one dialect."""
    if sdk == "gemini":
        client = gemini(running)
        try:
            yield GeminiSpeaker(client)
        finally:
            await client.aio.aclose()
    elif sdk == "anthropic":
        async with running.anthropic() as anthropic:
            yield AnthropicSpeaker(anthropic)
    else:
        async with running.openai() as openai:
            yield OpenAISpeaker(openai)


class Speaker:
    """What each SDK is asked for. `image`: base64 of a PNG that goes along."""

    async def says(self, model: str, text: str, *, image: str = "", most: int = 9) -> Said:
        """One answer."""
        raise NotImplementedError

    async def streams(self, model: str, text: str) -> Said:
        """The same, streamed."""
        raise NotImplementedError

    async def calls(self, model: str, *, stream: bool = False) -> Said:
        """An answer that calls the function `weather`."""
        raise NotImplementedError

    async def replies(self, model: str) -> Said:
        """The turn after a call and its result."""
        raise NotImplementedError

    async def shapes(self, model: str) -> Said:
        """Structured output."""
        raise NotImplementedError


class OpenAISpeaker(Speaker):
    """Chat."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._create: Any = client.chat.completions.create

    async def says(self, model: str, text: str, *, image: str = "", most: int = 9) -> Said:
        parts = [{"type": "text", "text": text}]
        if image:
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}})  # type: ignore[dict-item]
        return self._whole(
            await self._create(model=model, max_tokens=most, messages=[{"role": "user", "content": parts}])
        )

    async def streams(self, model: str, text: str) -> Said:
        stream = await self._create(
            model=model,
            messages=[{"role": "user", "content": text}],
            stream=True,
            stream_options={"include_usage": True},
        )
        return await self._streamed(stream)

    async def calls(self, model: str, *, stream: bool = False) -> Said:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
        forced = {"type": "function", "function": {"name": "weather"}}
        answer = await self._create(
            model=model,
            messages=[{"role": "user", "content": "hi"}],
            tools=tools,
            tool_choice=forced,
            stream=stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        )
        return await self._streamed(answer) if stream else self._whole(answer)

    async def replies(self, model: str) -> Said:
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
        messages = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
        return self._whole(await self._create(model=model, messages=messages))

    async def shapes(self, model: str) -> Said:
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}
        return self._whole(
            await self._create(model=model, messages=[{"role": "user", "content": "hi"}], response_format=wanted)
        )

    def _whole(self, answer: Any) -> Said:
        choice = answer.choices[0]
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
        usage = answer.usage
        return Said(
            text=choice.message.content or "",
            calls=tuple(calls),
            finish=choice.finish_reason,
            usage=(usage.prompt_tokens, usage.completion_tokens),
        )

    async def _streamed(self, stream: Any) -> Said:
        text, finish, usage = "", "", (0, 0)
        calls: dict[int, list[str]] = {}
        async for chunk in stream:
            if chunk.usage is not None:
                usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or ():
                    known = calls.setdefault(call.index, ["", ""])
                    known[0] = call.function.name or known[0]
                    known[1] += call.function.arguments or ""
        made = tuple((name, json.loads(arguments)) for name, arguments in calls.values())
        return Said(text=text, calls=made, finish=finish, usage=usage)


class AnthropicSpeaker(Speaker):
    """Messages."""

    def __init__(self, client: AsyncAnthropic) -> None:
        self._client: Any = client.messages

    async def says(self, model: str, text: str, *, image: str = "", most: int = 9) -> Said:
        parts: list[Any] = [{"type": "text", "text": text}]
        if image:
            source = {"type": "base64", "media_type": "image/png", "data": image}
            parts.append({"type": "image", "source": source})
        return self._said(
            await self._client.create(model=model, max_tokens=most, messages=[{"role": "user", "content": parts}])
        )

    async def streams(self, model: str, text: str) -> Said:
        messages = [{"role": "user", "content": text}]
        async with self._client.stream(model=model, max_tokens=50, messages=messages) as stream:
            return self._said(await stream.get_final_message())

    async def calls(self, model: str, *, stream: bool = False) -> Said:
        options: Any = {
            "model": model,
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"name": "weather", "input_schema": WEATHER}],
            "tool_choice": {"type": "tool", "name": "weather"},
        }
        if not stream:
            return self._said(await self._client.create(**options))
        async with self._client.stream(**options) as answer:
            return self._said(await answer.get_final_message())

    async def replies(self, model: str) -> Said:
        call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
        messages = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        return self._said(await self._client.create(model=model, max_tokens=50, messages=messages))

    async def shapes(self, model: str) -> Said:
        config = {"format": {"type": "json_schema", "schema": ANSWER}}
        messages = [{"role": "user", "content": "hi"}]
        return self._said(
            await self._client.create(model=model, max_tokens=50, messages=messages, output_config=config)
        )

    def _said(self, message: Any) -> Said:
        return Said(
            text="".join(block.text for block in message.content if block.type == "text"),
            calls=tuple((block.name, block.input) for block in message.content if block.type == "tool_use"),
            finish=message.stop_reason,
            usage=(message.usage.input_tokens, message.usage.output_tokens),
        )


class GeminiSpeaker(Speaker):
    """generateContent."""

    def __init__(self, client: genai.Client) -> None:
        self._models: Any = client.aio.models

    async def says(self, model: str, text: str, *, image: str = "", most: int = 9) -> Said:
        parts: list[Any] = [{"text": text}]
        if image:
            parts.append({"inline_data": {"mime_type": "image/png", "data": image}})
        contents = [{"role": "user", "parts": parts}]
        return self._said(
            [await self._models.generate_content(model=model, contents=contents, config={"max_output_tokens": most})]
        )

    async def streams(self, model: str, text: str) -> Said:
        stream = await self._models.generate_content_stream(model=model, contents=text)
        return self._said([chunk async for chunk in stream])

    async def calls(self, model: str, *, stream: bool = False) -> Said:
        config = {
            "tools": [{"function_declarations": [{"name": "weather", "parameters_json_schema": WEATHER}]}],
            "tool_config": {"function_calling_config": {"mode": "ANY", "allowed_function_names": ["weather"]}},
            "automatic_function_calling": {"disable": True},
        }
        if not stream:
            return self._said([await self._models.generate_content(model=model, contents="hi", config=config)])
        answer = await self._models.generate_content_stream(model=model, contents="hi", config=config)
        return self._said([chunk async for chunk in answer])

    async def replies(self, model: str) -> Said:
        contents = [
            {"role": "user", "parts": [{"text": "hi"}]},
            {"role": "model", "parts": [{"function_call": {"name": "weather", "args": {"city": "Rome"}}}]},
            {"role": "user", "parts": [{"function_response": {"name": "weather", "response": {"output": "sunny"}}}]},
        ]
        return self._said([await self._models.generate_content(model=model, contents=contents)])

    async def shapes(self, model: str) -> Said:
        config = {"response_mime_type": "application/json", "response_json_schema": ANSWER}
        return self._said([await self._models.generate_content(model=model, contents="hi", config=config)])

    def _said(self, chunks: list[Any]) -> Said:
        parts = [part for chunk in chunks for part in (chunk.candidates[0].content.parts or ())]
        calls = [part.function_call for part in parts if part.function_call]
        usage = chunks[-1].usage_metadata
        return Said(
            text="".join(part.text for part in parts if part.text and not part.thought),
            calls=tuple((call.name, call.args) for call in calls),
            finish=chunks[-1].candidates[0].finish_reason.value,
            usage=(usage.prompt_token_count, (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)),
        )
