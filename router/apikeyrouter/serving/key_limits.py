"""What keys' metadata declare of their quota groups: several keys of one group declare its lanes together."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from apikeyrouter.domain.components.entries import group_lane
from apikeyrouter.domain.components.limits import LimitProfile, LimitRow, compile_limits
from apikeyrouter.domain.models.accounting import LANES_PER_CANDIDATE_MAX, LaneConfig, Limit
from apikeyrouter.domain.models.api_key import KeyRouting
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.config.compiled import pool_name

__all__ = ["Declared", "KeyLimits", "declared_by", "names_of", "refuse_crowds"]

GROUP_LANES_MAX = LANES_PER_CANDIDATE_MAX - 2
_OF_FILES = {"on_store_loss", "set_aside", "key", "quota_group"}
"""What rows of a configuration file may say, and metadata may not."""
Pools = Mapping[str, frozenset[str] | None]
"""By lane, the models that it meters; None: all."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What one key declares of its group."""

    group: str
    lanes: tuple[LaneConfig, ...] = ()
    pools: Pools | None = None


class KeyLimits:
    """By key and by group. Costs by the keys of a group that declare something, not by all keys."""

    def __init__(self) -> None:
        self._by_key: dict[str, Declared] = {}
        self._by_group: dict[str, dict[str, Declared]] = {}
        self._lanes_of: dict[str, Counter[str]] = {}
        """Per group: how many of its keys declare each lane."""

    def put(self, key_id: str, declared: Declared) -> bool:
        """A key declares that now; whether it declared something else before."""
        known = self._by_key.get(key_id)
        if declared.lanes and known == declared:
            return False
        dropped = self.drop(key_id)
        if declared.lanes:
            self._by_key[key_id] = self._by_group.setdefault(declared.group, {})[key_id] = declared
            self._lanes_of.setdefault(declared.group, Counter()).update(list(declared.pools or ()))
        return dropped or bool(declared.lanes)

    def drop(self, key_id: str) -> bool:
        """A key declares nothing any more; whether it did."""
        known = self._by_key.pop(key_id, None)
        if known is None:
            return False
        of_group = self._by_group[known.group]
        del of_group[key_id]
        self._lanes_of[known.group].subtract(list(known.pools or ()))
        if not of_group:
            del self._by_group[known.group], self._lanes_of[known.group]
        return True

    def refuse_crowd_with(self, declared: Declared, key_id: str) -> None:
        """Raises InvalidRequestError where a model would be in more pools of a group than a request can be held in,
        were a key to declare that beside what the group's others do."""
        known = self._lanes_of.get(declared.group)
        if known is not None and any(not known[lane] for lane in declared.pools or ()):
            others = (one for id_, one in self._by_group.get(declared.group, {}).items() if id_ != key_id)
            together = {lane: named for one in (*others, declared) for lane, named in (one.pools or {}).items()}
            refuse_crowds(together.values())

    @property
    def groups(self) -> list[str]:
        """The groups of which anything is declared."""
        return list(self._by_group)

    @property
    def keys(self) -> list[str]:
        """The keys that declare anything."""
        return list(self._by_key)

    def pools(self) -> Iterator[tuple[str, Pools]]:
        """Per key: its group, and what it declares of it."""
        return ((declared.group, declared.pools or {}) for declared in self._by_key.values())

    def lanes(self) -> Iterator[LaneConfig]:
        """Every lane as each key declares it."""
        return (lane for declared in self._by_key.values() for lane in declared.lanes)

    def merged(self, group: str) -> list[LaneConfig]:
        """The lanes that the keys of a group declare together. Of the same limit, the lowest amount holds."""
        merged: dict[str, LaneConfig] = {}
        for declared in self._by_group.get(group, {}).values():
            for lane in declared.lanes:
                before = merged.get(lane.id)
                limits = lane.limits if before is None else _lowest([*before.limits, *lane.limits])
                merged[lane.id] = replace(lane, limits=limits)
        return list(merged.values())


def declared_by(group: str, routing: KeyRouting, profile: LimitProfile) -> Declared:
    """What a key's metadata declare of its group.

    Raises:
        InvalidRequestError: limits that are wrong, or more than a request can be held in.
    """
    lanes: dict[str, LaneConfig] = {}
    pools: dict[str, frozenset[str] | None] = {}
    for at, row in enumerate(routing.limits):
        fields = dict(row)
        named = names_of(fields.pop("models", None))
        lane_id = group_lane(group, pool_name(named))
        limits = _compiled(fields, profile, f"limits[{at}]" if len(routing.limits) > 1 else "limits")
        before = lanes.get(lane_id, LaneConfig(id=lane_id))
        lanes[lane_id] = LaneConfig(id=lane_id, limits=_lowest([*before.limits, *limits]), fair=True)
        pools[lane_id] = named
    refuse_crowds(pools.values())
    return Declared(group, tuple(lanes.values()), pools)


def _compiled(fields: dict[str, object], profile: LimitProfile, where: str) -> tuple[Limit, ...]:
    try:
        of_files = sorted(fields.keys() & _OF_FILES)
        if of_files:
            raise InvalidRequestError("is for the limits of a configuration file", field=of_files[0])
        return compile_limits(LimitRow.parse(fields), profile)
    except InvalidRequestError as exc:
        raise InvalidRequestError(exc.reason, field=f"{where}.{exc.field}" if exc.field else where) from exc


def names_of(models: object) -> frozenset[str] | None:
    """The models of a pool, as a row of limits names them; None: all."""
    if models is None:
        return None
    if not isinstance(models, list | tuple) or not models or not all(isinstance(name, str) for name in models):
        raise InvalidRequestError("must be a list of model names", field="limits.models")
    return frozenset(models)


def refuse_crowds(pools: Iterable[frozenset[str] | None]) -> None:
    """Raises InvalidRequestError where one model is in more pools of a group than a request can be held in."""
    found = list(pools)
    named = [models for models in found if models is not None]
    most = max((sum(model in models for models in named) for each in named for model in each), default=0)
    if most + len(found) - len(named) > GROUP_LANES_MAX:
        raise InvalidRequestError(f"a model may be in at most {GROUP_LANES_MAX} pools of its group", field="limits")


def _lowest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    found: dict[str, Limit] = {}
    for limit in limits:
        known = found.get(limit.name)
        if known is None or limit.amount * known.period_us < known.amount * limit.period_us:
            found[limit.name] = limit
    return tuple(found.values())
