"""What the simulated providers charge: integer pico-dollars per token, rounded up once per request."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

__all__ = ["DEFAULT_PRICES", "Price", "Usage", "cost_nanousd", "price_of"]

PICOUSD_PER_NANOUSD = 1_000
_PICOUSD_PER_DOLLAR_PER_MTOK = 1_000_000


class Price(NamedTuple):
    """Pico-dollars per token; a dollar per million tokens is 1,000,000 of them."""

    input: int
    output: int
    cached_input: int
    cache_write: int


class Usage(NamedTuple):
    """What one request used, in tokens. ``input`` is the whole prompt, cached and written parts included."""

    input: int
    output: int = 0
    cached: int = 0
    cache_write: int = 0


def price_of(
    input_usd: str, output_usd: str, cached_input_usd: str | None = None, cache_write_usd: str | None = None
) -> Price:
    """A price from dollars per million tokens, given as decimal strings; ``ValueError`` if finer than a pico-dollar."""
    base = _picousd(input_usd)
    return Price(
        input=base,
        output=_picousd(output_usd),
        cached_input=base if cached_input_usd is None else _picousd(cached_input_usd),
        cache_write=base if cache_write_usd is None else _picousd(cache_write_usd),
    )


def _picousd(usd_per_mtok: str) -> int:
    try:
        exact = Decimal(usd_per_mtok) * _PICOUSD_PER_DOLLAR_PER_MTOK
    except ArithmeticError as error:
        raise ValueError(f"price {usd_per_mtok!r} is not a number") from error
    if not exact.is_finite() or exact < 0 or exact != int(exact):
        raise ValueError(f"price {usd_per_mtok} is not a whole number of pico-dollars per token")
    return int(exact)


def cost_nanousd(usage: Usage, price: Price) -> int:
    """The bill of one request in integer nano-dollars, rounded up once."""
    plain = usage.input - usage.cached - usage.cache_write
    picousd = (
        plain * price.input
        + usage.cached * price.cached_input
        + usage.cache_write * price.cache_write
        + usage.output * price.output
    )
    return -(-picousd // PICOUSD_PER_NANOUSD)


DEFAULT_PRICES: dict[str, dict[str, Price]] = {
    "openai": {
        "gpt-4o-mini": price_of("0.15", "0.60", "0.075"),
        "gpt-4o": price_of("2.5", "10", "1.25"),
        "gpt-4": price_of("30", "60"),
        "gpt-4-turbo": price_of("10", "30"),
        "gpt-3.5-turbo": price_of("0.5", "1.5"),
        "gpt-5.6": price_of("4", "20", "0.4", "5"),
        "text-embedding-3-small": price_of("0.02", "0"),
        "text-embedding-3-large": price_of("0.13", "0"),
    },
    "anthropic": {
        "claude-haiku-5": price_of("1", "5", "0.1", "1.25"),
        "claude-sonnet-5": price_of("2", "10", "0.2", "2.5"),
        "claude-opus-5": price_of("5", "25", "0.5", "6.25"),
        "claude-3-5-sonnet-20241022": price_of("3", "15", "0.3", "3.75"),
        "claude-3-haiku-20240307": price_of("0.25", "1.25", "0.03", "0.3"),
    },
    "gemini": {
        "gemini-2.5-flash": price_of("0.30", "2.50", "0.03"),
        "gemini-2.5-pro": price_of("1.25", "10", "0.125"),
        "gemini-embedding-001": price_of("0.15", "0"),
    },
    "azure": {
        "gpt-4o-mini": price_of("0.15", "0.60", "0.075"),
        "gpt-4o": price_of("2.5", "10", "1.25"),
        "text-embedding-3-small": price_of("0.02", "0"),
    },
    "groq": {"llama-3.3-70b-versatile": price_of("0.59", "0.79")},
    "mistral": {
        "mistral-small-latest": price_of("0.15", "0.60", "0.015"),
        "mistral-embed": price_of("0.1", "0"),
    },
    "deepseek": {"deepseek-chat": price_of("0.27", "1.10", "0.07")},
    "openrouter": {
        "openai/gpt-4o-mini": price_of("0.15", "0.60", "0.075"),
        "meta-llama/llama-3.3-70b-instruct:free": price_of("0", "0"),
    },
}
"""Dollars per million tokens by dialect and model; the simulator's own table (figures as of 2026-11)."""
