"""What a request is expected to cost, or did cost."""

from decimal import Decimal

from pydantic import Field

from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.money import Dollars, Money

__all__ = ["CostEstimate"]

NANOUSD_PER_USD = 10**9


class CostEstimate(EdgeModel):
    """An amount of money with what it was computed from.

    `amount` in `currency`, exact. An unknown price has no CostEstimate at all (None), never an amount of 0.
    `bound` is an upper bound where one exists. `confidence` is 1 for an amount computed from real usage.
    """

    amount: Money = Field(ge=0, allow_inf_nan=False)
    currency: str = Field(default="USD", min_length=3, max_length=3)
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    bound: Money | None = Field(default=None, ge=0, allow_inf_nan=False)
    confidence: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    method: str = ""

    @classmethod
    def from_nanousd(cls, amount_nanousd: int, *, input_tokens: int = 0, output_tokens: int = 0) -> "CostEstimate":
        """The estimate of an integer amount of nano-dollars (≥ 0), exactly."""
        amount = dollars(amount_nanousd)
        return cls.made(amount=amount, input_tokens=input_tokens, output_tokens=output_tokens)


def dollars(amount_nanousd: int) -> Decimal:
    """Nano-dollars as Decimal dollars, exactly, whatever the decimal context; they print in full."""
    whole, fraction = divmod(abs(amount_nanousd), NANOUSD_PER_USD)
    sign = "-" if amount_nanousd < 0 else ""
    return Dollars(f"{sign}{whole}.{fraction:09d}".rstrip("0").rstrip("."))


def nanousd(amount: Decimal) -> int:
    """Decimal dollars as nano-dollars, rounded up to the next whole one (never in the spender's favour)."""
    if not amount.is_finite():
        raise ValueError("an amount of money must be a finite number")
    numerator, denominator = amount.as_integer_ratio()
    return -(-numerator * NANOUSD_PER_USD // denominator)
