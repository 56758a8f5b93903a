"""Where a generic HTTP API is asked, and how: a payload becomes path, query and body."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.adapters.http_adapter import chat_body

if TYPE_CHECKING:
    import httpx

__all__ = ["Endpoint", "endpoints_of"]

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
BODIES = frozenset({"json", "form", "query", "none"})
_FIELD = re.compile(r"\{(\w+)\}")
Auth = tuple[str, str, str]
"""(kind, name, prefix)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint.

    `path`: `{name}` stands for that field of the payload, `{model}` for the model. `query`: fields that go into the
    query. `body`: what becomes of the rest: `json`, `form`, `query` (the default for GET and DELETE), or `none`: it is
    left out. `headers` are sent as they are.
    """

    method: str
    path: str
    body: str
    query: tuple[str, ...]
    headers: Mapping[str, str]
    auth: Auth

    def request(self, client: "httpx.AsyncClient", intent: RequestIntent, key: str) -> "httpx.Request":
        """The request to send. Raises as `fill`."""
        path, rest = self.fill(intent)
        query = {name: rest.pop(name) for name in self.query if name in rest}
        given: dict[str, Any] = {}
        if self.body == "query":
            query.update(rest)
        elif self.body == "json":
            given["json"] = rest
        elif self.body == "form":
            given["data"] = {name: _plain(value) for name, value in rest.items()}
        told = {name: _plain(value) for name, value in query.items() if value is not None}
        request = client.build_request(self.method, path, params=told or None, headers=dict(self.headers), **given)
        self.authorise(request, key)
        return request

    def fill(self, intent: RequestIntent) -> tuple[str, dict[str, Any]]:
        """(path, the fields that it does not use). Raises InvalidRequestError naming one that it needs and has not."""
        if intent.operation is Operation.Chat:
            rest = chat_body(intent)
        else:
            rest = {**(intent.payload or {}), **intent.parameters}
        path = self.path
        for name in dict.fromkeys(_FIELD.findall(self.path)):
            value = intent.model if name == "model" else rest.get(name)
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise InvalidRequestError("is needed for the path", field=f"payload.{name}")
            path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
            rest.pop(name, None)
        return path, rest

    def authorise(self, request: "httpx.Request", key: str) -> None:
        """Put the key where the API wants it."""
        kind, name, prefix = self.auth
        secret = str.__str__(key)
        if kind == "header":
            request.headers[name] = prefix + secret
        elif kind == "basic":
            request.headers["authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        elif kind == "query":
            request.url = request.url.copy_merge_params({name: secret})


def endpoints_of(
    own: Mapping[str, Any], named: Mapping[str, Mapping[str, Any]], auth: str | Mapping[str, str]
) -> dict[str, Endpoint]:
    """Endpoints by model name; "" is for every other. What one does not say, it takes from `own`."""
    known = {field.name for field in fields(Endpoint)} - {"auth"}
    told = _auth(auth)
    found = {"": _endpoint("", own, told)}
    for name, parts in named.items():
        unknown = sorted(parts.keys() - known)
        if unknown:
            raise ConfigurationError(f"endpoints.{name}: no {unknown[0]!r}; there are {', '.join(sorted(known))}")
        found[name] = _endpoint(name, {**own, **parts}, told)
    return found


def _endpoint(name: str, parts: Mapping[str, Any], auth: Auth) -> Endpoint:
    where = f"endpoints.{name}." if name else ""
    method = str(parts["method"]).upper()
    if method not in METHODS:
        raise ConfigurationError(f"{where}method: must be one of {', '.join(sorted(METHODS))}")
    body = parts["body"]
    if body not in BODIES:
        raise ConfigurationError(f"{where}body: must be one of {', '.join(sorted(BODIES))}")
    path = parts["path"]
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigurationError(f"{where}path: must begin with /")
    if body == "json" and method in ("GET", "DELETE"):
        body = "query"
    return Endpoint(
        method=method, path=path, body=body, query=tuple(parts["query"]), headers=dict(parts["headers"]), auth=auth
    )


def _auth(auth: str | Mapping[str, str]) -> Auth:
    if auth == "bearer":
        return "header", "authorization", "Bearer "
    if auth in ("basic", "none"):
        return str(auth), "", ""
    if isinstance(auth, Mapping) and auth.keys() <= {"header", "prefix"} and "header" in auth:
        return "header", auth["header"], auth.get("prefix", "")
    if isinstance(auth, Mapping) and auth.keys() == {"query"}:
        return "query", auth["query"], ""
    raise ConfigurationError("auth: must be bearer, basic, none, {header: NAME, prefix: TEXT} or {query: NAME}")


def _plain(value: Any) -> Any:
    """What a query or a form can say."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str | int | float) else str(value)
