"""How long the phases of an exchange with a provider may take."""

import msgspec

__all__ = ["Timeouts"]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds per phase; None: no limit.

    `first_byte`: until the answer's head. `first_token`: of a stream, until the first event that says something of the
    answer, whatever came before it. `idle`: between chunks. `total`: a deadline for the whole exchange, where the
    caller has one; a timer for each exchange costs more than the phases' own.
    """

    connect: float | None = 5.0
    first_byte: float | None = 120.0
    first_token: float | None = None
    idle: float | None = 120.0
    total: float | None = None

    def within(self, left: float) -> "Timeouts":
        """The same, none longer than `left` seconds."""
        return Timeouts(
            connect=_least(self.connect, left), first_byte=_least(self.first_byte, left), first_token=self.first_token,
            idle=_least(self.idle, left), total=_least(self.total, left),
        )  # fmt: skip


def _least(limit: float | None, left: float) -> float:
    return left if limit is None else min(limit, left)
