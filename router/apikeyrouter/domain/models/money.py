"""Amounts of money that print as people write them."""

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["Dollars", "Money", "plainly"]


class Dollars(Decimal):
    """A Decimal that prints in full: 0.0000001 and never 1E-7. What is computed with it is a plain Decimal."""

    __slots__ = ()

    def __str__(self) -> str:
        return format(self, "f")

    def __format__(self, spec: str, /, context: object = None) -> str:
        return Decimal.__format__(self, spec or "f")

    def __repr__(self) -> str:
        return f"Decimal('{self}')"


Money = Annotated[Decimal, AfterValidator(Dollars)]
"""A field of a model, in dollars."""


def plainly(number: float) -> str:
    """A number to six digits, written out: 0.0000000123."""
    return format(Decimal(f"{number:.6g}"), "f")
