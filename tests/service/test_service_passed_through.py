"""Pictures, sound, moderation, reranking: passed on as they come, counted all the same."""

import io
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

SOUND_BYTES = b"RIFF\x00\r\n--not the boundary\r\n\xff\xfe" * 50


def config_of(simulator: SimulatorProcess, **parts: Any) -> dict[str, Any]:
    """One provider that has everything, and names of our own for two of its models."""
    return {
        "providers": {
            "openai": {"adapter": "compatible", "base_url": simulator.openai_url},
            "chatty": {"adapter": "groq", "base_url": simulator.openai_url},
        },
        "keys": [
            {"id": "k1", "provider": "openai", "key": "sk-sim-service-1"},
            {"id": "q1", "provider": "chatty", "key": "sk-sim-service-2", "models": ["llama"]},
        ],
        "models": {
            "ears": [{"provider": "openai", "model": "gpt-4o-transcribe"}],
            "brush": [{"provider": "openai", "model": "gpt-image-1"}],
        },
        **parts,
    }


@pytest_asyncio.fixture(loop_scope="package")
async def running(service_valkey: Server, simulator: SimulatorProcess) -> AsyncIterator[Running]:
    """A service for them."""
    async with running_service(service_valkey.url, config_of(simulator)) as started:
        yield started


async def billed(simulator: SimulatorProcess) -> tuple[int, int]:
    """Requests and output tokens that the provider saw."""
    seen = (await simulator.report())["organisations"]["org-alpha"]
    return seen["completed"], seen["output_tokens"]


async def test_pictures_are_made_and_cost_what_their_usage_says(running: Running, simulator: SimulatorProcess) -> None:
    async with running.openai() as client:
        raw = await client.images.with_raw_response.generate(model="brush", prompt="a cat", n=2)
        edited = await client.images.edit(image=("cat.png", io.BytesIO(SOUND_BYTES)), prompt="a dog", model="brush")
        varied = await client.images.create_variation(image=("cat.png", io.BytesIO(SOUND_BYTES)))
    made: Any = raw.parse()
    assert len(made.data) == 2
    assert edited.data
    assert varied.data
    facts = running.runtime.router.decisions
    assert [each.operation for each in facts] == ["image", "image_edit", "image_variation"]
    assert facts[0].usage is not None
    assert facts[0].usage.output_tokens == made.usage.output_tokens == 24
    assert float(raw.headers["x-akr-cost-usd"]) > 0
    assert facts[2].cost_nanousd is None, "a model without a price is unpriced, never free"
    assert (await billed(simulator))[0] == 3


async def test_speech_comes_back_as_sound_byte_for_byte(running: Running, simulator: SimulatorProcess) -> None:
    async with running.openai() as client:
        spoken = await client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello there")
    assert spoken.content.startswith(b"ID3\x04simulated sound\x00\xff\xfb")
    assert spoken.response.headers["content-type"] == "audio/mpeg"
    assert spoken.response.headers["x-akr-key-id"] == "k1"
    assert (await billed(simulator))[0] == 1


@pytest.mark.parametrize("model", ["ears", "gpt-4o-transcribe"])
async def test_sound_is_written_down_whole_plain_and_streamed(running: Running, model: str) -> None:
    def file() -> Any:
        return ("say.wav", io.BytesIO(SOUND_BYTES), "audio/wav")

    async with running.openai() as client:
        whole = await client.audio.transcriptions.create(model=model, file=file())
        plain = await client.audio.transcriptions.create(model=model, file=file(), response_format="text")
        translated = await client.audio.translations.create(model=model, file=file())
        stream = await client.audio.transcriptions.create(model=model, file=file(), stream=True)
        events = [event async for event in stream]
    assert whole.text
    assert plain == whole.text
    assert translated.text == whole.text
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == whole.text
    assert events[-1].type == "transcript.text.done"
    facts = running.runtime.router.decisions[-1]
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (51, 12)
    assert facts.cost_nanousd


async def test_pictures_are_streamed(running: Running) -> None:
    async with running.openai() as client:
        stream = await client.images.generate(model="gpt-image-1", prompt="a cat", stream=True)
        kinds = [event.type async for event in stream]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]
    assert running.runtime.router.decisions[-1].usage is not None


async def test_texts_are_moderated_and_documents_ranked(running: Running) -> None:
    async with running.openai() as client:
        judged = await client.moderations.create(input="hello there")
        ranked: Any = await client.post(
            "/rerank", body={"model": "ranker", "query": "a", "documents": ["b", "c"]}, cast_to=object
        )
    assert not judged.results[0].flagged
    assert [entry["index"] for entry in ranked["results"]] == [0, 1]
    assert [each.model for each in running.runtime.router.decisions] == ["omni-moderation-latest", "ranker"]


async def test_what_is_wrong_is_told_before_anything_is_held(running: Running, simulator: SimulatorProcess) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    async with running.http() as client:
        answers = [
            await client.post("/v1/audio/transcriptions", content=b"--x\r\nbroken", headers=form),
            await client.post("/v1/audio/transcriptions", content=b"--x", headers=form),
            await client.post("/v1/audio/transcriptions", files={"file": b"x"}),
            await client.post("/v1/audio/speech", json={"input": "x", "voice": "alloy"}),
            await client.post("/v1/images/generations", json={"model": 3}),
            await client.post("/v1/rerank", content=b"no json"),
        ]
        body = {"model": "llama", "query": "a", "documents": []}
        lacking = await client.post("/v1/rerank", json=body, headers={"x-akr-provider": "chatty"})
    assert [answer.status_code for answer in answers] == [400] * 6
    assert all(answer.json()["error"]["code"] == "invalid_request" for answer in answers)
    assert (lacking.status_code, lacking.json()["error"]["code"]) == (400, "unsupported_endpoint")
    assert await billed(simulator) == (0, 0)


async def test_a_hard_budget_does_not_guess_what_a_picture_costs(
    service_valkey: Server, simulator: SimulatorProcess
) -> None:
    budgets = [{"name": "all", "scope": "global", "limit_usd": 100, "period": "total", "enforcement": "hard"}]
    async with (
        running_service(service_valkey.url, config_of(simulator, budgets=budgets)) as service,
        service.openai() as client,
    ):
        with pytest.raises(openai.BadRequestError, match="cannot be bounded"):
            await client.images.generate(model="gpt-image-1", prompt="a cat")
    assert await billed(simulator) == (0, 0)
