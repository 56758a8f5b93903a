"""The account of one admitted request: what it has produced, and the one way in which it ends."""

from __future__ import annotations

from typing import Literal

from apikeyrouter.simulator.clock import ProviderClock
from apikeyrouter.simulator.organisations import Admission, Key
from apikeyrouter.simulator.prices import Usage
from apikeyrouter.simulator.report import JournalEntry

__all__ = ["Account", "Verdict"]

Verdict = Literal["completed", "failed", "cut", "disconnected"]


class Account:
    """Counts output as it is produced and closes exactly once: leave, bill, tell."""

    __slots__ = ("_admission", "_clock", "_entry", "_key", "_model", "produced")

    def __init__(self, key: Key, model: str, *, clock: ProviderClock, entry: JournalEntry) -> None:
        self._key = key
        self._model = model
        self._clock = clock
        self._entry = entry
        self._admission: Admission | None = None
        self.produced = 0

    def open(self, admission: Admission, *, stream: bool) -> None:
        """The request was admitted."""
        self._admission = admission
        self._key.tally.admitted += 1
        self._key.tally.streams += stream

    def refuse(self, kind: str, *, over_limit: bool, now_ns: int) -> None:
        """The request was refused; where refused requests count, it counts."""
        self._key.organisation.charge_refused(self._key, self._model, now_ns)
        self._key.tally.reject(kind, over_limit=over_limit)
        self._entry.verdict = kind

    def produce(self, tokens: int) -> None:
        """Output has reached ``tokens`` in all: count what is new against output limits."""
        fresh = tokens - self.produced
        if fresh > 0 and self._admission is not None:
            self.produced = tokens
            self._admission.produce(fresh, self._clock.now_ns())

    def close(self, verdict: Verdict, *, billed: Usage | None) -> None:
        """The request has ended, and costs ``billed`` (None: nothing); idempotent, the first verdict stays."""
        admission, self._admission = self._admission, None
        if admission is None:
            return
        admission.leave()
        tally, entry = self._key.tally, self._entry
        setattr(tally, verdict, getattr(tally, verdict) + 1)
        entry.verdict = verdict
        if billed is not None:
            cost = self._key.organisation.cost_nanousd(self._model, billed)
            admission.bill(billed, cost, self._clock.now_ns())
            entry.input_tokens, entry.output_tokens, entry.cost_nanousd = billed.input, billed.output, cost
