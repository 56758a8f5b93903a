"""How long a call waits for room, and with whom: what the wait queue is asked about calls."""

import time
from collections.abc import Callable, Hashable

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.models.call import Call, Facts
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.system_error import ErrorCategory, NoEligibleKeysError
from apikeyrouter.serving.policing import Policing

__all__ = ["WAIT_ASKED_MS_MAX", "Patience"]

WAIT_ASKED_MS_MAX = 60_000


class Patience:
    """`wait_max_ms`: what calls wait that say nothing else; `asked_max_ms`: the most that one may ask for."""

    def __init__(
        self,
        catalogue: Catalogue,
        policing: Policing,
        *,
        deadline: Callable[[Call], float | None],
        policies: Callable[[], bool],
        wait_max_ms: int,
    ) -> None:
        """`deadline`: when a call's time is over; `policies`: whether there are any."""
        self._catalogue, self._policing, self._deadline, self._policies = catalogue, policing, deadline, policies
        self.wait_max_ms, self.asked_max_ms = wait_max_ms, WAIT_ASKED_MS_MAX

    def until(self, call: Call) -> float | None:
        """How long a call may wait (`time.perf_counter()`); None: it does not."""
        ms = self.wait_max_ms if call.wait_ms is None else min(call.wait_ms, self.asked_max_ms)
        if not ms:
            return None
        until, deadline = call.started + ms / 1000, self._deadline(call)
        return until if deadline is None else min(until, deadline)

    def line(self, call: Call) -> Hashable:
        """What those have in common that wait for the same room. Raises InvalidRequestError, as `Catalogue.pool`."""
        rules: Constraints | None = None
        if self._policies() or call.policy is not None:
            rules = self._policing.rules(call, relaxed=False)
        if rules is not None and not self._catalogue.pool_of(call, rules).barred:
            rules = None
        return *self._catalogue.room_of(call), rules

    def denial(self, call: Call, failure: Failure, facts: Facts) -> NoEligibleKeysError | None:
        """A provider's rate limit as a denial to be waited out; None: it is not worth it, or the call does not wait."""
        until, wait_us = self.until(call), failure.retry_after_us
        if until is None or failure.category is not ErrorCategory.RateLimitError or not wait_us:
            return None
        if time.perf_counter() + wait_us / 1e6 > until:
            return None
        return NoEligibleKeysError(
            reasons={facts.key_id: failure.message}, retry_after=-(-wait_us // 1_000_000), retry_after_us=wait_us
        )
