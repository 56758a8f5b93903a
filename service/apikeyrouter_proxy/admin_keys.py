"""Who may manage, and how far: the first admin key of the environment, and named ones with roles in the store."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.client import SHA256, ClientName
from apikeyrouter.domain.models.edge import EdgeModel

__all__ = ["KIND", "AdminKey", "AdminKeys", "Operator", "Role", "RoleName", "new_token", "token_sha256"]

KIND = "admin_key"
FIRST = "first"
"""What the audit log calls whoever has MANAGEMENT_API_KEY."""
RoleName = Literal["read", "operate", "admin"]


class Role(IntEnum):
    """What an admin key may do; each role includes those before it.

    Read: look at everything. Operate: bring keys in and out, resolve suspense, reload. Admin: change what is set.
    """

    READ = 1
    OPERATE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who makes a management request."""

    name: str
    role: Role


class AdminKey(EdgeModel):
    """A named admin key. `token_sha256`: SHA-256 of the token, in hex."""

    name: ClientName
    role: RoleName
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    expires_at: AwareDatetime | None = None
    token_sha256: str = Field(repr=False, pattern=SHA256)

    def public(self) -> dict[str, Any]:
        """What may be shown: everything but the hash, in JSON types."""
        return self.model_dump(mode="json", exclude={"token_sha256"})


class AdminKeys:
    """The admin keys in force in this process; `refresh` takes over what others have changed."""

    def __init__(self, store: StateStore, first: str | None) -> None:
        self._store = store
        self._first = first
        self._named: dict[str, AdminKey] = {}

    def __bool__(self) -> bool:
        return bool(self._first or self._named)

    @property
    def named(self) -> Mapping[str, AdminKey]:
        """Those of the store, by name."""
        return self._named

    def identify(self, given: str | None) -> Operator | None:
        """Whose key that is; None: nobody's. Looks at every key, each in constant time."""
        if given is None:
            return None
        found: Operator | None = None
        if self._first and hmac.compare_digest(given.encode(), self._first.encode()):
            found = Operator(name=FIRST, role=Role.ADMIN)
        digest, now = token_sha256(given), datetime.now(UTC)
        for key in self._named.values():
            if hmac.compare_digest(key.token_sha256, digest) and (key.expires_at is None or now < key.expires_at):
                found = Operator(name=key.name, role=Role[key.role.upper()])
        return found

    async def refresh(self) -> None:
        """Take over the store's."""
        told = await self._store.list_documents(KIND)
        self._named = {name: AdminKey.parse(document) for name, document in sorted(told.items())}

    async def put(self, key: AdminKey) -> None:
        """Add or change one; elsewhere it is in force within a second."""
        await self._store.save_document(KIND, key.name, key.model_dump(mode="json"))
        self._named = dict(sorted({**self._named, key.name: key}.items()))

    async def drop(self, name: str) -> None:
        """Forget one."""
        await self._store.delete_document(KIND, name)
        self._named = {other: key for other, key in self._named.items() if other != name}


def new_token(prefix: str) -> str:
    """A token that nobody guesses: 256 random bits."""
    return f"{prefix}-{secrets.token_urlsafe(32)}"


def token_sha256(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
