"""Prices: equal to the independent oracle, never below it, and the shipped file is what the script makes."""

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from genai_prices import Usage as OracleUsage
from genai_prices import calc_price
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st
from tools import compile_prices

from apikeyrouter.domain.components import price_book
from apikeyrouter.domain.components.price_book import ModelPrice, PriceBook
from apikeyrouter.domain.models.usage import MediaTokens, Usage
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage, checked

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
BOOK = PriceBook.load(now=NOW.timestamp)
MODELS = [(provider.id, model.id) for provider in providers for model in provider.models]


def price_of(provider: str, model: str, book: PriceBook = BOOK) -> ModelPrice:
    price = book.price(provider, model)
    assert price is not None, (provider, model)
    return price


def oracle(provider: str, model: str, usage: Usage, context: dict[str, str] | None = None) -> Decimal:
    """Nano-dollars, exactly."""
    told = OracleUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens + usage.cache_write_long_tokens,
        cache_write_1h_tokens=usage.cache_write_long_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        **_media(usage.media or MediaTokens()),
    )
    answer = calc_price(told, model, provider_id=provider, genai_request_timestamp=NOW, price_context=context)
    return answer.total_price * 10**9


def _media(media: MediaTokens) -> dict[str, int]:
    told = {
        "input_audio_tokens": media.audio_input,
        "input_image_tokens": media.image_input,
        "input_video_tokens": media.video_input,
        "cache_audio_read_tokens": media.audio_cached,
        "cache_image_read_tokens": media.image_cached,
        "output_audio_tokens": media.audio_output,
        "output_image_tokens": media.image_output,
        "output_video_tokens": media.video_output,
    }
    return {name: tokens for name, tokens in told.items() if tokens}


def assert_agrees(cost: int, exact: Decimal) -> None:
    """Rounded up once; a float's noise in the source is at most a ten-thousandth of a pico-dollar a token."""
    assert exact - Decimal("0.1") <= cost < exact + 2, (cost, exact)


USAGES = [
    Usage(input_tokens=0, output_tokens=0),
    Usage(input_tokens=1, output_tokens=1),
    Usage(input_tokens=1234, output_tokens=567, cache_read_tokens=89, reasoning_tokens=45),
    Usage(input_tokens=200_000, output_tokens=10),
    Usage(input_tokens=200_001, output_tokens=10, cache_read_tokens=1000),
    Usage(
        input_tokens=9000,
        output_tokens=800,
        media=MediaTokens(audio_input=4000, image_input=300, audio_output=200, image_output=100),
    ),
    Usage(
        input_tokens=9000,
        output_tokens=0,
        cache_read_tokens=5000,
        media=MediaTokens(audio_input=4000, audio_cached=3000, image_input=500, image_cached=250),
    ),
    Usage(input_tokens=900, output_tokens=700, media=MediaTokens(video_input=800, video_output=600)),
    Usage(input_tokens=600_000, output_tokens=9, cache_read_tokens=7, cache_write_tokens=5, cache_write_long_tokens=3),
]


@pytest.mark.parametrize("provider", sorted({provider for provider, _ in MODELS}))
def test_every_priced_model_costs_what_the_oracle_says(provider: str) -> None:
    for model in (model for owner, model in MODELS if owner == provider):
        price = BOOK.price(provider, model)
        for usage in USAGES if price is not None else ():
            try:
                exact = oracle(provider, model, usage)
            except ValueError:
                continue  # the oracle wants counts by modality that no answer gives
            assert price is not None
            assert_agrees(price.cost(usage), exact)


def test_what_is_unpriced_has_no_token_price_at_the_oracle_either() -> None:
    unpriced = [(provider, model) for provider, model in MODELS if BOOK.price(provider, model) is None]
    assert len(unpriced) < len(MODELS) / 8
    for provider, model in unpriced:
        with suppress(LookupError):  # an id that its own matcher does not take
            assert oracle(provider, model, Usage(input_tokens=10**6, output_tokens=10**6)) == 0, (provider, model)


@pytest.mark.parametrize(
    ("provider", "model", "usage", "dollars"),
    [
        ("openai", "gpt-5.6", Usage(input_tokens=100_000, output_tokens=10_000), "0.6"),
        ("openai", "gpt-5.6", Usage(input_tokens=100_000, output_tokens=0, cache_read_tokens=100_000), "0.04"),
        ("openai", "gpt-5.6", Usage(input_tokens=100_000, output_tokens=0, cache_write_tokens=100_000), "0.5"),
        ("openai", "gpt-5.6", Usage(input_tokens=272_000, output_tokens=0), "1.088"),
        ("openai", "gpt-5.6", Usage(input_tokens=272_001, output_tokens=0), "2.176008"),
        ("anthropic", "claude-sonnet-5", Usage(input_tokens=100_000, output_tokens=10_000), "0.3"),
        ("anthropic", "claude-sonnet-5", Usage(input_tokens=10**5, output_tokens=0, cache_write_tokens=10**5), "0.25"),
        ("anthropic", "claude-sonnet-5", Usage(input_tokens=10**5, output_tokens=0, cache_write_long_tokens=10**5),
         "0.4"),
        ("google", "gemini-2.5-pro", Usage(input_tokens=200_000, output_tokens=0), "0.25"),
        ("google", "gemini-2.5-pro", Usage(input_tokens=200_001, output_tokens=0), "0.5000025"),
    ],
)  # fmt: skip
def test_the_check_values_of_the_fact_page(provider: str, model: str, usage: Usage, dollars: str) -> None:
    assert price_of(provider, model).cost(usage) == Decimal(dollars) * 10**9


@pytest.mark.parametrize(
    ("provider", "context"),
    [
        ("openai", {"service_tier": "priority"}),
        ("openai", {"service_tier": "flex"}),
        ("openai", {"processing": "batch"}),
        ("anthropic", {"processing": "batch"}),
        ("anthropic", {"speed": "fast"}),
    ],
)
def test_what_another_tier_served_costs_that_tiers_price(provider: str, context: dict[str, str]) -> None:
    (tier,) = context.values()
    usage = Usage(input_tokens=1000, output_tokens=1000, cache_read_tokens=300, service_tier=tier)
    found = 0
    for model in (model for owner, model in MODELS if owner == provider):
        price = BOOK.price(provider, model)
        if price is None:
            continue
        try:
            exact = oracle(provider, model, usage, context)
        except ValueError:
            continue
        assert_agrees(price.cost(usage), exact)
        found += exact != oracle(provider, model, usage)
        plain = Usage(input_tokens=1000, output_tokens=1000, service_tier=tier)
        assert price.expected(1000, 1000, tier) == price.cost(plain)
    assert found >= 5


@given(
    st.sampled_from(MODELS),
    st.integers(0, 2_000_000),
    st.integers(0, 200_000),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.lists(st.integers(-10, 2_000_000), min_size=8, max_size=8),
    st.sampled_from([None, "default", "flex", "priority", "fast", "batch"]),
)
def test_the_bound_is_never_below_a_cost_and_no_cost_below_nothing(
    name: tuple[str, str],
    read: int,
    written: int,
    shares: tuple[float, float, float, float],
    media: list[int],
    tier: str | None,
) -> None:
    price = BOOK.price(*name)
    if price is None:
        return
    cached = int(read * shares[0])
    stored = int((read - cached) * shares[1])
    long = int((read - cached - stored) * shares[2])
    told = MediaTokens(**dict(zip(MediaTokens.__struct_fields__, media, strict=True)))
    usage = checked(read, written, cached, stored, long, int(written * shares[3]), tier, told)
    assert usage is not None
    assert 0 <= price.cost(usage) <= price.bound(read, written, tier)
    if tier in (None, "default", "priority"):
        assert price.cost(usage) <= price.bound(read, written)
    assert price.expected(read, written) <= price.bound(read, written)


@pytest.mark.parametrize("name", ["no-such-model", "", "x" * 10_000, "GPT-4o\n"])
def test_an_unknown_model_is_unpriced_and_never_free(name: str) -> None:
    assert BOOK.price("openai", name) is None


def test_an_override_has_tiers_of_context_and_of_service_and_media() -> None:
    book = PriceBook()
    price = book.add(
        "own",
        "m",
        input=Decimal(1),
        output=Decimal(10),
        cached_input=Decimal("0.1"),
        input_audio=Decimal(5),
        tiers=[(1000, {"input": Decimal(2), "output": Decimal(20)})],
        service_tiers={"batch": {"input": Decimal("0.5"), "output": Decimal(5)}},
    )
    assert book.price("own", "M") is price
    assert price.cost(Usage(input_tokens=1000, output_tokens=1)) == 1_010_000
    assert price.cost(Usage(input_tokens=1001, output_tokens=1)) == 2_022_000
    assert price.cost(Usage(input_tokens=1001, output_tokens=0, cache_read_tokens=1000)) == 102_000
    assert price.cost(Usage(input_tokens=10, output_tokens=1, service_tier="batch")) == 10_000
    assert price.cost(Usage(input_tokens=10, output_tokens=0, media=MediaTokens(audio_input=6))) == 34_000
    assert price.bound(1000, 1) == 5_020_000
    assert price.expected(10, 1, "batch") == 10_000


@pytest.mark.parametrize("rates", [{"inputs": Decimal(1)}, {"output": Decimal(1)}, {}])
def test_an_override_without_an_input_rate_or_with_an_unknown_one_is_refused(rates: dict[str, Decimal]) -> None:
    with pytest.raises(ValueError, match="input"):
        PriceBook().add("own", "m", tiers=(), service_tiers={}, **rates)


def test_an_unknown_provider_is_unpriced() -> None:
    assert BOOK.price("my-own-server", "gpt-4o") is None


def test_names_match_as_the_oracle_matches_them() -> None:
    for provider, model, same in (
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "GPT-4o-Mini", "gpt-4o-mini"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("azure", "gpt-4o-mini", "gpt-4o-mini"),
    ):
        usage = Usage(input_tokens=12345, output_tokens=678)
        assert_agrees(price_of(provider, model).cost(usage), oracle(provider, model, usage))
        assert price_of(provider, model).model == price_of(provider, same).model


def test_overrides_come_first_and_any_provider_is_none() -> None:
    book = PriceBook.load(now=NOW.timestamp)
    assert book.price("openai", "gpt-4o-mini") is not None
    book.add("openai", "gpt-4o-mini", input=Decimal("0.15"), output=Decimal("0.60"), cached_input=Decimal("0.075"))
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cache_read_tokens=500_000)
    assert price_of("openai", "gpt-4o-mini", book).cost(usage) == (75_000_000 + 37_500_000 + 600_000_000)
    book.add(None, "own", input=Decimal(1), request=Decimal("0.01"))
    assert price_of("anything", "own", book).cost(Usage(input_tokens=1, output_tokens=5)) == 1000 + 10_000_000


def test_a_fraction_of_a_nano_dollar_is_rounded_up_once() -> None:
    book = PriceBook()
    price = book.add("p", "m", input=Decimal("0.0001"), output=Decimal("0.0001"))
    assert price.cost(Usage(input_tokens=1, output_tokens=1)) == 1
    assert price.cost(Usage(input_tokens=5, output_tokens=6)) == 2


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity", "1e30"])
def test_absurd_prices_are_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="input"):
        PriceBook().add("p", "m", input=Decimal(amount))


def test_a_dated_price_takes_effect_on_its_day() -> None:
    data = {"p": {"models": [{"id": "m", "match": ["=", "m"], "prices": [
        {"input": 1_000_000}, {"from": "2026-11-22", "input": 2_000_000}]}]}}  # fmt: skip
    clock = [datetime(2026, 11, 21, 23, 59, tzinfo=UTC).timestamp()]
    book = PriceBook(data, now=lambda: clock[0])
    usage = Usage(input_tokens=1000, output_tokens=0)
    assert price_of("p", "m", book).cost(usage) == 1_000_000
    clock[0] += 61
    assert price_of("p", "m", book).cost(usage) == 2_000_000


def test_remembered_lookups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_book, "LOOKUPS_MAX", 10)
    book = PriceBook()
    for number in range(100):
        book.price("p", f"m{number}")
    assert len(book._known) <= 10


def test_the_shipped_file_is_what_the_script_makes() -> None:
    assert compile_prices.TARGET.read_text("utf-8") == compile_prices.render(compile_prices.compile_all())
    assert compile_prices.TARGET.stat().st_size < compile_prices.BYTES_MAX
    assert "MIT License" in compile_prices.TARGET.read_text("utf-8")


def test_usage_that_says_what_is_sound_and_what_pictures_is_priced_as_that() -> None:
    told = (
        b'{"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,'
        b' "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 60},'
        b' "completion_tokens_details": {"audio_tokens": 40, "reasoning_tokens": 5}}'
    )
    usage = msgspec.json.decode(told, type=OpenAIUsage).read()
    assert usage is not None
    assert usage.media == MediaTokens(audio_input=60, audio_output=40)
    price = PriceBook().add(
        "own",
        "m",
        input=Decimal(1),
        output=Decimal(10),
        cached_input=Decimal("0.5"),
        input_audio=Decimal(4),
        output_audio=Decimal(40),
    )
    assert price.cost(usage) == (30 * 1 + 10 * Decimal("0.5") + 60 * 4 + 10 * 10 + 40 * 40) * 1000
