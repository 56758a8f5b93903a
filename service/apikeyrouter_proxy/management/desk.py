"""What all resources of the management plane share: reading pages, and changing things one after the other.

A change takes its turn among all workers, so that what it compared with is still so when it writes; it is written to
the audit log; and a repeated creation with the same Idempotency-Key gives the same answer.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.convertors import PathConvertor, register_url_convertor

from apikeyrouter.infrastructure.state_store.records import Records
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter_proxy.access import CurrentRuntime, Refused, require
from apikeyrouter_proxy.admin_keys import Operator, Role
from apikeyrouter_proxy.audit_log import Author, note
from apikeyrouter_proxy.runtime import Runtime

__all__ = [
    "AdminDesk", "Desk", "Input", "Made", "OperateDesk", "Page", "Paging", "ReadDesk", "Resource", "by_name",
    "journal_page", "page_of",
]  # fmt: skip


class NameConvertor(PathConvertor):
    """A name in a path, slashes and all; not nothing."""

    regex = ".+"


register_url_convertor("name", NameConvertor())

PAGE_DEFAULT, PAGE_MAX = 100, 1000
LOOKED_AT_MAX, BATCH = 20_000, 1000
"""Entries of a journal that one question with a filter looks at, and how many at a time."""
CURSOR_LENGTH_MAX = 512
IDEMPOTENCY_SECONDS = 86_400
IDEMPOTENCY_LENGTH_MAX = 200
TURN = "management"
Shown = dict[str, Any]


class Input(BaseModel):
    """A request's body. Unknown fields are refused; errors never show what was sent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a creation gave. `secret` is shown this once. `is_new` False: there was such a one, unchanged."""

    id: str
    shown: Shown
    secret: Shown = field(default_factory=dict)
    is_new: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of thing. `counted`: fields that change by use; they are in no ETag and in no audit entry."""

    kind: str
    counted: frozenset[str] = frozenset()

    def settings(self, shown: Mapping[str, Any]) -> Shown:
        """What somebody set, of what is shown."""
        return {name: value for name, value in shown.items() if name not in self.counted}

    def etag(self, shown: Mapping[str, Any]) -> str:
        """The version of what is set: it changes with every change of a setting, and only then."""
        text = json.dumps(self.settings(shown), sort_keys=True)
        return f'"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"'

    def answer(self, shown: Shown, *, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """One of them, with its ETag."""
        return JSONResponse(shown, status_code=status, headers={"etag": self.etag(shown), **(headers or {})})


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Which page is asked for."""

    limit: int
    cursor: str | None

    @classmethod
    def read(
        cls,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="Most items of the answer")] = PAGE_DEFAULT,
        cursor: Annotated[
            str | None, Query(max_length=CURSOR_LENGTH_MAX, description="`next_cursor` of the page before")
        ] = None,
    ) -> "Paging":
        """Of a request's query."""
        return cls(limit=limit, cursor=cursor)

    @property
    def after(self) -> str:
        """What the last item of the page before was sorted by; "" for the first page."""
        if not self.cursor:
            return ""
        try:
            return base64.b64decode(self.cursor, altchars=b"-_", validate=True).decode()
        except (binascii.Error, ValueError) as exc:
            raise Refused(400, "invalid_request", "cursor: is none that this service gave", param="cursor") from exc


def page_of(
    name: str, items: Iterable[Shown], paging: Paging, *, by: Callable[[Shown], str] = lambda item: str(item["id"])
) -> Shown:
    """One page of items, sorted by what is unique to each: `{<name>: […], total, next_cursor}`."""
    everything = sorted(items, key=by)
    after = paging.after
    rest = [item for item in everything if by(item) > after] if after else everything
    shown = rest[: paging.limit]
    more = len(rest) > len(shown)
    return {name: shown, "total": len(everything), "next_cursor": cursor_at(by(shown[-1])) if more else None}


async def journal_page(
    records: Records, journal: str, paging: Paging, wanted: Callable[[Shown], bool] | None = None
) -> tuple[list[tuple[str, Shown]], str | None]:
    """One page of a journal, newest first, of the entries that are wanted: with their ids, and the next cursor."""
    before, looked_at = paging.after, 0
    if before and not before.replace("-", "").isdigit():
        raise Refused(400, "invalid_request", "cursor: is none that this service gave", param="cursor")
    found: list[tuple[str, Shown]] = []
    while len(found) <= paging.limit and looked_at < LOOKED_AT_MAX:
        batch = await records.entries(journal, before=before, limit=paging.limit + 1 if wanted is None else BATCH)
        found += [(id_, entry) for id_, entry in batch if wanted is None or wanted(entry)]
        looked_at += len(batch)
        if not batch:
            break
        before = batch[-1][0]
    shown = found[: paging.limit]
    return shown, cursor_at(shown[-1][0]) if len(found) > paging.limit else None


def by_name(item: Shown) -> str:
    """What things with a name are sorted by."""
    return str(item["name"])


def cursor_at(place: str) -> str:
    """The cursor for what comes after a place."""
    return base64.urlsafe_b64encode(place.encode()).decode()


class Desk:
    """One management request: who asks, and the ways to change something."""

    def __init__(self, runtime: Runtime, operator: Operator, request: Request) -> None:
        self.runtime, self.operator = runtime, operator
        self._headers = request.headers

    @property
    def router(self) -> ApiKeyRouter:
        """The worker's router."""
        return self.runtime.router

    @property
    def records(self) -> Records:
        """Turns and journals."""
        return self.runtime.records

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Nobody else changes anything meanwhile, in any worker."""
        async with self.records.turn(TURN):
            yield

    async def create(
        self, resource: Resource, body: BaseModel, make: Callable[[], Awaitable[Made]], *, again: int = 200
    ) -> Response:
        """Make something, once for each Idempotency-Key. `again`: the status where there was such a one already."""
        async with self.turn():
            memo_name, fingerprint = self._idempotency(resource, body)
            known = await self.records.recall(memo_name) if memo_name else None
            if known is not None:
                if known["fingerprint"] != fingerprint:
                    raise Refused(409, "idempotency_conflict", "this Idempotency-Key came with another body before")
                headers = {"idempotent-replayed": "true"}
                return resource.answer(known["shown"], status=known["status"], headers=headers)
            made = await make()
            status = 201 if made.is_new else again
            if made.is_new:
                await self.note(resource.kind, made.id, "created", {"after": resource.settings(made.shown)})
            if memo_name:
                memo = {"fingerprint": fingerprint, "shown": made.shown, "status": status}
                await self.records.remember(memo_name, memo, seconds=IDEMPOTENCY_SECONDS)
        answer = resource.answer(made.shown, status=status)
        if made.secret:
            return JSONResponse({**made.shown, **made.secret}, status, headers={"etag": answer.headers["etag"]})
        return answer

    async def change(
        self,
        resource: Resource,
        id: str,
        read: Callable[[], Awaitable[Shown]],
        write: Callable[[], Awaitable[Shown | None]],
        *,
        action: str = "updated",
    ) -> Response:
        """Change something that `read` finds; what `write` gives is shown this once. 412 when it is not as If-Match
        says."""
        async with self.turn():
            before = await read()
            self._check_match(resource, before)
            secret = await write()
            after = await read()
            old, new = resource.settings(before), resource.settings(after)
            changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
            difference = {name: [old.get(name), new.get(name)] for name in changed}
            await self.note(resource.kind, id, action, {"changed": difference})
        return resource.answer({**after, **(secret or {})}, headers={"etag": resource.etag(after)})

    async def delete(
        self,
        resource: Resource,
        id: str,
        read: Callable[[], Awaitable[Shown]],
        remove: Callable[[], Awaitable[object]],
    ) -> Response:
        """Remove something that `read` finds. 412 when it is not as If-Match says."""
        async with self.turn():
            before = await read()
            self._check_match(resource, before)
            await remove()
            await self.note(resource.kind, id, "deleted", {"before": resource.settings(before)})
        return Response(status_code=204)

    async def note(self, kind: str, id: str, action: str, details: Mapping[str, Any] | None = None) -> None:
        """Write to the audit log."""
        await note(self.records, self.author, kind=kind, id=id, action=action, details=details)

    @property
    def author(self) -> Author:
        """Who asks, for the audit log."""
        return self.operator.name, self.operator.role.name.lower()

    def _check_match(self, resource: Resource, shown: Shown) -> None:
        wanted = self._headers.get("if-match")
        if wanted is None or wanted.strip() == "*":
            return
        etag = resource.etag(shown)
        if etag not in [part.strip().removeprefix("W/") for part in wanted.split(",")]:
            raise Refused(412, "changed_meanwhile", "somebody changed it since; read it again", headers={"etag": etag})

    def _idempotency(self, resource: Resource, body: BaseModel) -> tuple[str, str]:
        given = self._headers.get("idempotency-key")
        if given is None:
            return "", ""
        if not 1 <= len(given) <= IDEMPOTENCY_LENGTH_MAX or not given.isprintable():
            raise Refused(
                400, "invalid_request", f"idempotency-key: must have 1 to {IDEMPOTENCY_LENGTH_MAX} printable characters"
            )
        whose = hashlib.sha256(f"{self.operator.name}\n{resource.kind}\n{given}".encode()).hexdigest()
        text = json.dumps(_plain(body), sort_keys=True, default=str)
        return f"idempotency:{whose}", hashlib.sha256(text.encode()).hexdigest()


def _plain(body: BaseModel) -> Any:
    """A body as it came, secrets included: only a digest of it is kept."""
    told = {name: getattr(body, name) for name in type(body).model_fields}
    return {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else value for name, value in told.items()
    }


def _desk(role: Role) -> Any:
    async def desk(
        runtime: CurrentRuntime, operator: Annotated[Operator, Depends(require(role))], request: Request
    ) -> Desk:
        return Desk(runtime, operator, request)

    return Depends(desk)


ReadDesk = Annotated[Desk, _desk(Role.READ)]
OperateDesk = Annotated[Desk, _desk(Role.OPERATE)]
AdminDesk = Annotated[Desk, _desk(Role.ADMIN)]
Page = Annotated[Paging, Depends(Paging.read)]
