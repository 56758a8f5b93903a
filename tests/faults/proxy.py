"""A TCP proxy that does harm on purpose: it can hold back what passes, slice it, cut connections, refuse new ones."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """One that listens on `port`. `delay_s`: of every piece. `silent`: what is sent vanishes, connections stay open.

    `slice_bytes`: what passes goes on in pieces of so many; 0: as it comes. `cut_after_bytes`: a connection is cut when
    so many more bytes of answers have passed; None: never, or it `was_cut`.
    """

    to: tuple[str, int]
    port: int = 0
    delay_s: float = 0.0
    silent: bool = False
    refusing: bool = False
    slice_bytes: int = 0
    cut_after_bytes: int | None = None
    accepted: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def cut(self) -> None:
        """End every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.accepted += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            theirs, there = await asyncio.open_connection(*self.to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there}
        for task in (self._carry(reader, there), self._carry(theirs, writer, answers=True)):
            made = asyncio.get_running_loop().create_task(task)
            self._tasks.add(made)
            made.add_done_callback(self._tasks.discard)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if answers and self.cut_after_bytes is not None and len(piece) >= self.cut_after_bytes:
                    writer.write(piece[: self.cut_after_bytes])
                    await writer.drain()
                    self.cut_after_bytes = None
                    break
                for at in range(0, len(piece), self.slice_bytes or len(piece)):
                    if not self.silent:
                        writer.write(piece[at : at + (self.slice_bytes or len(piece))])
                        await asyncio.sleep(0)
                if answers and self.cut_after_bytes is not None:
                    self.cut_after_bytes -= len(piece)
        if self.silent:
            return  # half open: the other end hears nothing of it
        writer.transport.abort()
        self._writers.discard(writer)

    @property
    def was_cut(self) -> bool:
        """Whether no connection is to be cut any more."""
        return self.cut_after_bytes is None

    async def end(self) -> None:
        """Cut, and wait until nothing is carried any more."""
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def proxied(host: str, port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a server."""
    proxy = Proxy((host, port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
