"""What stands between the page and its service: it can fail, be slow, and point elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from aiohttp import ClientSession, web

__all__ = ["Between"]


class Between:
    """An API that fails or is slow when it is told to, and else answers as the service behind it does."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.url, self.fails, self.asked = "", False, 0
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        """Answer nothing until `let_go`."""
        self._open.clear()

    def let_go(self) -> None:
        """Answer what was held."""
        self._open.set()

    @contextlib.contextmanager
    def pointing_to(self, target: str) -> Iterator[None]:
        """The page is of another service for a while. Its admin key is the same, so that sessions go on."""
        before, self.target = self.target, target
        try:
            yield
        finally:
            self.target = before

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self._open.wait()
        if self.fails:
            return web.json_response(
                {"error": {"message": "the store is away", "code": "store_unavailable"}}, status=503
            )
        headers = {name: request.headers[name] for name in ("x-api-key", "content-type") if name in request.headers}
        url = self.target + str(request.rel_url)
        async with ClientSession() as client:
            found = await client.request(request.method, url, headers=headers, data=await request.read())
            return web.Response(body=await found.read(), status=found.status, content_type=found.content_type)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Between"]:
        """Listening on a free port."""
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()
