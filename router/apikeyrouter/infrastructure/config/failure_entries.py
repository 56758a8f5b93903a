"""The parts of a configuration file that say how failures are met: time limits, breakers, retries, failures alike."""

from typing import Annotated

from pydantic import Field, model_validator

from apikeyrouter.domain.components.circuits import KEY_BREAKER, PROVIDER_BREAKER
from apikeyrouter.domain.components.correlation_guard import Guard
from apikeyrouter.domain.components.retry_budget import RETRIES_FLOOR, RETRY_SHARE
from apikeyrouter.domain.models.accounting import Breaker
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.config.fields import Entry

__all__ = ["BreakerEntry", "BreakersEntry", "CorrelatedEntry", "PhasesEntry", "RetryBudgetEntry", "TimeoutsEntry"]

DAY_MS = 24 * 3600 * 1000
Span = Annotated[int, Field(ge=1, le=DAY_MS, strict=True)]
"""Milliseconds."""


class PhasesEntry(Entry):
    """How long each phase of an exchange may take. What is left out stays as it is elsewhere; null: no limit.

    `first_byte_ms`: until the answer's head; `first_token_ms`: until a stream says something of the answer, whatever
    came before; `idle_ms`: between two chunks.
    """

    connect_ms: Span | None = None
    first_byte_ms: Span | None = None
    first_token_ms: Span | None = None
    idle_ms: Span | None = None

    def seconds(self) -> dict[str, float | None]:
        """What was said, by phase."""
        told = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return {name.removesuffix("_ms"): None if ms is None else ms / 1000 for name, ms in told.items()}


class TimeoutsEntry(PhasesEntry):
    """The same, and `total_ms`: for a call with all its attempts."""

    total_ms: Span | None = None


class BreakerEntry(Entry):
    """When a circuit opens, and for how long. What is left out stays as it is elsewhere."""

    failures: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    within_ms: Span | None = None
    open_ms: Span | None = None
    open_max_ms: Span | None = None

    def over(self, base: Breaker) -> Breaker:
        """A breaker with what is said here, and the rest of `base`.

        Raises:
            InvalidRequestError: it would stay open shorter than it opens for.
        """
        made = Breaker(
            failures=self.failures or base.failures, window_us=_us(self.within_ms, base.window_us),
            open_us=_us(self.open_ms, base.open_us), open_max_us=_us(self.open_max_ms, base.open_max_us),
        )  # fmt: skip
        if made.open_max_us < made.open_us:
            raise InvalidRequestError("must not be below open_ms", field="open_max_ms")
        return made


def _us(ms: int | None, other: int) -> int:
    return other if ms is None else ms * 1000


class BreakersEntry(Entry):
    """The breakers of single keys, and of providers."""

    key: BreakerEntry = BreakerEntry()
    provider: BreakerEntry = BreakerEntry()

    @model_validator(mode="after")
    def _make_sense(self) -> "BreakersEntry":
        for name, entry, base in (("key", self.key, KEY_BREAKER), ("provider", self.provider, PROVIDER_BREAKER)):
            try:
                entry.over(base)
            except InvalidRequestError as exc:
                raise InvalidRequestError(exc.reason, field=f"{name}.{exc.field}") from None
        return self


class RetryBudgetEntry(Entry):
    """Retries as a share of the requests of the last ten seconds, and how many are allowed at least."""

    share: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = RETRY_SHARE
    floor: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = RETRIES_FLOOR


class CorrelatedEntry(Entry):
    """When refused keys are the provider's fault: so many alike, so close together; and what follows."""

    keys: Annotated[int, Field(ge=2, le=1000, strict=True)] = Guard().keys
    within_ms: Span = int(Guard().within_seconds * 1000)
    suspect_ms: Span = int(Guard().suspect_seconds * 1000)
    pause_ms: Span = int(Guard().pause_seconds * 1000)

    def guard(self) -> Guard:
        """The rules of the guard."""
        return Guard(
            keys=self.keys, within_seconds=self.within_ms / 1000, suspect_seconds=self.suspect_ms / 1000,
            pause_seconds=self.pause_ms / 1000,
        )  # fmt: skip
