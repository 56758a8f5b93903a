"""The rim of management and operations: security headers, a bound on bodies, errors that repeat no input.

The data plane builds its own answers, and takes its two security headers from here.
"""

from collections.abc import MutableMapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    ConfigurationError,
    EncryptionError,
    InvalidRequestError,
    KeyRegistrationError,
    LedgerError,
    LedgerUnavailableError,
    StaleConfigError,
    StateStoreError,
)

__all__ = ["HSTS", "NOSNIFF", "Edge", "add_error_handlers", "error_answer"]

BODY_BYTES_MAX = 2**20
_LARGER = {"/api/v1/import": 64 * 2**20, "/api/v1/keys/import": 16 * 2**20}
"""What may be longer: a backup, and many keys at once."""
NOSNIFF = (b"x-content-type-options", b"nosniff")
HSTS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")
"""The two that matter to programs: they go out with the data plane's answers, too."""
_HEADERS = (
    NOSNIFF,
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_SEALED = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_PAGES = ("/docs", "/redoc", "/openapi.json")
_STATUSES: tuple[tuple[type[ApiKeyRouterError], int, str], ...] = (
    (KeyRegistrationError, 400, "key_refused"),
    (EncryptionError, 409, "no_encryption_key"),
    (ConfigurationError, 400, "configuration_refused"),
    (InvalidRequestError, 400, "invalid_request"),
    (LedgerUnavailableError, 503, "store_unavailable"),
    (StaleConfigError, 503, "store_unavailable"),
    (StateStoreError, 503, "store_unavailable"),
)
_log = structlog.get_logger("apikeyrouter")


class Edge:
    """ASGI middleware around everything but the data plane."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection. A body beyond BODY_BYTES_MAX is answered with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hsts = _wants_hsts(scope)
        read = 0
        most = _LARGER.get(scope["path"], BODY_BYTES_MAX)

        async def bounded_receive() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        async def dressed_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                _dress(MutableHeaders(scope=message), scope["path"], hsts=hsts)
            await send(message)

        await self._app(scope, bounded_receive, dressed_send)


def add_error_handlers(app: FastAPI) -> None:
    """Every error of the management plane in one shape: `{"error": {"message", "type", "param", "code"}}`."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ApiKeyRouterError, _own_error)
    app.add_exception_handler(Exception, _crash)


def error_answer(
    status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """One error answer."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


async def _http_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404 and exc.detail == "Not Found":
        hint = "; the data plane is under /v1, e.g. a base URL of http://<host>:<port>/v1, management under /api/v1"
        return error_answer(404, "unknown_url", f"no such path: {request.url.path[:200]}{hint}")
    headers = dict(exc.headers) if exc.headers else None
    codes = {405: "method_not_allowed", 413: "request_too_large"}
    code = getattr(exc, "code", None) or codes.get(exc.status_code, "refused")
    return error_answer(exc.status_code, code, str(exc.detail), param=getattr(exc, "param", None), headers=headers)


async def _validation_error(_: Request, exc: Exception) -> JSONResponse:
    """Names the fields and what is wrong with them; never what was sent, which may be a key."""
    assert isinstance(exc, RequestValidationError)
    found = [
        (".".join(str(part) for part in error["loc"][1:]), str(error["msg"]).removeprefix("Value error, "))
        for error in exc.errors()
    ]
    message = "; ".join(f"{field}: {what}" if field else what for field, what in found)
    return error_answer(400, "invalid_request", message, param=found[0][0] if found else None)


async def _own_error(_: Request, exc: Exception) -> JSONResponse:
    for kind, status, code in _STATUSES:
        if isinstance(exc, kind):
            return error_answer(status, code, str(exc), param=getattr(exc, "field", None) or None)
    if isinstance(exc, LedgerError):  # the accounting refused what we asked: our fault, and no outage
        _log.error("ledger.failed", error=str(exc))
        return error_answer(500, "internal_error", "the accounting refused a call of the router's; see its log")
    return error_answer(500, "internal_error", str(exc))


async def _crash(_: Request, exc: Exception) -> JSONResponse:
    _log.error("management.crashed", exc_info=exc)
    return error_answer(500, "internal_error", "an error in the service; see its log")


def _wants_hsts(scope: Scope) -> bool:
    runtime = getattr(scope.get("app"), "runtime", None)
    return runtime is not None and bool(runtime.settings.enable_hsts)


def _dress(headers: MutableHeaders, path: str, *, hsts: bool) -> None:
    for name, value in (*_HEADERS, *(() if path.startswith(_PAGES) else _SEALED), *((HSTS,) if hsts else ())):
        headers.setdefault(name.decode(), value.decode())
