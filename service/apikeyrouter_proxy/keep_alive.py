"""Streams that are long in coming: where that is wanted, comments keep the connection of their client alive.

The first comment commits to the status 200; what goes wrong afterwards is an event. The SDKs of OpenAI and Anthropic
skip comments, Google's takes them for answers: its dialect gets none (`providers.md` §3.2, §3.3).
"""

import asyncio
from collections.abc import Sequence

from apikeyrouter_proxy.http_protocol import Exchanging

__all__ = ["COMMENT", "KeepAlive"]

COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """Writes a comment to one client every `seconds`, until its answer comes. `head`: what an answer begins with."""

    __slots__ = ("_exchange", "_head", "_seconds", "_timer", "begun")

    def __init__(self, exchange: Exchanging, head: Sequence[tuple[bytes, bytes]], seconds: float) -> None:
        self._exchange, self._head, self._seconds = exchange, head, seconds
        self.begun = False
        """Whether the head has gone out."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._write)

    def end(self) -> bool:
        """Write no more; whether the head has gone out. Idempotent."""
        self._timer.cancel()
        return self.begun

    def _write(self) -> None:
        if not self.begun:
            self.begun = self._exchange.begin_now(200, self._head)
        if self.begun:
            self._exchange.write_now(COMMENT)
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._write)
