"""Streams that are long in coming: where that is wanted, comments keep the connection of their client alive.

The first comment commits to the status 200; what goes wrong afterwards is an event. The SDKs of OpenAI and Anthropic
skip comments, Google's takes them for answers: its dialect gets none (`providers.md` §3.2, §3.3).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

__all__ = ["COMMENT", "KeepAlive"]

COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """Sends a comment to one client every `seconds`, until its answer comes. `head`: what an answer begins with."""

    __slots__ = ("_head", "_seconds", "_send", "_sending", "_task", "begun")

    def __init__(
        self, send: Callable[[Any], Awaitable[None]], head: Sequence[tuple[bytes, bytes]], seconds: float
    ) -> None:
        self._send, self._head, self._seconds = send, head, seconds
        self.begun = False
        """Whether the head has gone out."""
        self._sending = asyncio.Lock()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.keep_alive")

    async def end(self) -> bool:
        """Send no more, once what is on its way has gone; whether the head has gone out. Idempotent."""
        async with self._sending:
            self._task.cancel()
        return self.begun

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            async with self._sending:
                if not self.begun:
                    self.begun = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": self._head})
                await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
