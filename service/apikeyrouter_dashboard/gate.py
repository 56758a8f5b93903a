"""What stands before every page: the session's cookie, the origin of whatever acts, and the browser's rules."""

import html
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from apikeyrouter_dashboard.management import Refusal, Trouble
from apikeyrouter_dashboard.sessions import Session, Sessions

__all__ = ["COOKIE", "Gate", "session_of"]

COOKIE = "akr_operator"
TOKEN = "akr_sign_in"  # noqa: S105 (a cookie's name)
FORM_BYTES_MAX = 16_384
_LOOK = files("apikeyrouter_dashboard") / "look"
_FILES = {"/look/look.css": "text/css", "/look/look.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; worker-src 'none'; manifest-src 'none'"
)
"""NiceGUI compiles its components in the browser (eval) and sets styles inline; everything else is closed."""
_PLAIN = (
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def session_of(request: Request) -> Session:
    """The session that a page was asked for with."""
    session: Session = request.scope["akr_session"]
    return session


class Gate:
    """ASGI: lets signed-in browsers through to the pages, and nobody else."""

    def __init__(self, app: App, sessions: Sessions, *, secure: bool = False) -> None:
        self._app, self._sessions, self._secure = app, sessions, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._request(scope, receive, _guarded(send, nonce := secrets.token_urlsafe(16)), nonce)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._session(Request({**scope, "type": "http"})) is None or not _is_ours(headers):
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send, nonce: str) -> None:
        request = Request(scope, receive)
        if scope["method"] not in ("GET", "HEAD") and not _is_ours(request.headers):
            await PlainTextResponse("this came from another page", 403)(scope, receive, send)
            return
        answer = await self._own(request)
        if answer is None and (session := self._session(request)) is not None:
            scope["akr_session"], scope["akr_nonce"] = session, nonce
            await self._app(scope, receive, send)
            return
        if answer is None:
            is_page = "text/html" in request.headers.get("accept", "") and scope["method"] == "GET"
            answer = RedirectResponse("/sign-in", 303) if is_page else PlainTextResponse("not signed in", 401)
        await answer(scope, receive, send)

    async def _own(self, request: Request) -> Response | None:
        """What needs no session."""
        path = request.url.path
        if path in _FILES and request.method == "GET":
            text = (_LOOK / path.rpartition("/")[2]).read_text()
            return Response(text, media_type=_FILES[path], headers={"cache-control": "max-age=300"})
        if path == "/health":
            return PlainTextResponse("ok")
        if path == "/sign-in":
            return await (self._signing_in(request) if request.method == "POST" else self._asked_to_sign_in(request))
        if path == "/sign-out" and request.method == "POST":
            self._sessions.sign_out(request.cookies.get(COOKIE))
            answer = RedirectResponse("/sign-in", 303)
            answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict", secure=self._secure)
            return answer
        return None

    async def _asked_to_sign_in(self, request: Request) -> Response:
        ticket = request.query_params.get("ticket")
        key = self._sessions.redeem(ticket) if ticket else None
        if key is not None:
            return await self._entered(key)
        return self._form("this link was used already; sign in with the key" if ticket else "")

    async def _signing_in(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES_MAX:
                return PlainTextResponse("too large", 413)
        told = parse_qs(body.decode("utf-8", "replace"))
        expected, given = request.cookies.get(TOKEN, ""), told.get("token", [""])[0]
        if not expected or not secrets.compare_digest(expected.encode(), given.encode()):
            return self._form("the form was too old; try again", 403)
        return await self._entered(told.get("key", [""])[0].strip())

    async def _entered(self, key: str) -> Response:
        try:
            session = await self._sessions.sign_in(key)
        except Refusal as exc:
            wrong = exc.status == 401
            return self._form("that is not an admin key of this service" if wrong else str(exc), 401 if wrong else 403)
        except Trouble as exc:
            return self._form(str(exc), 502)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, session.id, path="/", httponly=True, samesite="strict", secure=self._secure)
        answer.delete_cookie(TOKEN, path="/sign-in")
        return answer

    def _form(self, complaint: str, status: int = 200) -> Response:
        token = secrets.token_urlsafe(24)
        told = f'<p class="complaint" role="alert">{html.escape(complaint)}</p>' if complaint else ""
        page = (_LOOK / "sign_in.html").read_text().replace("{token}", token).replace("{complaint}", told)
        answer = HTMLResponse(page, status, headers={"content-security-policy": _PLAIN})
        answer.set_cookie(TOKEN, token, path="/sign-in", httponly=True, samesite="strict", secure=self._secure)
        return answer

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(COOKIE))


def _is_ours(headers: Headers) -> bool:
    """Whether a request that may act comes from a page of this host. Browsers always say."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host")


def _guarded(send: Send, nonce: str) -> Send:
    """Say what the browser may do; and mark the scripts of a page as ours."""
    state: dict[str, Any] = {"start": None, "body": b""}

    async def guarded(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", _POLICY.replace("{nonce}", nonce))
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "same-origin"
            headers["x-frame-options"] = "DENY"
            if headers.get("content-type", "").startswith("text/html"):
                headers["cache-control"] = "no-store"
                state["start"] = message
                return
        elif message["type"] == "http.response.body" and state["start"] is not None:
            state["body"] += message.get("body", b"")
            if message.get("more_body"):
                return
            body = state["body"].replace(b"<script", b'<script nonce="' + nonce.encode() + b'"')
            MutableHeaders(scope=state["start"])["content-length"] = str(len(body))
            await send(state["start"])
            state["start"] = None
            await send({"type": "http.response.body", "body": body})
            return
        await send(message)

    return guarded
