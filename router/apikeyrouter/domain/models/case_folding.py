"""The base of every public enum: CamelCase members, lower-case values, comparisons that fold case."""

from enum import StrEnum
from typing import Self


def fold(text: str) -> str:
    """`"RateLimitError"`, `"rate_limit_error"` and `"rate-limit error"` fold to the same text."""
    return text.casefold().replace("_", "").replace("-", "").replace(" ", "")


class CaseFolding(StrEnum):
    """An enum that is as forgiving as a configuration file and as strict as a type.

    Accepts a member's value or name (aliases included) in any case, with or without underscores, as input
    (`KeyState("Throttled")`) and in comparisons (`state == "Exhausted"`). JSON and `str()` give the lower-case value.
    The hash is the value's, so a dict keyed by values finds members and the other way round.
    """

    @classmethod
    def lookup(cls, text: str) -> Self | None:
        """The member that `text` means, or None."""
        folded = fold(text)
        for name, member in cls.__members__.items():
            if fold(name) == folded or fold(member._value_) == folded:
                return member
        return None

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls.lookup(value) if isinstance(value, str) else None

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is type(self) or not isinstance(other, str):
            return False
        return type(self).lookup(str(other)) is self

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._value_)
