"""The simulator's configuration: plain data, validated, with errors that name the place."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct

from apikeyrouter.simulator.prices import Price, price_of
from apikeyrouter.strict_yaml import StrictYamlError, read_yaml

__all__ = [
    "Config",
    "ConfigError",
    "DialectName",
    "FailureRule",
    "KeyConfig",
    "LatencyConfig",
    "LimitRow",
    "OrganisationConfig",
    "Part",
    "PriceConfig",
    "check_organisation",
    "default_config",
    "exact_price",
    "full_keys",
    "load_config",
    "parse_config",
    "parse_part",
    "spend_nanousd",
]

DialectName = Literal["openai", "anthropic", "gemini", "azure", "groq", "mistral", "deepseek", "openrouter"]
AMOUNT_MAX = 2**53
Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]
Count = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=10**9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Dollars = float | int | str
Material = Annotated[str, Meta(min_length=1, max_length=512)]
NANOUSD_PER_USD = 1_000_000_000


class ConfigError(ValueError):
    """The configuration is not usable; the message says where and why."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every piece of configuration: immutable, and unknown names are refused."""


_PartT = TypeVar("_PartT", bound=Part)


class LimitRow(Part, frozen=True):
    """Limits of one pool of models (``models`` absent: each request counts, whatever its model).

    ``kind`` applies to the whole row; without one, rates are token buckets and spend is a calendar day.
    ``slice_seconds`` checks the requests of a minute in slices (azure: of ten seconds, unless it is given): a limit of
    60 a minute is one of 10 in each of them. ``period_seconds`` replaces the minute of rpm, tpm, input_tpm and
    output_tpm. ``burst`` is the size of the request buckets, ``burst_tokens`` that of the token buckets (default: the
    limit itself). ``spend_period_seconds`` makes the spend limit a rolling one (or of ``kind``); else it is per
    calendar ``spend_period``. Without a ``kind``, gemini's minutes are fixed windows and its days end at midnight
    Pacific; openrouter's days end at midnight UTC.
    """

    models: list[str] | None = None
    rpm: Amount | None = None
    tpm: Amount | None = None
    input_tpm: Amount | None = None
    output_tpm: Amount | None = None
    rpd: Amount | None = None
    tpd: Amount | None = None
    concurrency: Amount | None = None
    spend_usd: Dollars | None = None
    kind: Literal["bucket", "fixed", "sliding", "calendar"] | None = None
    burst: Amount | None = None
    burst_tokens: Amount | None = None
    slice_seconds: Annotated[float, Meta(ge=0, le=60)] | None = None
    period_seconds: Annotated[float, Meta(gt=0, le=10**9)] = 60
    timezone: str = "UTC"
    spend_period: Literal["day", "month"] = "day"
    spend_period_seconds: Annotated[float, Meta(gt=0, le=10**9)] | None = None


class PriceConfig(Part, frozen=True):
    """Dollars per million tokens; decimals are exact when given as strings."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    cache_write: Dollars | None = None


class KeyConfig(Part, frozen=True):
    """One key: its material, a name for reports (default: organisation/number), limits of its own."""

    key: Material
    id: str | None = None
    limits: list[LimitRow] = []
    models: list[str] | None = None
    disabled: bool = False


class LatencyConfig(Part, frozen=True):
    """A seeded distribution of milliseconds; ``fixed`` is ``mean``, ``uniform`` is between ``min`` and ``max``."""

    dist: Literal["fixed", "uniform", "exponential", "lognormal"] = "fixed"
    mean: Seconds = 0
    sigma: Seconds = 0.5
    min: Seconds = 0
    max: Seconds = 60_000


class OrganisationConfig(Part, frozen=True):
    """One organisation of a provider: keys that share limits, and how it behaves.

    ``latency_ms`` is the time to the (first byte of the) answer, ``first_token_ms`` overrides it for streams;
    ``tokens_per_second`` paces output (0: as fast as possible); ``output_tokens`` is the natural length of an answer.
    ``charge_rejected`` counts refused and failed requests against request limits (default: openai yes, others no).
    ``thinking_tokens`` are produced before each answer and billed as output (gemini).
    ``charge_formula`` of the openai dialect: ``input_plus_cap`` (default, the dearer reading) or ``max``
    (the larger of cap and input). ``cache`` turns the prompt cache on. ``models`` absent: any model is served.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    dialect: DialectName = "openai"
    keys: list[Material | KeyConfig] = []
    limits: list[LimitRow] = []
    models: list[str] | None = None
    prices: dict[str, PriceConfig] = {}
    latency_ms: Seconds | LatencyConfig = 0
    first_token_ms: Seconds | LatencyConfig | None = None
    tokens_per_second: Annotated[float, Meta(ge=0, le=10**6)] = 0
    tokens_per_chunk: Annotated[int, Meta(ge=1, le=10_000)] = 1
    output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 24
    context_tokens: Amount = 200_000
    cache: bool = False
    thinking_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    charge_rejected: bool | None = None
    charge_formula: Literal["input_plus_cap", "max"] = "input_plus_cap"
    bill_on_disconnect: Literal["generated", "all", "nothing"] = "generated"
    project: str | None = None
    workspace: str | None = None


class FailureRule(Part, frozen=True):
    """Fail requests that match: of an organisation, key (id) or model; with a probability; at most ``count`` times.

    ``skip`` lets that many matching requests through first. ``seconds`` is the wait a failure names or takes
    (retry-after, stall, slow first token), ``after_chunks`` how many content deltas go out before a stream fails.
    """

    name: str
    organisation: str | None = None
    key: str | None = None
    model: str | None = None
    probability: Share = 1.0
    count: Count | None = None
    skip: Count = 0
    seconds: Seconds | None = None
    after_chunks: Annotated[int, Meta(ge=0, le=1_000_000)] = 2


class Config(Part, frozen=True):
    """The whole of it. ``open`` accepts unknown keys (unlimited); ``seed`` fixes every random choice."""

    organisations: list[OrganisationConfig] = []
    failures: list[FailureRule] = []
    prices: dict[str, PriceConfig] = {}
    open: bool = False
    seed: int = 1
    clock_offset_seconds: Annotated[float, Meta(ge=-(10**9), le=10**9)] = 0
    journal_length: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000


def parse_part(data: object, kind: type[_PartT]) -> _PartT:
    """``data`` (plain JSON types) as a piece of configuration; :class:`ConfigError` names the place."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def parse_config(data: Mapping[str, Any]) -> Config:
    """A whole configuration from plain JSON types; :class:`ConfigError` names the place."""
    config = parse_part(dict(data), Config)
    _check_unique(config)
    for organisation in config.organisations:
        check_organisation(organisation, prices=config.prices)
    return config


def check_organisation(organisation: OrganisationConfig, *, prices: Mapping[str, PriceConfig]) -> None:
    """Raises :class:`ConfigError` for what types cannot say: amounts of money, prices, time zones."""
    try:
        for row in [*organisation.limits, *(row for key in full_keys(organisation) for row in key.limits)]:
            ZoneInfo(row.timezone)
            if row.spend_usd is not None and not 1 <= spend_nanousd(row) <= AMOUNT_MAX:
                raise ValueError(f"spend_usd {row.spend_usd} is out of range")
        for price in [*organisation.prices.values(), *prices.values()]:
            exact_price(price)
    except (ArithmeticError, ValueError, OSError, LookupError) as error:
        raise ConfigError(f"organisation {organisation.id}: {error}") from error


def spend_nanousd(row: LimitRow) -> int:
    """The row's spend limit in integer nano-dollars; ``ValueError`` if it is not a number."""
    try:
        return int(Decimal(str(row.spend_usd)) * NANOUSD_PER_USD)
    except ArithmeticError as error:
        raise ValueError(f"spend_usd {row.spend_usd} is not an amount") from error


def exact_price(config: PriceConfig) -> Price:
    """Integer pico-dollars per token; ``ValueError`` if the price is finer than that."""
    optional = [None if usd is None else str(usd) for usd in (config.cached_input, config.cache_write)]
    return price_of(str(config.input), str(config.output), *optional)


def full_keys(organisation: OrganisationConfig) -> list[KeyConfig]:
    """The organisation's keys, those given as bare strings completed; ids default to ``organisation/number``."""
    keys = [KeyConfig(key=key) if isinstance(key, str) else key for key in organisation.keys]
    return [
        key if key.id else msgspec.structs.replace(key, id=f"{organisation.id}/{number}")
        for number, key in enumerate(keys, start=1)
    ]


def load_config(source: str | None) -> Config:
    """From a JSON or YAML file, from the first line of standard input (``-``), or the built-in one (None)."""
    if source is None:
        return parse_config(default_config())
    try:
        text = sys.stdin.readline() if source == "-" else Path(source).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("the configuration is not text in UTF-8") from error
    data = _decode(text, is_yaml=source.endswith((".yaml", ".yml")))
    if not isinstance(data, dict):
        raise ConfigError("the configuration must be a mapping")
    return parse_config(data)


def default_config() -> dict[str, Any]:
    """What ``make run`` uses: two OpenAI organisations with five keys, one Anthropic organisation with two."""
    return {
        "organisations": [
            {
                "id": "org-alpha",
                "keys": ["sk-sim-alpha-1", "sk-sim-alpha-2", "sk-sim-alpha-3"],
                "limits": [{"rpm": 600, "tpm": 400_000}, {"concurrency": 64}],
                "latency_ms": {"dist": "lognormal", "mean": 120, "sigma": 0.4},
                "tokens_per_second": 200,
            },
            {
                "id": "org-beta",
                "keys": ["sk-sim-beta-1", "sk-sim-beta-2"],
                "limits": [{"rpm": 300, "tpm": 200_000, "rpd": 20_000}],
                "latency_ms": {"dist": "lognormal", "mean": 180, "sigma": 0.4},
                "tokens_per_second": 120,
            },
            {
                "id": "org-gamma",
                "dialect": "anthropic",
                "keys": ["sk-ant-sim-gamma-1", "sk-ant-sim-gamma-2"],
                "limits": [{"rpm": 300, "input_tpm": 200_000, "output_tpm": 60_000}],
                "latency_ms": {"dist": "lognormal", "mean": 200, "sigma": 0.4},
                "tokens_per_second": 120,
                "tokens_per_chunk": 4,
            },
        ],
    }


def _decode(text: str, *, is_yaml: bool) -> object:
    try:
        if is_yaml:
            return read_yaml(text)
        return json.loads(text, parse_constant=_refuse_constant)
    except StrictYamlError as error:
        raise ConfigError(f"the configuration is not valid YAML: {error}") from error
    except ValueError as error:
        raise ConfigError(f"the configuration is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _check_unique(config: Config) -> None:
    ids = [organisation.id for organisation in config.organisations]
    keys = [key.key for organisation in config.organisations for key in full_keys(organisation)]
    if len(set(ids)) < len(ids):
        raise ConfigError("$.organisations: an id is given twice")
    if len(set(keys)) < len(keys):
        raise ConfigError("$.organisations: a key is given twice")
