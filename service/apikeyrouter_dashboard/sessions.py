"""Who is signed in. Admin keys stay in this process; a browser has an id that means nothing elsewhere."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from apikeyrouter_dashboard.management import Management, Refusal

__all__ = ["ROLES", "Session", "Sessions"]

ROLES = ("read", "operate", "admin")
"""From the least to the most."""
HOURS = 12
SESSIONS_MAX = 1000
FAILURES_MAX, FAILURES_SECONDS = 10, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One signed-in browser."""

    id: str = field(repr=False)
    name: str
    role: str
    api: Management = field(repr=False)
    ends_at: float
    chosen: dict[str, int] = field(default_factory=dict)
    """What was chosen on one page and holds on all."""

    def may(self, role: str) -> bool:
        """Whether the role of its admin key includes that one."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Sessions:
    """The signed-in browsers of this process. `clock`: seconds that never run backwards."""

    def __init__(self, http: httpx.AsyncClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._http, self._clock = http, clock
        self._open: dict[str, Session] = {}
        self._tickets: dict[str, str] = {}
        self._failures: list[float] = []

    async def sign_in(self, key: str) -> Session:
        """A session for whoever has that admin key.

        Errors: Refusal when it is none (or too many wrong ones came within a minute); Trouble when nobody can say.
        """
        now = self._clock()
        self._failures = [at for at in self._failures if now - at < FAILURES_SECONDS]
        if len(self._failures) >= FAILURES_MAX:
            raise Refusal(429, "too_many", "too many wrong keys; wait a minute", None)
        api = Management(self._http, key)
        try:
            told = await api.get("/whoami")
        except Refusal:
            self._failures.append(now)
            raise
        session = Session(
            id=secrets.token_urlsafe(32), name=told["name"], role=told["role"], api=api, ends_at=now + HOURS * 3600
        )
        self._open = {id_: one for id_, one in self._open.items() if one.ends_at > now}
        while len(self._open) >= SESSIONS_MAX:
            del self._open[next(iter(self._open))]
        self._open[session.id] = session
        return session

    def find(self, id: str | None) -> Session | None:
        """The session of a browser; None: signed out, or too long ago."""
        found = self._open.get(id) if id else None
        return found if found is not None and found.ends_at > self._clock() else None

    def sign_out(self, id: str | None) -> None:
        """End a session. Idempotent."""
        if id:
            self._open.pop(id, None)

    def ticket(self, key: str) -> str:
        """A word that signs somebody in with that admin key, once."""
        word = secrets.token_urlsafe(24)
        self._tickets[word] = key
        return word

    def redeem(self, ticket: str) -> str | None:
        """The admin key behind a ticket, which is void now; None: there is none."""
        return self._tickets.pop(ticket, None)
