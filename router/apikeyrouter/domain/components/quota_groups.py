"""Which keys share a quota: declared, named by the provider, or only suspected. Pure.

What the operator declares holds. What a provider names exactly (an organisation in its answers) merges keys that are
declared to be in no group. Counters that fall together are a hint and change nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

from apikeyrouter.domain.models.accounting import Metric, Observation
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Conflict", "SharedCounters", "group_of", "merges", "organization_digest"]

EVIDENCE = 8
"""How often in a row another key's counter must have told better what a key's would say than its own."""
INFORMATIVE = 3
"""By how many requests the two predictions must differ for an answer to say anything."""
TOLERANCE = 2
"""Requests that are under way, and so counted here or there."""
FRESH_SECONDS = 20.0
"""A counter that was seen longer ago predicts nothing."""
COUNTERS_MAX = 4096
PLACES_MAX = 1024
OTHERS_MAX = 8
"""Keys seen last whose requests are remembered beside a counter."""


def organization_digest(provider_id: str, organization: str) -> str:
    """Tells organisations apart without naming them."""
    text = f"{len(provider_id)}:{provider_id}{organization}".encode()
    return "org_" + blake2b(text, digest_size=6, person=b"apikeyrouter.org").hexdigest()


def declared_group(key: APIKey) -> str | None:
    """The group that the operator declared; a group named like the key is none."""
    try:
        group = key.routing.quota_group
    except InvalidRequestError:
        return None
    return None if group == key.id else group


def group_of(key: APIKey) -> str:
    """The quota group that a key is metered in."""
    return declared_group(key) or key.merged_group or key.id


@dataclass(frozen=True, slots=True)
class Conflict:
    """Keys of one organisation that were declared to be in several groups: their limits are one, counted apart."""

    keys: tuple[str, ...]
    groups: tuple[str, ...]


def merges(keys: Iterable[APIKey]) -> tuple[dict[str, str], list[Conflict]]:
    """(key id → the group it must be put into, conflicts): for each organisation with several keys.

    The group is the one that is declared by any of them, else one that was merged into before, else that of the oldest
    key: every process comes to the same.
    """
    members: dict[str, list[APIKey]] = {}
    for key in keys:
        if key.organization:
            members.setdefault(key.organization, []).append(key)
    moved: dict[str, str] = {}
    conflicts: list[Conflict] = []
    for found in members.values():
        if len(found) < 2:
            continue
        found.sort(key=lambda key: (key.created_at, key.id))
        declared = {key.id: group for key in found if (group := declared_group(key)) is not None}
        groups = sorted(set(declared.values()))
        if len(groups) > 1:
            conflicts.append(Conflict(tuple(declared), tuple(groups)))
            continue
        merged = next((key.merged_group for key in found if key.merged_group), "")
        group = groups[0] if groups else merged or found[0].id
        moved.update({key.id: group for key in found if key.id not in declared and key.merged_group != group})
    return moved, conflicts


@dataclass(slots=True)
class _Counter:
    """What a provider last said to one key, and how many requests the fleet had made with it and others by then."""

    group: str
    remaining: int
    at: float
    requests: dict[str, int]
    since: "_Counter | None" = None
    """What it said before, as long as nothing could be told from the answers in between: keys that take turns differ by
    one request an answer, which says something only when it adds up."""


class SharedCounters:
    """Looks for keys of different groups whose counters are one. Requests only: tokens are not known so exactly.

    Evidence is an answer that the key's own counter cannot explain (with the requests that were made with the key) and
    the other's can (with those of both): EVIDENCE such answers in a row.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str, str, int], OrderedDict[str, _Counter]] = OrderedDict()
        self._evidence: dict[frozenset[str], int] = {}

    def see(
        self,
        key_id: str,
        group: str,
        place: tuple[str, str],
        told: Observation,
        requests: Callable[[str], int],
        now: float,
    ) -> str | None:
        """A provider told a key what is left. The id of another key whose counter it seems to be, once.

        `place`: provider and model. `requests`: how many the fleet made with a key until now. `now`: seconds of any
        steady clock.
        """
        if told.remaining is None or not told.limit or told.metric is not Metric.REQUESTS:
            return None
        counters = self._seen.setdefault((*place, told.name, told.limit), OrderedDict())
        self._seen.move_to_end((*place, told.name, told.limit))
        if len(self._seen) > PLACES_MAX:
            self._seen.popitem(last=False)
        informative, suspected = self._compare(key_id, group, counters, told, requests, now)
        own = counters.pop(key_id, None)
        since = None if own is None or informative else own.since or own
        counted = {other: requests(other) for other in (key_id, *list(counters)[-OTHERS_MAX:])}
        counters[key_id] = _Counter(group, told.remaining, now, counted, since)
        if len(counters) > COUNTERS_MAX:
            counters.popitem(last=False)
        return suspected

    def _compare(
        self,
        key_id: str,
        group: str,
        counters: "OrderedDict[str, _Counter]",
        told: Observation,
        requests: Callable[[str], int],
        now: float,
    ) -> tuple[bool, str | None]:
        """Whether something could be told from the answer, and a key that is newly suspected."""
        own, other_id = counters.get(key_id), next(reversed(counters), key_id)
        other = counters.get(other_id)
        if own is None or other is None or other_id == key_id or other.group == group:
            return False, None
        own = own if own.since is None or now - own.since.at > FRESH_SECONDS else own.since
        if now - own.at > FRESH_SECONDS or key_id not in other.requests:
            return True, None
        assert told.remaining is not None
        refill = told.limit * 1e6 / told.period_us
        alone = own.remaining - (requests(key_id) - own.requests[key_id]) + refill * (now - own.at)
        both = sum(requests(one) - other.requests[one] for one in (key_id, other_id))
        shared = other.remaining - both + refill * (now - other.at)
        alone, shared = min(float(told.limit), alone), min(float(told.limit), shared)
        if abs(shared - alone) < INFORMATIVE:
            return False, None
        pair = frozenset((key_id, other_id))
        if abs(told.remaining - shared) <= TOLERANCE < abs(told.remaining - alone):
            if len(self._evidence) >= COUNTERS_MAX:
                self._evidence.clear()
            self._evidence[pair] = self._evidence.get(pair, 0) + 1
            return True, other_id if self._evidence[pair] == EVIDENCE else None
        self._evidence.pop(pair, None)
        return True, None
