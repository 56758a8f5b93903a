"""From a name to a connected socket: all addresses are tried, IPv6 and IPv4 in turn; a slow one delays nobody for long.

`loop.create_connection` does this on asyncio's own loop, but not on uvloop's.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, zip_longest
from typing import Any
from weakref import WeakKeyDictionary

from apikeyrouter.infrastructure.security.addresses import AddressRefused

__all__ = ["open_socket"]

HEAD_START_SECONDS = 0.25
"""How long an address is tried alone before the next joins in (RFC 8305)."""
ADDRESSES_MAX = 16
RESOLVERS = 4
"""Threads per event loop that look names up."""
_RESOLVERS: "WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor]" = WeakKeyDictionary()

_Address = tuple[int, int, int, str, Any]


async def open_socket(host: str, port: int, *, admits: Callable[[str], bool] | None = None) -> socket.socket:
    """A connected, non-blocking socket. The name is looked up anew.

    `admits`: whether an address may be connected to; None: any. Raises OSError, AddressRefused when one may not be.
    """
    found = await _looked_up(host, port)
    if admits is not None and not all(admits(str(where[0])) for *_, where in found):
        raise AddressRefused(f"{host} stands for an address that is not admitted")
    addresses = _in_turn(found)[:ADDRESSES_MAX]
    if not addresses:
        raise OSError("the name has no address")
    if len(addresses) == 1:
        return await _connected(addresses[0])
    return await _first_of(addresses)


async def _looked_up(host: str, port: int) -> list[Any]:
    """The addresses of a name. Not by the loop's default threads: callers of the router may block all of those."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        resolvers = _RESOLVERS.get(loop)
        if resolvers is None:
            resolvers = _RESOLVERS[loop] = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="apikeyrouter.resolver")
        return await loop.run_in_executor(resolvers, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))


def _in_turn(found: Iterable[Any]) -> list[_Address]:
    """The addresses, families alternating, beginning with the family that the resolver prefers."""
    families: dict[int, list[_Address]] = {}
    for address in found:
        families.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]


async def _connected(address: _Address) -> socket.socket:
    family, kind, protocol, _, where = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


async def _first_of(addresses: list[_Address]) -> socket.socket:
    """The first that answers; the others are given up. Raises the last OSError when none does."""
    trying: set[asyncio.Task[socket.socket]] = set()
    left = iter(addresses)
    failed: BaseException = OSError("no address answered")
    try:
        for address in left:
            trying.add(asyncio.create_task(_connected(address)))
            winner, failed = await _wait(trying, failed, HEAD_START_SECONDS)
            if winner is not None:
                return winner
        while trying:
            winner, failed = await _wait(trying, failed, None)
            if winner is not None:
                return winner
        raise failed
    finally:
        for task in trying:
            task.add_done_callback(_discard)
            task.cancel()


async def _wait(
    trying: set[asyncio.Task[socket.socket]], failed: BaseException, seconds: float | None
) -> tuple[socket.socket | None, BaseException]:
    """Wait for one of them; what is over leaves the set."""
    done, _ = await asyncio.wait(trying, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        trying.discard(task)
        error = task.exception()
        if error is None:
            return task.result(), failed
        failed = error
    return None, failed


def _discard(task: asyncio.Task[socket.socket]) -> None:
    """Close the socket of a task that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
