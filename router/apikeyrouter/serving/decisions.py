"""Decisions on their way into the store: facts now, words on demand, and never in a request's way."""

from collections import deque

from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.routing_decision import RoutingDecision

BATCH_MAX = 500
WAITING_MAX = 10_000
"""Decisions that wait for a store in trouble; then the oldest go."""


class Decisions:
    """What was decided lately: a ring of facts here, and the store, which may be shared with other processes."""

    def __init__(self, store: StateStore, *, kept: int) -> None:
        self._store = store
        self.recent: deque[Facts] = deque(maxlen=kept)
        self._waiting: deque[Facts] = deque(maxlen=WAITING_MAX)

    def keep(self, facts: Facts) -> None:
        """Keep one. Never waits; the store has it at once, or after the next `flush`."""
        self.recent.append(facts)
        if (facts.attempts or facts.refusal is not None) and not self._store.note_facts(facts):
            self._waiting.append(facts)

    def resize(self, kept: int) -> None:
        """Remember so many from now on; of those there are, the newest."""
        self.recent = deque(self.recent, maxlen=kept)

    def abandon(self) -> None:
        """After a fork: what waits is the parent's."""
        self._waiting.clear()
        self._store.abandon()

    async def flush(self) -> None:
        """Bring what waits into the store. Errors: the store's; what was not written waits on."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
            try:
                await self._store.save_routing_decisions([decision_of(facts) for facts in batch])
            except BaseException:
                self._waiting.extendleft(reversed(batch))
                raise
        await self._store.flush()

    def facts_of(self, request_id: str) -> Facts | None:
        """What happened to a request of this process; None: it was too long ago, or elsewhere."""
        return next((facts for facts in reversed(self.recent) if facts.request_id == request_id), None)

    async def everywhere(self) -> tuple[list[Facts], bool]:
        """What happened lately, oldest first, and whether in every process on the store, or in this one alone."""
        told = await self._store.recent_facts()
        return (list(self.recent), False) if told is None else (told, True)

    async def find_facts(self, request_id: str) -> Facts | None:
        """What happened to a request, of any process on a store that tells it; None: nobody remembers it."""
        facts = self.facts_of(request_id)
        if facts is not None:
            return facts
        told, _ = await self.everywhere()
        return next((facts for facts in reversed(told) if facts.request_id == request_id), None)

    async def find(self, request_id: str) -> RoutingDecision | None:
        """The decision of a request: of this process, else of any on the same store; None: nobody remembers it."""
        facts = self.facts_of(request_id)
        if facts is not None:
            return decision_of(facts)
        found = await self._store.query_state(StateQuery("RoutingDecision", ids=request_id))
        return found[-1] if found else None
