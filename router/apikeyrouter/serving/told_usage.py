"""Usage as applications tell it: counts, an SDK's usage object, or its whole answer."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import isfinite
from typing import Any

import msgspec

from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.domain.models.usage import Usage

__all__ = ["check_count", "read_usage"]

TOKENS_MAX = 2**31
_INPUT, _OUTPUT = ("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")


def read_usage(told: Any, wire: Wire | None, counts: Mapping[str, int | None]) -> Usage:
    """What was used. `told`: our own usage, an SDK's usage object or answer, or a mapping of its JSON; None: `counts`,
    which has `input_tokens` and `output_tokens` (inclusive), `cache_read_tokens` and `cache_write_tokens`.

    Raises:
        InvalidRequestError: no counts are to be found, or they are no counts.
    """
    given = {name: check_count(name, value) for name, value in counts.items() if value is not None}
    if told is None:
        if "input_tokens" not in given and "output_tokens" not in given:
            raise InvalidRequestError("tell input_tokens and output_tokens, or the SDK's usage", field="usage")
        return Usage(
            input_tokens=given.get("input_tokens", 0), output_tokens=given.get("output_tokens", 0),
            cache_read_tokens=given.get("cache_read_tokens", 0), cache_write_tokens=given.get("cache_write_tokens", 0),
        )  # fmt: skip
    if given:
        raise InvalidRequestError("tell either usage or counts, not both", field="usage")
    read = told if isinstance(told, Usage) else _own(told)
    if read is None:
        read = _foreign(told, wire)
    check_count("input_tokens", read.input_tokens)
    check_count("output_tokens", read.output_tokens)
    return read


def _own(told: Any) -> Usage | None:
    if isinstance(told, SystemResponse):
        told = told.metadata.tokens_used
    elif isinstance(told, StreamChunk):
        told = told.usage
    if not isinstance(told, TokenUsage):
        return None
    return Usage(
        input_tokens=told.input_tokens, output_tokens=told.output_tokens, cache_read_tokens=told.cache_read_tokens,
        cache_write_tokens=told.cache_write_tokens, reasoning_tokens=told.reasoning_tokens, estimated=told.estimated,
    )  # fmt: skip


def _foreign(told: Any, wire: Wire | None) -> Usage:
    plain = _plain(told)
    inner = next((plain[name] for name in ("usage", "usageMetadata") if isinstance(plain.get(name), Mapping)), plain)
    _check_finite(inner)
    for shape in (plain, {"usage": plain}, {"usageMetadata": plain}) if wire is not None else ():
        assert wire is not None
        found = wire.read_usage(msgspec.json.encode(shape))
        if found is not None:
            return found
    return _generic(inner)


def _check_finite(counts: Mapping[str, Any]) -> None:
    """JSON has no such numbers: written in it they would be as if they had not been told."""
    for name, value in counts.items():
        if isinstance(value, Mapping):
            _check_finite(value)
        elif isinstance(value, float) and not isfinite(value):
            check_count(name, value)


def _generic(plain: Mapping[str, Any]) -> Usage:
    """Of a provider without a dialect of ours."""
    counted = {
        name: next((check_count(alias, plain[alias]) for alias in aliases if plain.get(alias) is not None), None)
        for name, aliases in (("input_tokens", _INPUT), ("output_tokens", _OUTPUT))
    }
    if all(count is None for count in counted.values()):
        raise InvalidRequestError("has no token counts", field="usage")
    return Usage(input_tokens=counted["input_tokens"] or 0, output_tokens=counted["output_tokens"] or 0)


def _plain(told: Any) -> dict[str, Any]:
    """An object of an SDK as the JSON that it was made of."""
    if isinstance(told, Mapping):
        return dict(told)
    dump = getattr(told, "model_dump", None)
    if callable(dump):
        return dict(dump(mode="json", by_alias=True, exclude_none=True))
    if is_dataclass(told) and not isinstance(told, type):
        return asdict(told)
    raise InvalidRequestError(f"cannot be read from {type(told).__name__}", field="usage")


def check_count(name: str, value: object) -> int:
    """A count of tokens. Raises InvalidRequestError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
        raise InvalidRequestError(f"must be a whole number between 0 and {TOKENS_MAX}", field=name)
    return value
