"""Connections that belong to one event loop of one process."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["LoopClients"]

_INHERITED: list[object] = []
"""Clients of a parent process, kept alive on purpose: their end would take the parent's sockets out of its epoll."""
Client = TypeVar("Client")


class LoopClients(Generic[Client]):
    """Gives each event loop of each process a client of its own, so that loops, threads and forks do not share one."""

    def __init__(self, make: Callable[[], Client], close: Callable[[Client], Awaitable[object]]) -> None:
        self._make, self._close = make, close
        self._clients: dict[int, tuple[asyncio.AbstractEventLoop, Client]] = {}
        self._pid = os.getpid()

    def current(self) -> Client:
        """The running loop's client."""
        self._forget_what_is_gone()
        loop = asyncio.get_running_loop()
        if id(loop) not in self._clients:
            self._clients[id(loop)] = (loop, self._make())
        return self._clients[id(loop)][1]

    async def aclose(self) -> None:
        """Close the running loop's client. The others end with their loops."""
        self._forget_what_is_gone()
        found = self._clients.pop(id(asyncio.get_running_loop()), None)
        if found is not None:
            await self._close(found[1])

    def _forget_what_is_gone(self) -> None:
        if os.getpid() != self._pid:
            _INHERITED.append(self._clients)
            self._clients, self._pid = {}, os.getpid()
        for name, (loop, _) in list(self._clients.items()):
            if loop.is_closed():
                self._clients.pop(name, None)
