"""A server with one fixed answer, for machines without nginx, and for streams."""

import argparse
import asyncio
from typing import cast

import uvloop

from benchmarks.payload import ANSWER, ANSWER_HEADERS, stream_events

__all__ = ["main"]

EVENT_SECONDS = 0.004
"""Between two events of one stream: slow enough that events of a stream arrive one by one."""
_HEADERS = "".join(f"{name}: {value}\r\n" for name, value in ANSWER_HEADERS)
_WHOLE = (
    f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n{_HEADERS}\r\n".encode()
    + ANSWER
)
_STREAM_HEAD = (
    f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{_HEADERS}\r\n".encode()
)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_STREAM = [b"%x\r\n%b\r\n" % (len(event), event) for event in stream_events()]


class _Connection(asyncio.Protocol):
    """Answers every complete request; reads only what it must to know where one ends."""

    def __init__(self, *, stream: bool) -> None:
        self._buffer = b""
        self._stream = stream
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            end = _end(self._buffer, head)
            if not head < end <= len(self._buffer):
                return
            self._buffer = self._buffer[end:]
            self._answer()

    def _answer(self) -> None:
        assert self._transport is not None
        if not self._stream:
            self._transport.write(_WHOLE)
            return
        self._transport.write(_STREAM_HEAD)
        self._send_event(0)

    def _send_event(self, at: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if at == len(_STREAM):
            self._transport.write(b"0\r\n\r\n")
            return
        self._transport.write(_STREAM[at])
        self._loop.call_later(EVENT_SECONDS, self._send_event, at + 1)


def _end(data: bytes, head: int) -> int:
    """Where the request ends whose head ends at `head`: of known length, or chunked. Not after `head`: it is not there
    yet."""
    named = data[:head].lower()
    if b"transfer-encoding: chunked" in named:
        last = data.find(_LAST_CHUNK, head + 2)  # the line of the last chunk begins with the end of the one before
        return last + len(_LAST_CHUNK) if last >= 0 else 0
    _, found, rest = named.partition(b"content-length:")
    return head + 4 + (int(rest.split(b"\r\n", 1)[0]) if found else 0)


async def _serve(port: int, *, stream: bool) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(stream=stream), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="an upstream that costs nothing")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=("whole", "stream"), default="whole")
    options = parser.parse_args()
    uvloop.run(_serve(options.port, stream=options.kind == "stream"))


if __name__ == "__main__":
    main()
