"""A way in for google-genai: its own dialect, served out of a router in this process."""

import re
import time
import uuid
from collections.abc import AsyncIterator

import httpx2

from apikeyrouter.domain.models.call import Call, Exchange
from apikeyrouter.domain.models.system_error import SystemError
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.router import ApiKeyRouter

__all__ = ["GeminiDoor"]

_PATH = re.compile(r"/v1(?:beta)?/models/([^/:]+):(\w+)")
_OPERATIONS = {"generateContent": "generate", "streamGenerateContent": "stream_generate", "countTokens": "count_tokens"}


class GeminiDoor(httpx2.AsyncBaseTransport):
    """Reads requests and writes answers and errors with the wire alone."""

    def __init__(self, router: ApiKeyRouter, *, provider_id: str | None = None) -> None:
        self._router, self._provider_id = router, provider_id
        self.wire = GeminiWire("http://door")

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Serve one request."""
        found = _PATH.fullmatch(request.url.path)
        assert found is not None
        operation = _OPERATIONS[found[2]]
        parsed = self.wire.parse(await request.aread(), operation=operation, model=found[1])
        call = Call(
            request_id=f"req_{uuid.uuid4().hex}", operation=operation, model=parsed.model, stream=parsed.stream,
            started=time.perf_counter(), dialect="gemini", parsed=parsed,
            path_query=f"?{request.url.query.decode()}", provider_id=self._provider_id,
        )  # fmt: skip
        try:
            exchange = await self._router.serve(call)
        except SystemError as exc:
            body = self.wire.error_body(status=503, type="", code="failed", message=exc.message, request_id="")
            return httpx2.Response(503, content=body, headers={"content-type": "application/json"}, request=request)
        head = {"content-type": exchange.content_type}
        if exchange.chunks is None:
            return httpx2.Response(200, content=exchange.body or b"", headers=head, request=request)
        return httpx2.Response(200, stream=_Stream(exchange, self.wire), headers=head, request=request)


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, exchange: Exchange, wire: GeminiWire) -> None:
        assert exchange.chunks is not None
        self._chunks, self._wire = exchange.chunks, wire

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._chunks:
                yield piece
        except SystemError as exc:
            yield self._wire.error_event(type="", code="broken", message=exc.message, request_id="", status=503)

    async def aclose(self) -> None:
        await self._chunks.aclose()
