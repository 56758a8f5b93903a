"""Sends a session's requests where its prompt is cached, while that is worth it and has room."""

from collections.abc import Collection

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.objectives import Plan
from apikeyrouter.domain.components.ordering import Order
from apikeyrouter.domain.components.pool import Option, Pool, Ranked, Snapshot
from apikeyrouter.domain.components.stickiness import NAMED_BY, SessionKey, Sessions, session_key, turn_of
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.system_error import InvalidRequestError, ProviderError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import ParsedRequest
from apikeyrouter.serving.offers import FREE_OPERATIONS, Offers, ParsedFor

KEYS_PER_GROUP_MAX = 2
"""Keys of a group with a warm cache that are offered besides the others."""
_UNCACHED = FREE_OPERATIONS | {"embedding"}


class Session:
    """The session of one request. `warm`: quota groups that hold its cache, with the tokens that it should save."""

    __slots__ = ("_key", "_sessions", "warm")

    def __init__(self, sessions: Sessions, key: SessionKey, now: float) -> None:
        self._sessions, self._key = sessions, key
        self.warm = sessions.warm(key, now)

    @property
    def turn(self) -> int:
        """Where it begins among equals while nobody holds its cache."""
        return turn_of(self._key)

    def served(self, option: Option, usage: Usage, now: float) -> None:
        """It was answered by this option."""
        group = option.key.quota_group
        unasked = bool(getattr(option.provider.wire, "caches_unasked", False))
        self._sessions.served(
            self._key, group, usage, unasked=unasked, expected=self.warm.get(group, 0), now=now
        )  # fmt: skip


class Sticking:
    """Finds sessions and puts candidates with a warm cache where they belong."""

    def __init__(self, sessions: Sessions, snapshot: Snapshot) -> None:
        self._sessions, self._snapshot = sessions, snapshot

    def session(self, call: Call, pool: Pool, plan: Plan, parsed_for: ParsedFor, now: float) -> Session | None:
        """The session of a call; None where it has none. To be asked only of pools where caches save something."""
        if call.operation in _UNCACHED:
            return None
        parsed, implicit = _said(call, pool, parsed_for), plan.costs >= 0
        if not (implicit or call.session or (parsed is not None and NAMED_BY in parsed.fields)):
            return None
        tenant = call.principal or call.team or ""
        key = session_key(pool.model, tenant, call.session, parsed, implicit=implicit)
        return None if key is None else Session(self._sessions, key, now)

    def warm(
        self, pool: Pool, order: Order, session: Session, skip: Collection[Option], now: float
    ) -> list[tuple[Option, int]]:
        """Keys of the groups that hold the cache, with their places in the order: those that are well."""
        found = []
        for group in session.warm:
            for option in pool.members.in_group(group, KEYS_PER_GROUP_MAX):
                at = order.place_of(option)
                if at is None or (skip and option in skip) or not option.key.state.eligible:
                    continue
                standing = order.standing(at)
                if standing.out_until_us or standing.scarce >= Level.CRITICAL:
                    continue
                if not (self._snapshot.blocked and self._snapshot.is_blocked(option, now)):
                    found.append((option, at))
        return found


def _said(call: Call, pool: Pool, parsed_for: ParsedFor) -> ParsedRequest | None:
    """The request in the dialect of the first provider that can be asked it; None: for an adapter of one's own."""
    if call.intent is None:
        return call.parsed
    for sample in pool.samples:
        try:
            return parsed_for(sample)[1]
        except (InvalidRequestError, ProviderError):
            continue
    return None


def join(ranked: Ranked, order: Order, warm: list[tuple[Option, int]]) -> None:
    """Where cost ranks, warm ones are candidates like any other: their price tells."""
    for option, at in warm:
        if option not in ranked.options:
            ranked.options.append(option)
            ranked.ranking.standings.append(order.standing(at))


def put_first(plan: Plan, ranked: Ranked, order: Order, warm: list[tuple[Option, int]], offers: Offers) -> None:
    """Where it does not, a warm one that is as good as any comes first, if it saves something and is no dearer."""
    ranking = ranked.ranking
    equal = ranked.options[: ranking.equals]
    least = min((cost for option in equal if (cost := offers.expected(option, cached=False)) is not None), default=None)
    for option, at in warm:
        cost, plain = offers.expected(option), offers.expected(option, cached=False)
        if cost is None or plain is None or cost >= plain or (least is not None and cost > least):
            continue
        if option in equal:
            place = ranked.options.index(option)
            standing = ranking.standings.pop(place)
            del ranked.options[place]
        elif plan.waits < 0 and at < order.turning:
            standing = order.standing(at)
            ranking.equals += 1
        else:
            continue
        ranked.options.insert(0, option)
        ranking.standings.insert(0, standing)
        ranking.sticky, ranking.saved_nanousd = 0, plain - cost
        return
