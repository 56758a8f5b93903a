"""Limits that a refusal states in words: "… on requests per min (RPM): Limit 500, Used 500 …". Pure, names nobody."""

import re

from apikeyrouter.domain.models.accounting import LimitKind, Metric, Observation

__all__ = ["stated_limits"]

TEXT_LENGTH_MAX = 2000
AMOUNT_DIGITS_MAX = 12
_PERIODS_US = {"min": 60_000_000, "minute": 60_000_000, "day": 86_400_000_000}
_NAMES = {
    ("requests", 60_000_000): "rpm", ("tokens", 60_000_000): "tpm", ("input tokens", 60_000_000): "itpm",
    ("output tokens", 60_000_000): "otpm", ("requests", 86_400_000_000): "rpd", ("tokens", 86_400_000_000): "tpd",
}  # fmt: skip
_METRICS = {
    "requests": Metric.REQUESTS, "tokens": Metric.TOKENS, "input tokens": Metric.INPUT_TOKENS,
    "output tokens": Metric.OUTPUT_TOKENS,
}  # fmt: skip
_WHAT = r"(?P<what>requests|input tokens|output tokens|tokens) per (?P<per>minute|min|day)\b"
_STATED = (
    re.compile(_WHAT + r"[^:]{0,40}: limit:? (?P<amount>\d[\d,]{0,15})\b", re.IGNORECASE),
    re.compile(r"limit\b[^.:]{0,80}? of (?P<amount>\d[\d,]{0,15}) " + _WHAT, re.IGNORECASE),
)


def stated_limits(text: str) -> list[Observation]:
    """The limits that a refusal names, each at most once. Nothing is said of what is left."""
    found: dict[str, Observation] = {}
    for pattern in _STATED:
        for match in pattern.finditer(text[:TEXT_LENGTH_MAX]):
            what, period_us = match["what"].lower(), _PERIODS_US[match["per"].lower()]
            name, amount = _NAMES.get((what, period_us)), match["amount"].replace(",", "")
            if name is not None and len(amount) <= AMOUNT_DIGITS_MAX and int(amount):
                found[name] = Observation(
                    name=name, metric=_METRICS[what], kind=LimitKind.BUCKET, period_us=period_us, limit=int(amount)
                )
    return list(found.values())
