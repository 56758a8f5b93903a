"""Which scripts run on the server while something happens: it watches the server with MONITOR."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import BinaryIO
from urllib.parse import urlsplit

from tests.servers import Server

from apikeyrouter.infrastructure.ledger.scripts import load_library

__all__ = ["commands_of_scripts", "count_scripts"]

COMMANDS_MAX = 1_000_000
_END = b"benchmark-is-over"


def count_scripts(server: Server, work: Callable[[], object]) -> dict[str, int]:
    """How often each script was called by clients while `work` ran."""
    names = {script.function.encode(): name for name, script in load_library().scripts.items()}
    counted: Counter[str] = Counter()
    with _monitor(server) as lines:
        watcher = threading.Thread(target=_count, args=(lines, names, counted), daemon=True)
        watcher.start()
        work()
        with server.client() as client:
            client.echo(_END)
        watcher.join(timeout=10)
    return dict(counted)


async def commands_of_scripts(server: Server, work: Callable[[], Awaitable[object]]) -> list[str]:
    """What the scripts that ran during `work` asked of the server: name, key, and how much they sent."""
    with _monitor(server) as lines:
        await work()
        with server.client() as client:
            client.echo(_END)
        found: list[str] = []
        for _ in range(COMMANDS_MAX):
            line = lines.readline()
            if not line or _END in line:
                break
            if b" lua]" in line:
                words = line.partition(b"] ")[2].strip().split(b" ")
                key = words[1].decode() if len(words) > 1 else ""
                found.append(f"{words[0].decode()} {key} … {len(words) - 2} more words".replace('"', ""))
        return found


def _count(lines: BinaryIO, names: dict[bytes, str], counted: Counter[str]) -> None:
    """Lines look like `+1700000000.1 [0 unix:/…] "FCALL" "<name>" …`; what a script itself calls is marked `lua`."""
    for _ in range(COMMANDS_MAX):
        line = lines.readline()
        words = line.split(b'"', 4)
        if not line or _END in line:
            return
        if len(words) > 3 and words[1].upper() == b"FCALL" and b" lua]" not in words[0]:
            counted[names.get(words[3], "another script")] += 1


@contextlib.contextmanager
def _monitor(server: Server) -> Iterator[BinaryIO]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(b"MONITOR\r\n")
        with connection.makefile("rb") as lines:
            lines.readline()
            yield lines
