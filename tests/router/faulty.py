"""A ledger's engine that fails as it is told: not reached at all, or its answers lost."""

from collections import Counter
from collections.abc import Sequence

from apikeyrouter.domain.models.system_error import LedgerRefusedError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.engine import Argument, Engine, Reply
from apikeyrouter.router import ApiKeyRouter

ALWAYS = 10**9


class Faulty:
    """An engine in front of the real one that does not reach it, or loses its answers, as often as it is told."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.unreachable: Counter[str] = Counter()
        self.answers_lost: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    async def open(self) -> None:
        await self._engine.open()

    async def close(self) -> None:
        await self._engine.close()

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        self.calls[name] += 1
        if self.unreachable[name] > 0:
            self.unreachable[name] -= 1
            raise _trouble(name)("cut off by the test")
        reply = await self._engine.run(name, args, pool=pool)
        if self.answers_lost[name] > 0:
            self.answers_lost[name] -= 1
            raise _trouble(name)("the answer was lost by the test")
        return reply

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def _trouble(name: str) -> type[LedgerUnavailableError]:
    """One script that does not get through, while others do, is no store that is away: no breaker opens for it."""
    return LedgerUnavailableError if name == "reserve" else LedgerRefusedError


def faults_in(router: ApiKeyRouter) -> Faulty:
    """Put a faulty engine into a router's ledger."""
    faulty = Faulty(router.ledger.engine)
    router.ledger.cells[0].engine = faulty
    return faulty
