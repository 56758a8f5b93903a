"""Which event loop and which process a router belongs to, and how it begins anew when that is over.

A router belongs to the loop that first uses it. Where that loop has ended (`asyncio.run` returned), or the process was
forked, the next use begins anew: connections are opened again, and nothing of the other loop or process is touched.
"""

import asyncio
import atexit
import os
from weakref import WeakSet

from apikeyrouter.domain.models.system_error import ApiKeyRouterError, ConfigurationError
from apikeyrouter.infrastructure.ledger.engine import Engine
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.serving.attempt import Attempts
from apikeyrouter.serving.background import RouterBackground
from apikeyrouter.serving.blocking import BlockingRouter
from apikeyrouter.serving.housekeeping import Housekeeper
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.slabs import Slabs
from apikeyrouter.serving.spread_books import AnyBooks
from apikeyrouter.serving.standby import Standby

AT_EXIT_SECONDS_MAX = 5.0
_INHERITED: list[object] = []
"""What a parent left in a child, kept alive on purpose: its end would take sockets out of the parent's epoll."""
_ROUTERS: "WeakSet[RouterBelonging]" = WeakSet()
_log = EventLog("apikeyrouter")


class RouterBelonging(RouterBackground):
    """The part of a router that knows where it belongs."""

    books: AnyBooks
    _attempts: Attempts
    _housekeeper: Housekeeper
    standby: Standby
    slabs: Slabs
    _presence: Presence

    def __init__(self) -> None:
        super().__init__()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: asyncio.AbstractEventLoop | None = None
        """The loop that it was opened on last, whether or not it came to its end there."""
        self._starting: asyncio.Lock | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._forked = False
        """Whether this is a copy, in a child, of a router that its parent had started."""
        self._closed = False
        """Whether it was closed, and not opened again since."""
        self.sync = BlockingRouter(self)
        """The router for code that is not async: every method, blocking, from any number of threads."""
        _ROUTERS.add(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the router belongs to; None before its first use and after `close`."""
        return None if self._forked else self._loop

    def _move_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make room for a loop: what belongs to the last one is left behind.

        Raises:
            ConfigurationError: the last one still owns this router, or the accounting is in a parent's memory.
        """
        last = self._last
        if last is None or last is loop:
            self._last = loop
            return
        if self._forked:
            self._leave_parent()
        elif last.is_closed():
            self.books.begin_anew()
            self.ledger.abandon()
            self._attempts.abandon()
        elif self._is_in_use():
            raise ConfigurationError(
                "this router belongs to another event loop; make one router per loop, or use router.sync from threads"
            )
        self._housekeeper.begin_anew()
        self.standby.begin_anew()
        self.slabs.begin_anew()
        self._presence.begin_anew()
        self.ledger.renew_engines(self._engine_anew)
        self._chores, self._watcher = set(), None
        self._last, self._loop, self._starting, self._forked = loop, None, None, False

    def _is_in_use(self) -> bool:
        return self._loop is not None or (self._starting is not None and self._starting.locked())

    def _leave_parent(self) -> None:
        """What is open or waits to be booked is the parent's, and so are its connections."""
        engines = [cell.engine for cell in self.ledger.cells]
        if isinstance(engines[0], LocalEngine):
            raise ConfigurationError(
                "this router was started before the process forked, and its accounting is in the parent's memory: a"
                " copy would spend the same limits again; give it a RedisStateStore, or make it after the fork"
            )
        inherited = (
            self._loop, engines, self.ledger.abandon(), self._attempts.abandon(), self.books.abandon(), self._watcher,
            self._chores,
        )  # fmt: skip
        _INHERITED.append(inherited)
        self.in_flight = 0
        self._spending.begin_anew()
        self._decisions.abandon()
        self.key_manager.abandon_tally()
        self.policy_engine.abandon_counts()

    def _engine_anew(self, engine: Engine, cell: int) -> Engine:
        """An engine for the new loop: in process it is the old one, state and all."""
        raise NotImplementedError

    async def start(self) -> None:
        """Connect. The layers above begin their work."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything."""
        raise NotImplementedError

    def _book_leftovers(self) -> None:
        """At the end of the program: what a router that nobody closed has not told the ledger yet."""
        ended = self._loop is not None and self._loop.is_closed() and not self._forked
        if not ended or not self.books.waiting or isinstance(self.ledger.engine, LocalEngine):
            return
        try:
            asyncio.run(asyncio.wait_for(self._open_and_close(), AT_EXIT_SECONDS_MAX))
        except (ApiKeyRouterError, OSError, RuntimeError, TimeoutError) as exc:
            _log.error("settlements.unconfirmed", count=self.books.waiting, error=repr(exc))

    async def _open_and_close(self) -> None:
        await self.start()
        await self.close()


def _after_fork() -> None:
    for router in list(_ROUTERS):
        router._forked = router._forked or router._is_in_use()
        router.observability.forget_threads()
        _INHERITED.append(router.sync.forget_thread())


def _at_exit() -> None:
    for router in list(_ROUTERS):
        router.sync.close_at_exit()
        router._book_leftovers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
