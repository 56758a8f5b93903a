"""Compile the prices of genai-prices (MIT licence) to the plain JSON that ships with the package.

Run it after updating genai-prices:  python tools/compile_prices.py  (with --check: fail when the file is stale).

What comes out is integers only: pico-dollars per token (one dollar per million tokens is 1,000,000), or per request.
A rate is an integer, or `[base, start, rate, …]`: above `start` input tokens the whole request has that rate.
A fraction of a pico-dollar is rounded up, except what a binary float added to a decimal. Prices that no token count
measures (hours of audio, characters, pages, searches) are left out; a model that has only those is unpriced.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from genai_prices import types
from genai_prices.data import providers

TARGET = Path(__file__).resolve().parent.parent / "router" / "apikeyrouter" / "_data" / "prices.json"
BYTES_MAX = 1024 * 1024
NOTICE = "Compiled from genai-prices, https://github.com/pydantic/genai-prices, under the MIT License below."
UNITS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_5m_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "output_citation_mtok": "output_other",
    "requests_kcount": "request",
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "input_video_mtok": "input_video",
    "cache_audio_read_mtok": "cache_audio_read",
    "cache_image_read_mtok": "cache_image_read",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "output_video_mtok": "output_video",
}
PRICED = frozenset({"input", "output", "request"})
CONTEXTS = frozenset({"service_tier", "speed", "processing"})
"""Price variants that an answer's service tier, its speed, or batch processing selects."""

_FLOAT_NOISE = Decimal("0.0001")


def main(arguments: list[str] | None = None) -> int:
    """Write the file, or with `--check` compare it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="fail when the shipped file is not what this makes")
    options = parser.parse_args(arguments)
    text = render(compile_all())
    if options.check:
        return 0 if TARGET.read_text("utf-8") == text else 1
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, "utf-8")
    sys.stdout.write(f"{TARGET.name}: {len(text.encode())} bytes\n")
    return 0


def compile_all() -> dict[str, Any]:
    """Everything, as JSON values."""
    return {
        "notice": NOTICE,
        "license": (distribution("genai-prices").read_text("licenses/LICENSE") or "").splitlines(),
        "source": f"genai-prices {version('genai-prices')}",
        "unit": "pico-dollars per token",
        "providers": {provider.id: _provider(provider) for provider in providers},
    }


def render(document: dict[str, Any]) -> str:
    """One model a line, so that a change of prices is a readable difference."""
    head = {name: value for name, value in document.items() if name != "providers"}
    lines = [json.dumps(head, indent=1)[:-2] + ',\n "providers": {']
    blocks = [_render_provider(name, provider) for name, provider in document["providers"].items()]
    lines.append(",\n".join(blocks))
    lines.append("}}\n")
    text = "\n".join(lines)
    if len(text.encode()) >= BYTES_MAX:
        raise SystemExit(f"the compiled prices have {len(text.encode())} bytes, {BYTES_MAX} are allowed")
    return text


def _render_provider(name: str, provider: dict[str, Any]) -> str:
    head = {key: value for key, value in provider.items() if key != "models"}
    models = ",\n".join(_compact(model) for model in provider["models"])
    return f'{json.dumps(name)}: {_compact(head)[:-1]}{"," if head else ""}"models":[\n{models}]}}'


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _provider(provider: types.Provider) -> dict[str, Any]:
    compiled: dict[str, Any] = {}
    if provider.provider_match is not None:
        compiled["match"] = _clause(provider.provider_match)
    if provider.fallback_model_providers:
        compiled["fallback"] = list(provider.fallback_model_providers)
    compiled["models"] = [model for model in map(_model, provider.models) if model is not None]
    return compiled


def _model(model: types.ModelInfo) -> dict[str, Any]:
    """One model. Without prices that tokens measure it stays listed, so that no later matcher takes its name."""
    compiled: dict[str, Any] = {"id": model.id, "match": _clause(model.match)}
    if model.context_window:
        compiled["context"] = model.context_window
    prices = model.prices if isinstance(model.prices, list) else [types.ConditionalPrice(prices=model.prices)]
    rows = [{**_when(row.constraint), **_rates(row.prices)} for row in prices]
    if any(PRICED & row.keys() for row in rows):
        compiled["prices"] = rows
        variants = list(_variants(model))
        if variants:
            compiled["variants"] = variants
    return compiled


def _variants(model: types.ModelInfo) -> Iterator[dict[str, Any]]:
    for variant in model.price_variants or ():
        if len(variant.when) == 1 and variant.when.keys() <= CONTEXTS:
            rates = _rates(variant.prices)
            if rates:
                yield {"when": next(iter(variant.when.values())), **_when(variant.constraint), **rates}


def _when(constraint: object) -> dict[str, Any]:
    if isinstance(constraint, types.StartDateConstraint):
        return {"from": constraint.start_date.isoformat()}
    if isinstance(constraint, types.TimeOfDateConstraint):
        return {"hours": [_minutes(constraint.start_time), _minutes(constraint.end_time)]}
    return {}


def _minutes(moment: Any) -> int:
    """Minutes since midnight UTC; times in the data are UTC or carry their offset."""
    offset = moment.utcoffset()
    shift = int(offset.total_seconds() // 60) if offset is not None else 0
    return int(moment.hour * 60 + moment.minute - shift) % 1440


def _rates(prices: types.ModelPrice) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in prices.__dict__.items():
        if value is None or key not in UNITS:
            continue
        per = 1_000 if key == "requests_kcount" else 1_000_000
        if isinstance(value, types.TieredPrices):
            steps: list[int] = [_pico(value.base, per)]
            for tier in value.tiers:
                steps += [tier.start, _pico(tier.price, per)]
            found[UNITS[key]] = steps
        else:
            found[UNITS[key]] = _pico(value, per)
    return found


def _pico(dollars: Decimal, per: int) -> int:
    exact = dollars * 10**12 / per
    nearest = exact.quantize(Decimal(1), ROUND_HALF_EVEN)
    if abs(exact - nearest) <= _FLOAT_NOISE:
        return int(nearest)
    return int(exact.quantize(Decimal(1), ROUND_CEILING))


def _clause(clause: Any) -> Any:
    """`["=", text]`, `["^", prefix]`, `["$", suffix]`, `["*", part]`, `["~", regex]`, `["|", …]`, `["&", …]`."""
    match clause:
        case types.ClauseEquals():
            return ["=", clause.equals.lower()]
        case types.ClauseStartsWith():
            return ["^", clause.starts_with.lower()]
        case types.ClauseEndsWith():
            return ["$", clause.ends_with.lower()]
        case types.ClauseContains():
            return ["*", clause.contains.lower()]
        case types.ClauseRegex():
            return ["~", clause.regex]
        case types.ClauseOr():
            return ["|", *map(_clause, clause.or_)]
        case types.ClauseAnd():
            return ["&", *map(_clause, clause.and_)]
        case _:
            raise SystemExit(f"unknown matcher {type(clause).__name__}")


if __name__ == "__main__":
    raise SystemExit(main())
