"""One slab: what a worker holds for many calls of one kind, what each has of it, and the one settlement of all."""

from collections.abc import Callable

from apikeyrouter.domain.models.accounting import Admission, Charge, Outcome, ReserveRequest, Settlement, SlabUse
from apikeyrouter.serving.bookkeeping import Bookkeeper, OpenHold, Release

__all__ = ["Slab", "metered_of"]

FAILURES_IN_A_ROW = 3
"""After so many a slab takes no more calls: a breaker may be about to open."""
ROW_MAX = 16


def metered_of(charge: Charge) -> int:
    """What limits on all tokens count of it at arrival."""
    metered = charge.metered_tokens
    return charge.input_tokens + charge.output_tokens if metered is None else metered


class Slab:
    """A reservation for `request.calls` calls. It takes calls until `until` (`time.perf_counter()`), and ends with the
    last of them. `hard`: what a call of unknown cost is settled at is the bound, else what was expected.
    """

    __slots__ = (
        "_books", "_cost", "_failed_lanes", "_hard", "_input", "_kept", "_latency_us", "_metered", "_output",
        "_row", "_told", "admission", "bound", "calls", "charges", "closed", "expected", "hold", "input", "metered",
        "on_end", "output", "request", "until", "worse",
    )  # fmt: skip

    def __init__(
        self, books: Bookkeeper, request: ReserveRequest, admission: Admission, until: float, *, hard: bool
    ) -> None:
        self._books, self.request, self.admission, self.until, self._hard = books, request, admission, until, hard
        held = request.candidates[0].charge
        self.calls, self.metered = request.calls, metered_of(held)
        self.input, self.output = held.input_tokens, held.output_tokens
        self.expected, self.bound = held.expected_nanousd, held.bound_nanousd
        self.charges: dict[bytes, Charge] = {}
        """What each open call began with."""
        self.closed = self.worse = False
        """It takes no more calls; one of them said that its lane is in trouble."""
        self._kept = [0, 0, 0, 0, 0]
        self._metered = self._input = self._output = self._cost = 0
        self._told, self._row, self._failed_lanes, self._latency_us = [0, 0], 0, 0, 0
        self.on_end: Callable[[Slab], None] | None = None
        self.hold: OpenHold = books.held(request, 0)
        self.hold.abort = self._lost

    def take(self, rid: bytes, charge: Charge) -> bool:
        """Give a call what it asks for; whether there was so much."""
        metered = metered_of(charge)
        if (
            self.calls < 1 or metered > self.metered or charge.input_tokens > self.input
            or charge.output_tokens > self.output or charge.expected_nanousd > self.expected
            or charge.bound_nanousd > self.bound
        ):  # fmt: skip
            return False
        self._move(charge, metered, -1)
        self.charges[rid] = charge
        return True

    def _move(self, charge: Charge, metered: int, sign: int) -> None:
        self.calls += sign
        self.metered += sign * metered
        self.input += sign * charge.input_tokens
        self.output += sign * charge.output_tokens
        self.expected += sign * charge.expected_nanousd
        self.bound += sign * charge.bound_nanousd

    def ended(self, end: Settlement | Release) -> None:
        """A call of it ends so. What it did not need of the money is there for others; a release gives all back."""
        charge = self.charges.pop(end.rid, None)
        if charge is None:
            return
        metered = metered_of(charge)
        if isinstance(end, Settlement):
            self._settled(end, charge, metered)
        else:
            if end.sent:
                tokens = (metered, charge.input_tokens, charge.output_tokens)
                self._count(charge, metered, tokens, 0, stays=charge.expected_nanousd)
            else:
                self._move(charge, metered, 1)
            self._tell(Outcome.FAILURE if end.failed_lanes else Outcome.NEUTRAL, end.failed_lanes, end.latency_us)
        self.end_if_over()

    def _settled(self, end: Settlement, charge: Charge, metered: int) -> None:
        used = (end.input_tokens + end.output_tokens, end.input_tokens, end.output_tokens)
        cost = end.cost_nanousd
        if cost < 0:
            cost = charge.bound_nanousd if self._hard else charge.expected_nanousd
        self.bound += max(0, charge.bound_nanousd - cost)
        self._count(charge, metered, used, cost, stays=max(charge.expected_nanousd, cost))
        self._tell(end.outcome, end.failed_lanes, end.latency_us)

    def _count(self, charge: Charge, metered: int, used: tuple[int, int, int], cost: int, *, stays: int) -> None:
        kept, began = self._kept, (1, metered, charge.input_tokens, charge.output_tokens)
        for place, (amount, least) in enumerate(zip((1, *used), began, strict=True)):
            kept[place] += max(amount, least)
        kept[4] += stays
        self._metered += used[0]
        self._input += used[1]
        self._output += used[2]
        self._cost += cost

    def _tell(self, outcome: Outcome, failed_lanes: int, latency_us: int) -> None:
        if outcome is Outcome.SUCCESS:
            self._told[0] += 1
            self._row = 0
            self._latency_us = latency_us or self._latency_us
        elif outcome is Outcome.FAILURE:
            self._told[1] += 1
            self._row += 1
            self._failed_lanes |= failed_lanes
            if self._row >= FAILURES_IN_A_ROW:
                self.worse = True
                self.close()

    def close(self) -> None:
        """Take no more calls."""
        self.closed = True

    def end_if_over(self) -> None:
        """Hand in its settlement when it is closed and its last call has ended."""
        if self.closed and not self.charges and self.hold.request.rid in self._books.open:
            self._books.hand_in(self._end())
            if self.on_end is not None:
                self.on_end(self)

    def _end(self) -> Settlement | Release:
        succeeded, failed = self._told
        if not self._kept[0] and not failed and not succeeded:
            return Release(rid=self.request.rid, sent=False)
        row = min(self._row, ROW_MAX)
        calls, metered, told, made, cost = self._kept
        return Settlement(
            rid=self.request.rid, input_tokens=self._input, output_tokens=self._output, cost_nanousd=self._cost,
            outcome=Outcome.SUCCESS if succeeded else Outcome.NEUTRAL, failed_lanes=self._failed_lanes,
            latency_us=self._latency_us,
            slab=SlabUse(
                calls=calls, metered_tokens=metered, input_tokens=told, output_tokens=made, cost_nanousd=cost,
                metered_used=self._metered, succeeded=succeeded, failed=failed, failed_in_a_row=row,
            ),
        )  # fmt: skip

    def _lost(self, why: str) -> None:
        """The ledger gave up its lease, or we close: its calls end."""
        self.close()
        self._books.give_up(list(self.charges), why)
        self.end_if_over()
