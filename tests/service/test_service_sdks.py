"""The official SDKs, unmodified, against the service: what they get is what they would get from the provider."""

import asyncio
import json
from typing import Any

import anthropic
import pytest
from openai.types.chat import ChatCompletion

from tests.servers import Server
from tests.service.running import Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PIXEL = "iVBORw0KGgo="


async def test_openai_gets_a_chat_with_routing_metadata_and_headers(service: Running) -> None:
    async with service.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
    answer: ChatCompletion = raw.parse()
    assert (answer.choices[0].message.content or "").startswith("You said: hello there")
    assert answer.model_extra is not None
    metadata = answer.model_extra["routing_metadata"]
    assert metadata["key_used"] == raw.headers["x-akr-key-id"]
    assert metadata["key_used"] in ("k1", "k2")
    assert (metadata["provider_id"], metadata["model"], metadata["attempts"]) == ("openai", "gpt-4o-mini", 1)
    assert metadata["request_id"] == raw.headers["x-request-id"] == answer._request_id
    assert raw.headers["x-akr-provider"] == "openai"
    assert raw.headers["x-akr-attempts"] == "1"
    assert f"{metadata['cost']:.9f}" == raw.headers["x-akr-cost-usd"]
    assert int(raw.headers["x-akr-overhead-us"]) > 0
    facts = service.runtime.router.decisions[-1]
    assert int(raw.headers["openai-processing-ms"]) == facts.total_us // 1000


async def test_openai_streams_a_chat_to_its_end(service: Running) -> None:
    async with service.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in raw.parse()]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("You said: hello there")
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks), "the client did not ask for usage"
    assert raw.headers["x-akr-provider"] == "openai"
    assert "x-akr-cost-usd" not in raw.headers


async def test_openai_gets_the_usage_chunk_it_asks_for(service: Running) -> None:
    async with service.openai() as client:
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


async def test_openai_calls_tools_streamed_and_not(service: Running) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    wanted: Any = {"type": "function", "function": {"name": "weather"}}
    async with service.openai() as client:
        answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=tools, tool_choice=wanted)
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=HELLO, tools=tools, tool_choice=wanted, stream=True
        )
        arguments = ""
        async for chunk in stream:
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                arguments += call.function.arguments or ""
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments) == json.loads(arguments) == {"city": "sample"}


async def test_openai_sends_multimodal_parts(service: Running) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    async with service.openai() as client:
        answer = await client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}],  # type: ignore[misc, list-item]
        )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3 + 4 + 2 + 765


async def test_openai_responses_completions_and_embeddings_answer(service: Running) -> None:
    async with service.openai() as client:
        response = await client.responses.create(model="gpt-4o", input="hello there", max_output_tokens=3)
        completion = await client.completions.create(model="gpt-4o", prompt="hello there", max_tokens=3)
        embedding = await client.embeddings.create(model="gpt-4o", input=["one", "two"])
    assert response.output_text == "You said: he"
    assert completion.choices[0].text
    assert len(embedding.data) == 2


async def test_openai_streams_a_response(service: Running) -> None:
    async with service.openai() as client:
        stream = await client.responses.create(model="gpt-4o", input="hello there", stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


async def test_anthropic_gets_a_message_with_routing_metadata_and_its_request_id(service: Running) -> None:
    async with service.anthropic() as client:
        raw = await client.messages.with_raw_response.create(model="claude-haiku-4-5", max_tokens=5, messages=HELLO)
    message = await raw.parse()
    assert message.content[0].type == "text"
    assert message.usage.output_tokens == 5
    assert message.model_extra is not None
    assert message.model_extra["routing_metadata"]["key_used"] == "a1"
    assert message._request_id == raw.headers["request-id"] == raw.headers["x-request-id"]


async def test_anthropic_streams_a_message_with_tools(service: Running) -> None:
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    choice: Any = {"type": "tool", "name": "weather"}
    async with service.anthropic() as client:
        options: Any = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": HELLO}
        async with client.messages.stream(**options) as plain:
            text = "".join([piece async for piece in plain.text_stream])
        async with client.messages.stream(**options, tools=tools, tool_choice=choice) as stream:
            message = await stream.get_final_message()
    assert text.startswith("You said: hello there")
    assert message.content[0].type == "tool_use"
    assert message.content[0].input == {"city": "sample"}


async def test_anthropic_sends_multimodal_parts_and_counts_tokens(service: Running) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    parts: Any = [{"type": "text", "text": "what?"}, {"type": "image", "source": source}]
    messages: Any = [{"role": "user", "content": parts}]
    async with service.anthropic() as client:
        counted = await client.messages.count_tokens(model="claude-haiku-4-5", messages=messages)
        message = await client.messages.create(model="claude-haiku-4-5", max_tokens=5, messages=messages)
    assert counted.input_tokens == message.usage.input_tokens > 500


async def test_counting_tokens_costs_nothing(service: Running) -> None:
    async with service.anthropic() as client:
        raw = await client.messages.with_raw_response.count_tokens(model="claude-haiku-4-5", messages=HELLO)
    assert (await raw.parse()).input_tokens > 0
    assert float(raw.headers["x-akr-cost-usd"]) == 0


async def test_both_sdks_list_models_in_their_own_shape(service: Running) -> None:
    async with service.openai() as openai, service.anthropic() as anthropic:
        listed = [model.id async for model in openai.models.list()]
        same = [model.id async for model in anthropic.models.list()]
        one = await openai.models.retrieve("gpt-4o-mini")
        other = await anthropic.models.retrieve("claude-haiku-4-5")
    assert listed == same == ["claude-haiku-4-5", "gpt-4o", "gpt-4o-mini"]
    assert (one.id, one.owned_by, other.type) == ("gpt-4o-mini", "openai", "model")


async def test_models_of_keys_that_name_none_are_those_with_a_price_that_their_provider_serves(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    for key in config["keys"]:
        del key["models"]
    config["models"] = {"fast": [{"provider": "openai", "model": "gpt-4o-mini"}]}
    config["prices"] = [
        {"provider": "openai", "model": "gpt-of-ours", "input": 1, "output": 2},
        {"provider": "openai", "model": "claude-of-ours", "input": 1, "output": 2},
    ]
    async with (
        running_service(service_valkey.url, config) as service,
        service.openai() as openai,
        service.anthropic() as anthropic,
    ):
        listed = {model.id: model.owned_by async for model in openai.models.list()}
        same = [model.id async for model in anthropic.models.list()]
        one = await openai.models.retrieve("gpt-4o-mini")
    assert list(listed) == same
    wanted = {"fast": "openai", "gpt-4o-mini": "openai", "claude-haiku-4-5": "anthropic", "gpt-of-ours": "openai"}
    assert wanted.items() <= listed.items()
    assert not {"claude-of-ours", "ft:gpt-4o"} & set(listed)
    assert one.owned_by == "openai"


async def test_a_stream_tells_the_time_spent_here_before_its_first_event(service: Running) -> None:
    async with service.openai() as client:
        create = client.chat.completions.with_streaming_response.create
        async with create(model="gpt-4o-mini", messages=HELLO, stream=True) as answer:
            told = int(answer.headers["x-akr-overhead-us"])
            processing = int(answer.headers["openai-processing-ms"])
            await answer.read()
    facts = service.runtime.router.decisions[-1]
    assert 0 < told <= facts.first_token_us
    assert processing == facts.first_token_us // 1000


async def test_a_query_goes_on_to_the_provider_without_credentials(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as provider:
        port = provider.sockets[0].getsockname()[1]
        config["providers"]["anthropic"]["base_url"] = f"http://127.0.0.1:{port}"
        async with running_service(service_valkey.url, config) as service, service.anthropic() as client:
            with pytest.raises(anthropic.BadRequestError):
                await client.beta.messages.create(
                    model="claude-haiku-4-5",
                    max_tokens=5,
                    messages=HELLO,
                    extra_query={"beta": "true", "key": "secret"},
                )
    assert asked == [b"POST /v1/messages?beta=true HTTP/1.1\r\n"]


async def test_a_request_id_of_the_client_is_echoed_and_a_strange_one_replaced(service: Running) -> None:
    async with service.openai() as client:
        create = client.chat.completions.with_raw_response.create
        given = await create(model="gpt-4o", messages=HELLO, extra_headers={"x-request-id": "mine-17"})
        strange = await create(model="gpt-4o", messages=HELLO, extra_headers={"x-request-id": 'a"b'})
    assert given.headers["x-request-id"] == "mine-17"
    assert strange.headers["x-request-id"].startswith("req_")


async def test_metrics_and_access_lines_equal_the_requests(service: Running) -> None:
    async with service.openai() as client, service.anthropic() as other:
        for _ in range(5):
            await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
        assert [chunk async for chunk in stream]
        await other.messages.create(model="claude-haiku-4-5", max_tokens=5, messages=HELLO)

    async def settled() -> bool:
        return await service.count("apikeyrouter_settlements_total") == 7

    await wait_until(settled)
    assert await service.count("apikeyrouter_requests_total") == 7
    assert await service.count('apikeyrouter_requests_total{route="chat"') == 6
    assert await service.count("apikeyrouter_attempts_total") == 7
    assert await service.count('apikeyrouter_request_duration_seconds_count{route="chat"') == 6
    assert await service.count("apikeyrouter_ttft_seconds_count") == 1
    assert (
        await service.count('apikeyrouter_tokens_total{provider="openai",model="gpt-4o-mini",direction="output"') == 72
    )
    assert await service.count("apikeyrouter_inflight") == 0
    await service.runtime._access_log.flush()
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["ok"] * 7
    assert {line["key"] for line in lines} == {"k1", "k2", "a1"}
