"""How providers' limits refill, by adapter. Facts: `providers.md` §1.2 and `accounting.md` §2.5, November 2026."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from apikeyrouter.domain.components.limits import SAFE_PROFILE, LimitProfile
from apikeyrouter.domain.models.accounting import LimitKind, Metric

__all__ = ["KNOWN_PROFILES", "profile_for", "profile_name"]

KNOWN_PROFILES: Mapping[str, LimitProfile] = MappingProxyType(
    {
        # Refills continuously, days too; charges its own estimate and keeps it.
        "openai": LimitProfile(refund=False),
        # A documented token bucket; input as counted, output as produced.
        "anthropic": LimitProfile(),
        # As OpenAI, but requests are checked in slices, of ten seconds as a rule.
        "azure": LimitProfile(refund=False, slice_us=10_000_000),
        # Its headers show the same refill as OpenAI's: 30 of 14,400 requests a day used, whole again in 2m59.56s.
        "groq": LimitProfile(refund=False),
        # How minutes refill is not known; free models have a day that ends at midnight UTC.
        "openrouter": LimitProfile(safe=True, refund=False, day=LimitKind.CALENDAR),
        # Minutes reset at second 00, days at midnight Pacific; its tokens per minute are input tokens.
        "gemini": LimitProfile(
            minute=LimitKind.FIXED,
            day=LimitKind.CALENDAR,
            timezone="America/Los_Angeles",
            tokens=Metric.INPUT_TOKENS,
        ),
    }
)


def profile_for(adapter: str, known: Mapping[str, LimitProfile] = KNOWN_PROFILES) -> LimitProfile:
    """The adapter's profile; of an unknown one only the safe reading holds."""
    return known.get(adapter, SAFE_PROFILE)


def profile_name(wire: Any) -> str:
    """The name of the profile that goes with a provider's wire; "" for one that speaks none."""
    if wire is None:
        return ""
    return str(wire.family if wire.family in KNOWN_PROFILES else wire.dialect)
