"""The management API of a running service, asked with one operator's admin key."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

__all__ = ["Management", "Refusal", "Trouble", "open_http", "path_of"]

PAGE, PAGES_MAX = 1000, 20
SECONDS_MAX, UPLOAD_SECONDS_MAX = 8.0, 120.0
NO_HEADERS: Mapping[str, str] = {}
MESSAGE_LENGTH_MAX = 500


class Trouble(Exception):
    """The service did not answer as it should; the message is for the operator."""


class Refusal(Trouble):
    """The service understood and said no. `status` as in HTTP, `code` and `param` as the API gives them."""

    def __init__(self, status: int, code: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def open_http(url: str) -> httpx.AsyncClient:
    """A client for one service, for all operators. Redirects are not followed: the key goes nowhere else."""
    return httpx.AsyncClient(base_url=url.rstrip("/"), timeout=SECONDS_MAX, follow_redirects=False, trust_env=False)


def path_of(*parts: str) -> str:
    """A path below the API of these parts, each quoted."""
    return "/" + "/".join(quote(part, safe=":") for part in parts)


class Management:
    """What an operator may ask. Errors of every call: Refusal where the service says no, else Trouble."""

    def __init__(self, http: httpx.AsyncClient, key: str) -> None:
        self._http, self._key = http, key

    async def get(self, path: str, **params: Any) -> Any:
        """What a GET answers. Parameters that are None are left out."""
        wanted = {name: value for name, value in params.items() if value is not None}
        return (await self._ask("GET", f"/api/v1{path}", params=wanted)).json()

    async def pages(self, path: str, name: str, *, most: int = PAGE * PAGES_MAX, **params: Any) -> list[dict[str, Any]]:
        """The items of a list, page after page: at most so many."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(found) < most:
            told = await self.get(path, limit=min(PAGE, most - len(found)), cursor=cursor, **params)
            found += told[name]
            cursor = told["next_cursor"]
            if cursor is None:
                break
        return found

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        """What a request with a body answers; None where there is no content."""
        answer = await self._ask(method, f"/api/v1{path}", json=body)
        return answer.json() if answer.content else None

    async def upload(self, path: str, body: bytes, kind: str, **params: Any) -> Any:
        """What a POST of a whole file answers. `kind`: its content type. Parameters that are None are left out."""
        wanted = {name: value for name, value in params.items() if value is not None}
        told = await self._ask(
            "POST", f"/api/v1{path}", headers={"content-type": kind}, timeout=UPLOAD_SECONDS_MAX, params=wanted,
            content=body,
        )  # fmt: skip
        return told.json()

    async def health(self) -> dict[str, Any]:
        """What the service says of itself."""
        told: dict[str, Any] = (await self._ask("GET", "/health")).json()
        return told

    async def metrics(self) -> str:
        """Prometheus' text; "" where metrics are off."""
        try:
            return (await self._ask("GET", "/metrics")).text
        except Refusal:
            return ""

    async def _ask(
        self, method: str, path: str, *, headers: Mapping[str, str] = NO_HEADERS, timeout: float = SECONDS_MAX,
        **options: Any,
    ) -> httpx.Response:  # fmt: skip
        told = {**headers, "X-API-Key": self._key}
        try:
            answer = await self._http.request(method, path, headers=told, timeout=timeout, **options)
        except httpx.TimeoutException as exc:
            raise Trouble(f"the service did not answer within {timeout:g} s") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise Trouble(f"the service cannot be reached ({type(exc).__name__})") from exc
        if answer.is_success:
            return answer
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> Refusal:
    try:
        told = answer.json()["error"]
        message, code, param = str(told["message"]), str(told["code"]), told.get("param")
    except (ValueError, KeyError, TypeError):
        message, code, param = f"the service answered {answer.status_code}", "", None
    return Refusal(answer.status_code, code, message[:MESSAGE_LENGTH_MAX], param)
