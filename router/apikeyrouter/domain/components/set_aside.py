"""What of a limit is set aside for the time when the store is away, and what is left for all others. Pure."""

from dataclasses import replace
from math import floor

from apikeyrouter.domain.models.accounting import Limit

__all__ = ["UNITS", "share_of", "without"]

UNITS = 1_000_000
"""What is set aside is divided in so many units."""


def without(limit: Limit, set_aside: float) -> Limit:
    """What the ledger admits: all that is not set aside."""
    burst = None if limit.burst is None else limit.burst - floor(limit.burst * set_aside)
    return replace(limit, amount=limit.amount - floor(limit.amount * set_aside), burst=burst)


def share_of(limit: Limit, set_aside: float, units: int) -> Limit:
    """What so many units of what is set aside allow: whole amounts, rounded down."""
    amount = floor(limit.amount * set_aside) * units // UNITS
    burst = None if limit.burst is None or not amount else floor(limit.burst * set_aside) * units // UNITS
    return replace(limit, amount=amount, burst=burst)
