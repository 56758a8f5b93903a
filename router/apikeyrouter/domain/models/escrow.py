"""What two cells tell each other of a budget that both spend: sums that only grow within a period. Nano-dollars."""

from typing import NamedTuple


class ChildBooks(NamedTuple):
    """A scope in a cell that is not its home: `funded` by the home in all, `returned` of that; spent is the rest."""

    start_us: int = 0
    end_us: int = 0
    funded: int = 0
    returned: int = 0
    settled: int = 0
    held: int = 0
    suspense: int = 0

    @property
    def free(self) -> int:
        """What the cell may still spend; negative where more was used than held."""
        return self.funded - self.returned - self.settled - self.held - self.suspense


class HomeBooks(NamedTuple):
    """A scope at home. `held` has what stands out in other cells; `sums`: granted and returned, of each from 1 on."""

    start_us: int
    end_us: int
    limit: int
    settled: int
    held: int
    suspense: int
    sums: tuple[tuple[int, int], ...] = ()

    @property
    def free(self) -> int:
        """What is neither spent here nor granted; negative where the limit was lowered, or more was used than held."""
        return self.limit - self.settled - self.held - self.suspense

    @property
    def granted(self) -> int:
        """What stands out in other cells."""
        return sum(granted - returned for granted, returned in self.sums)

    def of(self, cell: int) -> tuple[int, int]:
        """What was granted to a cell in all, and returned by it."""
        return self.sums[cell - 1] if cell <= len(self.sums) else (0, 0)
