"""Responses that providers keep: gone on from, looked at and forgotten where they were made, by whom they were made."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

MODEL = "gpt-4o-mini"
TOKENS = {"first": "token-of-the-first-one", "other": "token-of-the-other-one"}


def config_of(simulator: SimulatorProcess, **parts: Any) -> dict[str, Any]:
    """Two organisations that know nothing of each other, under one name."""
    return {
        "providers": {"openai": {"adapter": "openai", "base_url": simulator.openai_url}},
        "keys": [
            {"id": "k1", "provider": "openai", "key": "sk-sim-service-1", "quota_group": "alpha"},
            {"id": "b1", "provider": "openai", "key": "sk-sim-brief", "quota_group": "brief"},
        ],
        "models": {"fast": [{"provider": "openai", "model": MODEL}]},
        **parts,
    }


@pytest_asyncio.fixture(loop_scope="package")
async def running(service_valkey: Server, simulator: SimulatorProcess) -> AsyncIterator[Running]:
    """A service over both."""
    async with running_service(service_valkey.url, config_of(simulator)) as started:
        yield started


async def chain(client: AsyncOpenAI, *, model: str, stream: bool) -> list[str]:
    """Four responses, each going on from the one before; the keys that made them."""
    previous: str | None = None
    keys = []
    for _ in range(4):
        options: dict[str, Any] = {"model": model, "input": "hi", "max_output_tokens": 3}
        if previous is not None:
            options["previous_response_id"] = previous
        if stream:
            raw: Any = await client.responses.with_raw_response.create(**options, stream=True)
            events = [event async for event in raw.parse()]
            previous = events[-1].response.id
        else:
            raw = await client.responses.with_raw_response.create(**options)
            previous = raw.parse().id
        keys.append(raw.headers["x-akr-key-id"])
    return keys


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [MODEL, "fast"])
async def test_what_goes_on_stays_where_it_began(running: Running, model: str, stream: bool) -> None:
    async with running.openai() as client:
        chains = [await chain(client, model=model, stream=stream) for _ in range(4)]
    assert all(len(set(keys)) == 1 for keys in chains)
    assert {keys[0] for keys in chains} == {"k1", "b1"}, "those that go on from nothing go where there is room"


async def test_what_goes_on_is_held_by_a_hard_budget_up_to_the_models_context(
    service_valkey: Server, simulator: SimulatorProcess
) -> None:
    budget = {"name": "all", "scope": "global", "limit_usd": 1, "period": "daily", "enforcement": "hard"}
    prices = [{"model": "nobody-knows-its-context", "input": 1, "output": 2}]
    config = config_of(simulator, budgets=[budget], prices=prices)
    async with running_service(service_valkey.url, config) as service, service.openai() as client:
        first = await client.responses.create(model=MODEL, input="hi", max_output_tokens=3)
        on = await client.responses.create(
            model=MODEL, input="and?", max_output_tokens=3, previous_response_id=first.id
        )
        elsewhere: dict[str, Any] = {"model": "nobody-knows-its-context", "max_output_tokens": 3, "input": "and?"}
        with pytest.raises(openai.BadRequestError) as unknown:
            await client.responses.create(**elsewhere, previous_response_id=first.id)
        with pytest.raises(openai.BadRequestError) as searching:
            await client.responses.create(
                model=MODEL, input="and?", previous_response_id=on.id, tools=[{"type": "web_search"}]
            )
        assert (await client.responses.create(**elsewhere)).output_text
    assert on.output_text
    for caught in (unknown, searching):
        assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("cost_unbounded", "false")
        assert "cannot be bounded" in str(caught.value)
    assert "context_tokens" in str(unknown.value)


async def test_a_response_is_looked_at_stopped_and_forgotten_where_it_was_made_for_nothing(running: Running) -> None:
    async with running.openai() as client:
        made = [await client.responses.create(model="fast", input="hi", max_output_tokens=3) for _ in range(4)]
        for response in made:
            seen = await client.responses.retrieve(response.id)
            assert (seen.id, seen.output_text) == (response.id, response.output_text)
            assert [item async for item in client.responses.input_items.list(response.id)] == []
            raw = await client.responses.with_raw_response.cancel(response.id)
            assert float(raw.headers["x-akr-cost-usd"]) == 0
            await client.responses.delete(response.id)
            with pytest.raises(openai.NotFoundError) as gone:
                await client.responses.retrieve(response.id)
            assert gone.value.code != "model_not_found"
        facts = [each for each in running.runtime.router.decisions if each.operation != "responses"]
        assert {each.outcome for each in facts if each.operation == "delete_response"} == {"ok"}
        assert not any(each.cost_nanousd for each in facts)
        again = await client.responses.create(model="fast", input="hi", max_output_tokens=3)
    assert again.id


async def test_a_client_sees_only_what_was_made_for_it(service_valkey: Server, simulator: SimulatorProcess) -> None:
    clients = [{"name": name, "token": token} for name, token in TOKENS.items()]
    async with running_service(service_valkey.url, config_of(simulator, clients=clients)) as service:
        first, other = service.openai(TOKENS["first"]), service.openai(TOKENS["other"])
        made = await first.responses.create(model=MODEL, input="hi", max_output_tokens=3)
        assert (await first.responses.retrieve(made.id)).id == made.id
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.delete(made.id)
        with pytest.raises(openai.BadRequestError) as refused:
            await other.responses.create(model=MODEL, input="hi", previous_response_id=made.id)
        assert refused.value.code == "previous_response_not_found"
        assert (await first.responses.retrieve(made.id)).id == made.id


async def test_every_worker_knows_where_a_response_was_made(
    service_valkey: Server, simulator: SimulatorProcess
) -> None:
    config, shared = config_of(simulator), {"APIKEYROUTER_NAMESPACE": "two-workers-one-store"}
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as two,
        one.openai() as here,
        two.openai() as there,
    ):
        for _ in range(3):
            made = await here.responses.with_raw_response.create(model=MODEL, input="hi", max_output_tokens=3)
            response = made.parse()
            on = await there.responses.with_raw_response.create(
                model=MODEL, input="hi", max_output_tokens=3, previous_response_id=response.id
            )
            assert on.headers["x-akr-key-id"] == made.headers["x-akr-key-id"]
            assert (await there.responses.retrieve(response.id)).id == response.id


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"previous_response_id": "resp_of_nobody"}, "previous_response_not_found"),
        ({"conversation": "conv_of_nobody"}, "conversation_not_found"),
        ({"conversation": {"id": "conv_of_nobody"}}, "conversation_not_found"),
        ({"conversation": 3}, "invalid_request"),
        ({"previous_response_id": 3}, "invalid_request"),
    ],
)
async def test_what_was_made_elsewhere_is_refused_before_anything_is_held(
    running: Running, simulator: SimulatorProcess, more: dict[str, Any], code: str
) -> None:
    async with running.http() as client:
        answer = await client.post("/v1/responses", json={"model": MODEL, "input": "hi", **more})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert (await simulator.report())["total"]["arrived"] == 0


async def test_what_is_not_to_be_stored_is_not_remembered(running: Running) -> None:
    async with running.openai() as client:
        made = await client.responses.create(model=MODEL, input="hi", max_output_tokens=3, store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


@pytest.mark.parametrize(("method", "path", "status"), [("PUT", "", 405), ("GET", "/cancel", 405), ("GET", "/x", 404)])
async def test_other_requests_about_a_response_are_refused(
    running: Running, method: str, path: str, status: int
) -> None:
    async with running.http() as client:
        answer = await client.request(method, f"/v1/responses/resp_1{path}")
    assert answer.status_code == status


async def test_a_response_that_is_still_being_made_is_streamed_from_its_origin(service_valkey: Server) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.partition(b"\r\n")[0])
        body, kind = (_EVENTS, b"text/event-stream") if head.startswith(b"GET") else (_QUEUED, b"application/json")
        told = (kind, len(body), body)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % told)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as provider:
        url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}/v1"
        config = {
            "providers": {"openai": {"adapter": "openai", "base_url": url}},
            "keys": [{"id": "k1", "provider": "openai", "key": "sk-sim-service-1"}],
        }
        async with running_service(service_valkey.url, config) as service, service.openai() as client:
            made = await client.responses.create(model=MODEL, input="hi", background=True)
            stream = await client.responses.retrieve(made.id, stream=True, starting_after=0)
            kinds = [event.type async for event in stream]
            facts = service.runtime.router.decisions[-1]
    assert kinds == ["response.created", "response.output_text.delta", "response.completed"]
    assert asked[1] == b"GET /v1/responses/resp_1?starting_after=0&stream=true HTTP/1.1"
    assert (facts.operation, facts.cost_nanousd) == ("response", 0), "it was paid for when it was made"


_QUEUED = b'{"id":"resp_1","object":"response","status":"queued","output":[]}'
_USAGE = b'{"input_tokens":5,"output_tokens":1000000,"total_tokens":1000005}'
_EVENTS = b"".join(
    b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, rest)
    for kind, rest in (
        (b"response.created", b'"response":{"id":"resp_1","status":"in_progress"}'),
        (b"response.output_text.delta", b'"item_id":"m","output_index":0,"content_index":0,"delta":"hi"'),
        (b"response.completed", b'"response":{"id":"resp_1","status":"completed","usage":%b}' % _USAGE),
    )
)
