"""What a request costs, in integers: pico-dollars per token inside, nano-dollars outside, rounded up once per request.

The data is `_data/prices.json`, compiled from genai-prices (MIT licence) by `tools/compile_prices.py`; its format is
described there. A price that is not known is None, never 0.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from importlib.resources import files
from typing import Any

from apikeyrouter.domain.models.usage import MediaTokens, Usage

PICO_PER_NANO = 1000
PICO_PER_MTOK_DOLLAR = 1_000_000
"""One dollar per million tokens, in pico-dollars per token."""

PICO_PER_DOLLAR = 10**12
LOOKUPS_MAX = 4096
"""Lookups remembered; beyond it the memory starts afresh."""

NAME_MAX = 200
"""Longest model name looked up, in characters; longer ones are unpriced."""

RATE_MAX, REQUEST_MAX = 10**12, 10**15
"""Largest rates accepted: one dollar a token, a thousand dollars a request."""

PERIOD_SECONDS = 900
"""A looked-up price is looked up again at the next quarter of an hour: prices by date and time of day change then."""

ONLY_ASKED = frozenset({"fast", "flex", "batch"})
"""Service tiers that a provider uses only for requests that ask for them; `auto` may turn out to be `priority`."""

_INPUTS = ("input", "cache_read", "cache_write", "cache_write_1h", "input_audio", "input_image", "input_video",
           "cache_audio_read", "cache_image_read")  # fmt: skip
_OUTPUTS = ("output", "reasoning", "output_other", "output_audio", "output_image", "output_video")
_UNITS = (*_INPUTS, *_OUTPUTS, "request")
RATES = {
    "input": "input", "output": "output", "cached_input": "cache_read", "cache_write": "cache_write",
    "cache_write_long": "cache_write_1h", "reasoning": "reasoning", "input_audio": "input_audio",
    "input_image": "input_image", "input_video": "input_video", "cached_audio": "cache_audio_read",
    "cached_image": "cache_image_read", "output_audio": "output_audio", "output_image": "output_image",
    "output_video": "output_video", "request": "request",
}  # fmt: skip
"""What a price may name, by the price list's names."""
_CLASS_OF = {
    "cache_read": "input", "cache_write": "input", "cache_write_1h": "cache_write", "reasoning": "output",
    "input_audio": "input", "input_image": "input", "input_video": "input",
    "output_audio": "output", "output_image": "output", "output_video": "output",
}  # fmt: skip
"""What a rate costs like where the list does not name it."""
_CACHED_MEDIA = {"cache_audio_read": "input_audio", "cache_image_read": "input_image"}
"""Without a price of its own, cached sound has no discount where sound has a price, and is text where it has none."""
_COMPACT_DATE = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")

Steps = tuple[tuple[int, int], ...]
"""(above this many input tokens, pico-dollars) pairs, highest threshold first; the last threshold is −1."""


class Rates:
    """Pico-dollars per token of every class, at one tier. What a price list does not name costs like its class."""

    __slots__ = (
        "audio_cached", "audio_input", "audio_output", "cache_read", "cache_write", "cache_write_long",
        "dearest_input", "dearest_output", "image_cached", "image_input", "image_output", "input", "output",
        "reasoning", "request", "video_input", "video_output",
    )  # fmt: skip

    def __init__(self, rates: Mapping[str, int]) -> None:
        told = {name: _rate_of(rates, name) for name in _UNITS}
        self.input, self.output, self.request = told["input"], told["output"], told["request"]
        self.cache_read, self.cache_write = told["cache_read"], told["cache_write"]
        self.cache_write_long, self.reasoning = told["cache_write_1h"], told["reasoning"]
        self.audio_input, self.image_input = told["input_audio"], told["input_image"]
        self.video_input, self.video_output = told["input_video"], told["output_video"]
        self.audio_cached, self.image_cached = told["cache_audio_read"], told["cache_image_read"]
        self.audio_output, self.image_output = told["output_audio"], told["output_image"]
        self.dearest_input = max([rates.get(name, 0) for name in _INPUTS])
        self.dearest_output = max([rates.get(name, 0) for name in _OUTPUTS])

    def beyond_text(self, media: MediaTokens) -> int:
        """What sound, pictures and film cost more (or less) than as many tokens of text, in pico-dollars."""
        return (
            (media.audio_input - media.audio_cached) * (self.audio_input - self.input)
            + (media.image_input - media.image_cached) * (self.image_input - self.input)
            + media.video_input * (self.video_input - self.input)
            + media.audio_cached * (self.audio_cached - self.cache_read)
            + media.image_cached * (self.image_cached - self.cache_read)
            + media.audio_output * (self.audio_output - self.output)
            + media.image_output * (self.image_output - self.output)
            + media.video_output * (self.video_output - self.output)
        )


class ModelPrice:
    """The price of one model at one time. All results in nano-dollars, rounded up."""

    __slots__ = ("_base", "_bounds", "_tiers", "_variants", "model", "provider")

    def __init__(
        self, provider: str, model: str, tiers: list[tuple[int, Rates]], variants: Mapping[str, "ModelPrice"]
    ) -> None:
        self.provider = provider
        self.model = model
        self._base = tiers[-1][1]
        self._tiers = tiers if len(tiers) > 1 else None
        self._variants = variants or None
        self._bounds = self._dearest(tiers)

    def _dearest(self, tiers: list[tuple[int, Rates]]) -> dict[str | None, tuple[int, int, int]]:
        """Dearest (input, output, request) by the service tier asked for; None: the provider may choose one."""
        standard = (
            max(rates.dearest_input for _, rates in tiers),
            max(rates.dearest_output for _, rates in tiers),
            max(rates.request for _, rates in tiers),
        )
        bounds: dict[str | None, tuple[int, int, int]] = {None: standard}
        for name, variant in (self._variants or {}).items():
            asked = bounds[name] = _larger(standard, variant._bounds[None])
            if name not in ONLY_ASKED:
                bounds[None] = _larger(bounds[None], asked)
        return bounds

    def cost(self, usage: Usage) -> int:
        """What `usage` costs. Its service tier selects a variant where the price list has one."""
        if self._variants is not None and usage.service_tier is not None and usage.service_tier in self._variants:
            return self._variants[usage.service_tier].cost(usage)
        rates = self._base if self._tiers is None else self._tier(usage.input_tokens)
        read, write, write_long = usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_long_tokens
        thought = usage.reasoning_tokens
        pico = (
            (usage.input_tokens - read - write - write_long) * rates.input
            + read * rates.cache_read
            + write * rates.cache_write
            + write_long * rates.cache_write_long
            + (usage.output_tokens - thought) * rates.output
            + thought * rates.reasoning
            + rates.request
        )
        if usage.media is not None:
            pico += rates.beyond_text(usage.media)
        return -(-pico // PICO_PER_NANO)

    def expected(self, input_tokens: int, output_tokens: int, service_tier: str | None = None) -> int:
        """What so many tokens of text cost when nothing is cached, at the service tier that is asked for."""
        if self._variants is not None and service_tier is not None and service_tier in self._variants:
            return self._variants[service_tier].expected(input_tokens, output_tokens)
        rates = self._base if self._tiers is None else self._tier(input_tokens)
        return -(-(input_tokens * rates.input + output_tokens * rates.output + rates.request) // PICO_PER_NANO)

    def bound(self, input_tokens: int, output_tokens: int, service_tier: str | None = None) -> int:
        """The most that so many tokens can cost: dearest tier, and dearest class of input and output.

        `service_tier`: what the request asks for; None or unknown: the dearest that the provider may choose by itself.
        """
        bounds = self._bounds
        dearest_input, dearest_output, request = bounds.get(service_tier) or bounds[None]
        return -(-(input_tokens * dearest_input + output_tokens * dearest_output + request) // PICO_PER_NANO)

    def _tier(self, input_tokens: int) -> Rates:
        assert self._tiers is not None
        for start, rates in self._tiers:
            if input_tokens > start:
                return rates
        return self._base

    def __repr__(self) -> str:
        base = self._base
        return f"ModelPrice({self.provider}/{self.model}, input={base.input}, output={base.output} pico-dollars)"


def _rate_of(rates: Mapping[str, int], name: str) -> int:
    """A rate, or that of the class it belongs to where the list does not name it."""
    if name in _CACHED_MEDIA and name not in rates:
        name = _CACHED_MEDIA[name] if _CACHED_MEDIA[name] in rates else "cache_read"
    while name not in rates and name in _CLASS_OF:
        name = _CLASS_OF[name]
    return rates.get(name, 0)


def _larger(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])


class PriceBook:
    """Prices by (provider, model). Overrides come first; lookups are remembered, at most LOOKUPS_MAX of them."""

    def __init__(self, providers: Mapping[str, Any] | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._providers = {name: _Provider(name, data) for name, data in (providers or {}).items()}
        self._overrides: dict[tuple[str | None, str], ModelPrice] = {}
        self._known: dict[tuple[str, str], tuple[float, ModelPrice | None]] = {}
        self._assumed: dict[str, str] = {}
        self._now = now

    @classmethod
    def load(cls, *, now: Callable[[], float] = time.time) -> "PriceBook":
        """The prices shipped with this package. `now`: Unix seconds."""
        return cls(_shipped(), now=now)

    def price(self, provider_id: str, model: str) -> ModelPrice | None:
        """The price of a model now, or None when it is not known."""
        key = (provider_id, model)
        now = self._now()
        known = self._known.get(key)
        if known is not None and now < known[0]:
            return known[1]
        price = self._look_up(provider_id, model, now)
        if len(self._known) >= LOOKUPS_MAX:
            self._known.clear()
        self._known[key] = ((now // PERIOD_SECONDS + 1) * PERIOD_SECONDS, price)
        return price

    def knows(self, provider_id: str, model: str) -> bool:
        """Whether the list, or an override for this very provider, has a price of the model there."""
        name = model.lower()
        return (provider_id, name) in self._overrides or self._find_dated(provider_id, name) is not None

    def assume(self, provider_id: str, name: str) -> None:
        """What the list does not know of a provider by its id is looked up as `name`'s, e.g. its adapter's."""
        self._assumed[provider_id.lower()] = name
        self._known.clear()

    def context_tokens(self, provider_id: str, model: str) -> int | None:
        """The longest input that a model takes, where the shipped list knows it."""
        found = self._find_dated(provider_id, model.lower())
        return None if found is None else found[1].get("context")

    def models(self, provider_id: str) -> list[str]:
        """The names that have a price of their own at this provider now; patterns and date suffixes match more."""
        shipped = [name for provider in self._providers_of(provider_id) for name in provider.names]
        named = [model for owner, model in self._overrides if owner in (None, provider_id)]
        own = [(name, self.price(provider_id, name)) for name in shipped]
        return list(dict.fromkeys([*named, *(name for name, price in own if price and price.model == name)]))

    def add(
        self,
        provider_id: str | None,
        model: str,
        *,
        tiers: Iterable[tuple[int, Mapping[str, Decimal]]] = (),
        service_tiers: Mapping[str, Mapping[str, Decimal]] | None = None,
        **rates: Decimal | None,
    ) -> ModelPrice:
        """Override a price. `provider_id` None: at any provider.

        Args:
            tiers: (above this many input tokens, rates): the whole request costs these then.
            service_tiers: rates by the tier that served a request: `batch`, `flex`, `priority`, ….
            rates: dollars per million tokens, `input` at least (`request`: dollars per request). Names are those of
                `RATES`; what a tier does not name costs as without it.

        Raises ValueError for names that are unknown, and negative, non-finite or absurd amounts.
        """
        base = _picodollars({name: rate for name, rate in rates.items() if rate is not None})
        if not base.keys() & {"input", "request"}:
            raise ValueError("input: is required (or request)")
        row: dict[str, Any] = {name: [rate] for name, rate in base.items()}
        for above, told in sorted(tiers, key=lambda tier: tier[0]):
            for name, rate in _picodollars(told).items():
                row.setdefault(name, [_rate_of(base, name)]).extend((above, rate))
        variants = {
            tier: _model_price(provider_id or "", model, {**row, **_picodollars(told)}, {})
            for tier, told in (service_tiers or {}).items()
        }
        price = _model_price(provider_id or "", model, row, variants)
        self._overrides[(provider_id, model.lower())] = price
        self._known.clear()
        return price

    def remove(self, provider_id: str | None, model: str) -> None:
        """Take an override back; one that is not there is fine."""
        self._overrides.pop((provider_id, model.lower()), None)
        self._known.clear()

    def _look_up(self, provider_id: str, model: str, now: float) -> ModelPrice | None:
        name = model.lower()
        override = self._overrides.get((provider_id, name)) or self._overrides.get((None, name))
        if override is not None or len(name) > NAME_MAX:
            return override
        found = self._find_dated(provider_id, name)
        return None if found is None else _price_at(*found, datetime.fromtimestamp(now, UTC))

    def _find_dated(self, provider_id: str, name: str) -> tuple[str, Mapping[str, Any]] | None:
        """The provider's name in the list and the model's entry there, its date written either way."""
        for provider in self._providers_of(provider_id) if len(name) <= NAME_MAX else ():
            found = self._find(provider, name)
            if found is None:
                dashed = _COMPACT_DATE.sub(r"-\1-\2-\3", name)
                found = self._find(provider, dashed) if dashed != name else None
            if found is not None:
                return provider.name, found
        return None

    def _providers_of(self, provider_id: str) -> "list[_Provider]":
        """Whose prices a provider's may be: those of its id, then those of what it is assumed to be."""
        named = provider_id.lower()
        found = (self._find_provider(name) for name in (named, self._assumed.get(named, "")) if name)
        return list(dict.fromkeys(provider for provider in found if provider is not None))

    def _find_provider(self, provider_id: str) -> "_Provider | None":
        exact = self._providers.get(provider_id)
        if exact is not None:
            return exact
        return next((p for p in self._providers.values() if p.match is not None and p.match(provider_id)), None)

    def _find(self, provider: "_Provider", name: str) -> Mapping[str, Any] | None:
        found = provider.find(name)
        for fallback in provider.fallback if found is None else ():
            other = self._providers.get(fallback)
            found = other.find(name) if other is not None else None
            if found is not None:
                break
        return found


def _picodollars(rates: Mapping[str, Decimal]) -> dict[str, int]:
    unknown = sorted(rates.keys() - RATES.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}: is no rate; there are {', '.join(RATES)}")
    return {
        RATES[name]: _rate(name, rate, PICO_PER_DOLLAR, REQUEST_MAX)
        if name == "request"
        else _rate(name, rate, PICO_PER_MTOK_DOLLAR, RATE_MAX)
        for name, rate in rates.items()
    }


def _rate(name: str, dollars: Decimal, scale: int, most: int) -> int:
    if not dollars.is_finite() or dollars < 0 or dollars * scale > most:
        unit = "a thousand dollars a request" if most == REQUEST_MAX else "a dollar a token"
        raise ValueError(f"{name}: a price must be finite, not negative, and at most {unit}")
    return int((dollars * scale).to_integral_value(ROUND_CEILING))


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, Any]:
    text = files("apikeyrouter").joinpath("_data/prices.json").read_bytes()
    providers: Mapping[str, Any] = json.loads(text)["providers"]
    return providers


Matcher = Callable[[str], bool]


class _Provider:
    """One provider's models: exact names by dictionary, all other matchers in the order of the list."""

    def __init__(self, name: str, data: Mapping[str, Any]) -> None:
        self.name = name
        self.match: Matcher | None = _matcher(data["match"]) if "match" in data else None
        self.fallback: Iterable[str] = data.get("fallback", ())
        self._models: list[Mapping[str, Any]] = data["models"]
        self._exact: dict[str, int] | None = None
        self._others: list[tuple[int, Matcher]] = []

    @property
    def names(self) -> list[str]:
        """The ids of the list, matched by themselves or not."""
        return [model["id"] for model in self._models]

    def find(self, name: str) -> Mapping[str, Any] | None:
        """The first model of the list that matches a lower-case name."""
        if self._exact is None:
            self._exact = self._index()
        best = self._exact.get(name, len(self._models))
        for position, matches in self._others:
            if position >= best:
                break
            if matches(name):
                best = position
                break
        return self._models[best] if best < len(self._models) else None

    def _index(self) -> dict[str, int]:
        exact: dict[str, int] = {}
        for position, model in enumerate(self._models):
            clause = model["match"]
            rest = []
            for part in clause[1:] if clause[0] == "|" else [clause]:
                if part[0] == "=":
                    exact.setdefault(part[1], position)
                else:
                    rest.append(part)
            if rest:
                self._others.append((position, _matcher(["|", *rest])))
        return exact


def _matcher(clause: Any) -> Matcher:
    kind, *parts = clause
    if kind in "|&":
        inner = [_matcher(part) for part in parts]
        if len(inner) == 1:
            return inner[0]
        every = kind == "&"
        return (lambda name: all(m(name) for m in inner)) if every else (lambda name: any(m(name) for m in inner))
    text: str = parts[0]
    if kind == "~":
        pattern = re.compile(text)
        return lambda name: pattern.search(name) is not None
    return {
        "=": lambda name: name == text,
        "^": lambda name: name.startswith(text),
        "$": lambda name: name.endswith(text),
        "*": lambda name: text in name,
    }[kind]


def _price_at(provider: str, model: Mapping[str, Any], now: datetime) -> ModelPrice | None:
    rows = model.get("prices")
    if rows is None:
        return None
    active = [row for row in rows if _is_active(row, now)]
    standard = active[-1] if active else rows[0]
    grouped: dict[str, dict[str, Any]] = {}
    for row in model.get("variants", ()):
        if _is_active(row, now):
            grouped.setdefault(row["when"], {}).update(
                {name: rate for name, rate in row.items() if name not in grouped.get(row["when"], {})}
            )
    variants = {when: _model_price(provider, model["id"], {**standard, **row}, {}) for when, row in grouped.items()}
    return _model_price(provider, model["id"], standard, variants)


def _is_active(row: Mapping[str, Any], now: datetime) -> bool:
    if "from" in row:
        return now.date() >= date.fromisoformat(row["from"])
    if "hours" in row:
        start: int = row["hours"][0]
        end: int = row["hours"][1]
        minute = now.hour * 60 + now.minute
        return minute >= start or minute < end if end < start else start <= minute < end
    return True


def _model_price(provider: str, model: str, row: Mapping[str, Any], variants: Mapping[str, ModelPrice]) -> ModelPrice:
    steps = {name: _steps(row[name]) for name in _UNITS if name in row}
    starts = sorted({start for pairs in steps.values() for start, _ in pairs}, reverse=True)
    tiers = []
    for start in starts:
        rates = {name: next(rate for above, rate in pairs if start >= above) for name, pairs in steps.items()}
        tiers.append((start, Rates(rates)))
    return ModelPrice(provider, model, tiers, variants)


def _steps(value: Any) -> Steps:
    if isinstance(value, int):
        return ((-1, value),)
    pairs = [(-1, value[0]), *zip(value[1::2], value[2::2], strict=True)]
    return tuple(sorted(pairs, reverse=True))
