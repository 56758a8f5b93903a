"""Prices: equal to the independent oracle, never below it, and the shipped file is what the script makes."""

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as OracleUsage
from genai_prices import calc_price
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st
from tools import compile_prices

from apikeyrouter.domain.components import price_book
from apikeyrouter.domain.components.price_book import ModelPrice, PriceBook
from apikeyrouter.domain.models.usage import Usage

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
    )
    answer = calc_price(told, model, provider_id=provider, genai_request_timestamp=NOW, price_context=context)
    return answer.total_price * 10**9


def assert_agrees(cost: int, exact: Decimal) -> None:
    """Rounded up once; a float's noise in the source is at most a ten-thousandth of a pico-dollar a token."""
    assert exact - Decimal("0.1") <= cost < exact + 2, (cost, exact)


USAGES = [
    Usage(input_tokens=0, output_tokens=0),
    Usage(input_tokens=1, output_tokens=1),
    Usage(input_tokens=1234, output_tokens=567, cache_read_tokens=89, reasoning_tokens=45),
    Usage(input_tokens=200_000, output_tokens=10),
    Usage(input_tokens=200_001, output_tokens=10, cache_read_tokens=1000),
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


def test_a_priority_answer_costs_its_own_price() -> None:
    usage = Usage(input_tokens=1000, output_tokens=1000, service_tier="priority")
    found = 0
    for model in (model for provider, model in MODELS if provider == "openai"):
        price = BOOK.price("openai", model)
        if price is None:
            continue
        exact = oracle("openai", model, usage, {"service_tier": "priority"})
        assert_agrees(price.cost(usage), exact)
        found += exact != oracle("openai", model, usage)
    assert found > 5


@given(
    st.sampled_from(MODELS),
    st.integers(0, 2_000_000),
    st.integers(0, 200_000),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([None, "default", "flex", "priority", "fast"]),
)
def test_the_bound_is_never_below_a_cost(
    name: tuple[str, str], read: int, written: int, shares: tuple[float, float, float, float], tier: str | None
) -> None:
    price = BOOK.price(*name)
    if price is None:
        return
    cached = int(read * shares[0])
    stored = int((read - cached) * shares[1])
    long = int((read - cached - stored) * shares[2])
    usage = Usage(
        input_tokens=read,
        output_tokens=written,
        cache_read_tokens=cached,
        cache_write_tokens=stored,
        cache_write_long_tokens=long,
        reasoning_tokens=int(written * shares[3]),
        service_tier=tier,
    )
    assert price.cost(usage) <= price.bound(read, written, tier)
    if tier in (None, "default", "priority"):
        assert price.cost(usage) <= price.bound(read, written)
    assert price.expected(read, written) <= price.bound(read, written)


@pytest.mark.parametrize("name", ["no-such-model", "", "x" * 10_000, "GPT-4o\n"])
def test_an_unknown_model_is_unpriced_and_never_free(name: str) -> None:
    assert BOOK.price("openai", name) is None


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
