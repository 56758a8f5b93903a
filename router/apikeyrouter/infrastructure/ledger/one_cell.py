"""What the ledger of one cell says where it is asked as one of several (`spread_ledger.py`)."""

from collections.abc import Callable, Iterable
from typing import Self

from apikeyrouter.infrastructure.ledger.engine import Engine

__all__ = ["OneCell"]


class OneCell:
    """It is all that there is."""

    engine: Engine

    @property
    def cells(self) -> tuple[Self, ...]:
        """The ledger of each cell: this one."""
        return (self,)

    def of_booking(self, *, lanes: Iterable[str] = (), scopes: Iterable[str] = ()) -> int:
        """The number of the cell in which something is booked that nobody asked for: there is one."""
        return 0

    def renew_engines(self, anew: Callable[[Engine, int], Engine]) -> None:
        """Go on with the engine that `anew` makes of this one and the number of its cell."""
        self.engine = anew(self.engine, 0)
