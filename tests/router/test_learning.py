"""Expected input tokens after two hundred requests, against what a real tokenizer counts."""

import json
import random
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import pytest

from apikeyrouter import ApiKeyRouter, ProviderAdapter, RequestIntent
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.text_kinds import Kind, shape_of
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter

pytestmark = pytest.mark.asyncio(loop_scope="package")
COUNTED = json.loads((Path(__file__).parents[1] / "data" / "token_counts.json").read_text("utf-8"))
"""Pieces of text with their tokens; what is put together of them has about the sum."""
PIECES: Mapping[str, list[tuple[str, int]]] = COUNTED["pieces"]
KINDS = {
    "prose": Kind.PROSE, "russian": Kind.TWO_BYTES, "chinese": Kind.THREE_BYTES, "code": Kind.CODE,
    "base64": Kind.DENSE,
}  # fmt: skip
SCAFFOLD_TOKENS = 7
REQUESTS = 200


def some(kind: str, chance: random.Random) -> tuple[str, int]:
    """A text of a kind, and the tokens of a request with it."""
    pieces = [chance.choice(PIECES[kind]) for _ in range(chance.randint(2, 20))]
    return "".join(piece for piece, _ in pieces), sum(count for _, count in pieces) + SCAFFOLD_TOKENS


class Counting(ProviderAdapter):
    """A provider that bills what the tokenizer counts; the request says how much that is."""

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        """An answer with its usage."""
        return {"content": "ok", "usage": {"input_tokens": int(intent.tags["tokens"]), "output_tokens": 3}}


def asking(text: str, tokens: int) -> dict[str, Any]:
    """A request that will be billed so many tokens."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], "tags": {"tokens": str(tokens)}}


async def error_after(kinds: list[str], seed: int) -> dict[str, float]:
    """The mean relative error of the expected input by kind, once so many requests of these kinds were answered."""
    chance = random.Random(seed)
    async with ApiKeyRouter() as router:
        router.catalogue.prices = PriceBook()
        router.catalogue.prices.add("counting", "m", input=Decimal(1), output=Decimal(1))
        await router.register_provider("counting", Counting())
        await router.register_key("sk-of-the-counter", "counting", {})
        for _ in range(REQUESTS):
            await router.route(asking(*some(chance.choice(kinds), chance)))
        errors: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind in kinds:
            for _ in range(60):
                text, tokens = some(kind, chance)
                estimate = await router.cost_controller.estimate_request_cost(asking(text, tokens))
                assert estimate is not None
                errors[kind].append(abs(estimate.input_tokens - tokens) / tokens)
        return {kind: mean(found) for kind, found in errors.items()}


@pytest.mark.parametrize("kind", KINDS)
async def test_after_two_hundred_requests_the_expected_input_is_right_within_a_tenth(kind: str) -> None:
    assert (await error_after([kind], seed=1))[kind] <= 0.10


async def test_what_is_learned_of_one_kind_of_text_spoils_no_other() -> None:
    errors = await error_after(list(KINDS), seed=2)
    assert max(errors.values()) <= 0.10, errors


@pytest.mark.parametrize("kind", KINDS)
async def test_the_kind_is_seen_whether_or_not_the_json_is_escaped(kind: str) -> None:
    chance = random.Random(3)
    wire = OpenAIAdapter("http://127.0.0.1:1").wire
    for _ in range(20):
        text, _ = some(kind, chance)
        told = {"model": "m", "messages": [{"role": "user", "content": text}]}
        bodies = (json.dumps(told).encode(), json.dumps(told, ensure_ascii=False).encode(), msgspec.json.encode(told))
        found = [shape_of(wire.parse(body, operation="chat")).kind for body in bodies]
        assert found == [KINDS[kind]] * 3
