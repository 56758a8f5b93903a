"""Types of the configuration file's fields, each with its complaint in our words."""

import math
import re
from decimal import Decimal
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from apikeyrouter.domain.models.accounting import SuspenseRule
from apikeyrouter.domain.models.names import addressable
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = [
    "BaseUrl",
    "ConnectionsMax",
    "Entry",
    "ModelName",
    "Name",
    "PathName",
    "Price",
    "Quality",
    "Secret",
    "Suspense",
    "SuspenseText",
    "Weight",
]

CONNECTIONS_LIMIT = 65_535
NAME_BYTES_MAX = 64
MODEL_BYTES_MAX = 128
SECRET_LENGTH_MAX = 16_384
WEIGHT_MAX = 1_000_000
PRICE_DOLLARS_MAX = 1_000_000
"""Dearest price per million tokens: a dollar a token."""
_DURATION_US = {"m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_SUSPENSE = re.compile(r"(charge|refund)_after_([1-9][0-9]{0,3})([mhd])")
_FORBIDDEN = re.compile(r"[\s:\x00-\x1f\x7f]")


class Entry(BaseModel):
    """One mapping in the file. Unknown names are refused; errors never show values."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("must be text" if not isinstance(value, str) else "must not be empty")
    if _FORBIDDEN.search(value) or len(value.encode()) > NAME_BYTES_MAX:
        raise InvalidRequestError(f"must have no blanks and no colons, and at most {NAME_BYTES_MAX} bytes")
    return value


def _model_name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError("must be the name of a model")
    if not value.isprintable() or len(value.encode()) > MODEL_BYTES_MAX:
        raise InvalidRequestError(f"must be printable and have at most {MODEL_BYTES_MAX} bytes")
    return value


def _secret(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError("must be env:NAME, file:PATH or the secret itself, as text")
    if len(value) > SECRET_LENGTH_MAX:
        raise InvalidRequestError(f"must have at most {SECRET_LENGTH_MAX} characters")
    return value.strip()


def _base_url(value: object) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidRequestError("must be a URL that starts with http:// or https:// and names a host")
    return str(value).rstrip("/")


def _number(value: object, *, most: int) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError("must be a number")
    if not math.isfinite(value) or value < 0:
        raise InvalidRequestError("must be a finite number, not negative")
    if value > most:
        raise InvalidRequestError(f"must be at most {most}")
    return Decimal(str(value))


def _weight(value: object) -> float:
    number = float(_number(value, most=WEIGHT_MAX))
    if number == 0:
        raise InvalidRequestError("must be above 0")
    return number


def _quality(value: object) -> float:
    return float(_number(value, most=1))


def _price(value: object) -> Decimal:
    return _number(value, most=PRICE_DOLLARS_MAX)


class Suspense(BaseModel):
    """What becomes of suspended money, and after how many microseconds."""

    model_config = ConfigDict(frozen=True)

    rule: SuspenseRule = SuspenseRule.CHARGE
    after_us: int = _DURATION_US["h"]


def _suspense(value: object) -> Suspense:
    if isinstance(value, Suspense):
        return value
    if value == "hold":
        return Suspense(rule=SuspenseRule.HOLD)
    match = _SUSPENSE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidRequestError("must be hold, or charge_after_ or refund_after_ with a time, e.g. charge_after_1h")
    return Suspense(rule=SuspenseRule(match[1]), after_us=int(match[2]) * _DURATION_US[match[3]])


Name = Annotated[str, BeforeValidator(_name)]
PathName = Annotated[Name, AfterValidator(addressable)]
"""The name of what the management API shows under its name."""
ModelName = Annotated[str, BeforeValidator(_model_name)]
Secret = Annotated[str, BeforeValidator(_secret), Field(repr=False)]
BaseUrl = Annotated[str, BeforeValidator(_base_url)]
ConnectionsMax = Annotated[int, Field(ge=1, le=CONNECTIONS_LIMIT, strict=True)]
"""Most connections of one process to a provider."""
Price = Annotated[Decimal, BeforeValidator(_price)]
Weight = Annotated[float, BeforeValidator(_weight)]
Quality = Annotated[float, BeforeValidator(_quality)]
SuspenseText = Annotated[Suspense, BeforeValidator(_suspense)]
