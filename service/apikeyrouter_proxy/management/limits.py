"""Limits: what is metered, what of it is used and when it is free again; those stated here, changed."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from apikeyrouter.domain.components.limits import LimitRow
from apikeyrouter.domain.components.quota_ends import QuotaEnds
from apikeyrouter.domain.models.accounting import LIMITS_PER_LANE_MAX, LaneState, LimitState, Metric
from apikeyrouter.infrastructure.config.stated import StatedLimits
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.lanes import unused_limits
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input, Made, Page, ReadDesk, Resource, page_of

__all__ = ["routes", "show_limit"]

NANOUSD = 1_000_000_000
LANE_LENGTH_MAX = 512
_KINDS = {"k": "key", "g": "quota_group", "p": "provider", "c": "client"}

routes = APIRouter()
LIMIT = Resource(
    kind="limit",
    counted=frozenset({"in_flight", "breaker", "blocked_until", "requests_total", "failures_total", "limits"}),
)
LaneId = Annotated[str, Path(min_length=1, max_length=LANE_LENGTH_MAX)]
Named = Annotated[str, Field(min_length=1, max_length=64)]
Rows = Annotated[list[LimitRow], Field(min_length=1, max_length=LIMITS_PER_LANE_MAX)]


class NewLimits(Input):
    """The limits of a quota group (`models`: shared by these; absent: by all), or of one key. `rows` are as a
    configuration file's under `limits`."""

    quota_group: Named | None = None
    key: Named | None = None
    models: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1)] | None = None
    rows: Rows

    def stated(self) -> StatedLimits:
        """The limits. Raises InvalidRequestError naming the field."""
        return StatedLimits(**{name: getattr(self, name) for name in type(self).model_fields})


class LimitsUpdate(Input):
    """What the limits are from now on. What is used of those that stay is still counted."""

    rows: Rows


@routes.post("/limits", status_code=201)
async def state_limits(desk: AdminDesk, new: NewLimits) -> Response:
    """State limits: in force here at once, elsewhere with the next request. The same again: 200."""
    stated = new.stated()

    async def make() -> Made:
        id_ = stated.lane_id
        _refuse_declared(desk, id_)
        known = desk.router.stated_limits.get(id_)
        if known is not None:
            if known.rows == stated.rows:
                return Made(id=id_, shown=await _found(desk, id_), is_new=False)
            raise Refused(409, "name_taken", f"limits of {id_!r} are stated already; PATCH changes them", param="rows")
        await desk.router.configure_limits(stated)
        return Made(id=id_, shown=await _found(desk, id_))

    return await desk.create(LIMIT, new, make)


@routes.patch("/limits/{lane_id:name}")
async def update_limits(desk: AdminDesk, lane_id: LaneId, new: LimitsUpdate) -> Response:
    """Change limits that were stated here."""

    async def write() -> None:
        known = _own(desk, lane_id)
        await desk.router.configure_limits(StatedLimits(**{**dict(known), "rows": new.rows}))

    return await desk.change(LIMIT, lane_id, lambda: _found(desk, lane_id), write)


@routes.delete("/limits/{lane_id:name}", status_code=204, response_class=Response)
async def forget_limits(desk: AdminDesk, lane_id: LaneId) -> Response:
    """Take limits that were stated here out of force; what keys' metadata say of the lane holds again."""

    async def remove() -> None:
        _own(desk, lane_id)
        await desk.router.forget_limits(lane_id)

    return await desk.delete(LIMIT, lane_id, lambda: _found(desk, lane_id), remove)


@routes.get("/limits")
async def list_limits(
    desk: ReadDesk, page: Page, kind: str | None = None, everything: bool = False, forecast: bool = False
) -> dict[str, Any]:
    """Every lane that has limits, or is cooling, or whose breaker is not closed; with `everything` the others too.

    `kind`: those of a key, quota_group, provider or client. `forecast`: say, too, when each limit will run out.
    """
    catalogue = desk.router.catalogue
    ids = [*catalogue.lane_ids(), *(lane for terms in catalogue.clients.values() for lane in terms.lanes)]
    wanted = [id_ for id_ in dict.fromkeys(ids) if kind in (None, _KINDS.get(id_[0]))]
    lanes = {lane.id: lane for lane in await _read(desk, wanted)}
    found = [_shown(lanes[id_], desk) if id_ in lanes else _unused(id_, desk) for id_ in wanted]
    paged = page_of("limits", (one for one in found if everything or _tells(one)), page)
    if forecast:
        for one in paged["limits"]:
            if one["id"] in lanes:
                _foretell(one, lanes[one["id"]], desk)
    return paged


@routes.get("/limits/{lane_id:name}")
async def get_limit(desk: ReadDesk, lane_id: LaneId) -> Response:
    """One lane, e.g. `g:org-a:*` or `c:app-1`."""
    return LIMIT.answer(await _found(desk, lane_id))


async def _read(desk: Desk, lane_ids: Sequence[str]) -> Sequence[LaneState]:
    return QuotaEnds(desk.router.catalogue.keys).in_lanes(await desk.router.ledger.lanes(lane_ids))


async def _found(desk: Desk, lane_id: str) -> dict[str, Any]:
    if lane_id in {*desk.router.catalogue.lane_ids()} or desk.router.lane_config(lane_id).limits:
        lanes = await _read(desk, [lane_id])
        return _shown(lanes[0], desk) if lanes else _unused(lane_id, desk)
    raise Refused(404, "not_found", f"no lane {lane_id[:256]!r}")


def _own(desk: Desk, lane_id: str) -> StatedLimits:
    """Limits that can be changed here."""
    _refuse_declared(desk, lane_id)
    known = desk.router.stated_limits.get(lane_id)
    if known is None:
        raise Refused(409, "declared_elsewhere", f"nothing was stated of {lane_id!r} here; POST /limits does")
    return known


def _refuse_declared(desk: Desk, lane_id: str) -> None:
    if desk.router.is_limited_by_file(lane_id):
        raise Refused(
            409, "declared_in_file", f"the limits of {lane_id!r} are in the configuration file; change them there"
        )


def _tells(shown: dict[str, Any]) -> bool:
    return bool(shown["limits"] or shown["blocked_until"] or shown["breaker"] != "closed")


def _shown(lane: LaneState, desk: Desk) -> dict[str, Any]:
    now_us = desk.router.ledger.stamp.now_us
    return {
        **_settings(lane.id, desk), "in_flight": lane.in_flight, "breaker": lane.breaker,
        "blocked_until": _time(lane.blocked_until_us) if lane.blocked_until_us > now_us else None,
        "requests_total": lane.requests_total, "failures_total": lane.failures_total,
        "limits": [show_limit(limit) for limit in lane.limits],
    }  # fmt: skip


def _unused(lane_id: str, desk: Desk) -> dict[str, Any]:
    """A lane that nobody was held in yet."""
    limits = unused_limits(desk.router.lane_config(lane_id))
    return {
        **_settings(lane_id, desk), "in_flight": 0, "breaker": "closed", "blocked_until": None, "requests_total": 0,
        "failures_total": 0, "limits": [show_limit(limit) for limit in limits],
    }  # fmt: skip


def _settings(lane_id: str, desk: Desk) -> dict[str, Any]:
    """What the lane is of, and where its limits are stated: `rows` as they were stated here."""
    kind, _, rest = lane_id.partition(":")
    name, _, pool = rest.partition(":")
    of_file = desk.router.is_limited_by_file(lane_id)
    stated = None if of_file else desk.router.stated_limits.get(lane_id)
    return {
        "id": lane_id, "kind": _KINDS.get(kind, kind), "name": name, "models": pool or None,
        "cell": desk.router.cell_of_lane(lane_id),
        "source": "file" if of_file else "other" if stated is None else "api",
        "rows": None if stated is None else stated.told_rows(stated.rows),
    }  # fmt: skip


def _foretell(shown: dict[str, Any], lane: LaneState, desk: Desk) -> None:
    """Say of each limit when it will be used up at the present rate; null where nothing is known of its rate."""
    for told, limit in zip(shown["limits"], lane.limits, strict=True):
        found = desk.router.quota_awareness_engine.forecast_of(lane.id, limit)
        told["forecast"] = None if found is None else found.model_dump(mode="json")


def show_limit(limit: LimitState) -> dict[str, Any]:
    """A limit in JSON types. Spend is in dollars, everything else is counted."""
    remaining = max(0, limit.capacity - limit.used)
    amounts: dict[str, float] = {"capacity": limit.capacity, "used": limit.used, "remaining": remaining}
    if limit.metric is Metric.SPEND:
        amounts = {name: amount / NANOUSD for name, amount in amounts.items()}
    return {
        "name": limit.name, "counts": limit.metric.value, "kind": limit.kind.value, **amounts,
        "full_again_at": _time(limit.reset_at_us) if limit.reset_at_us else None, "learned": limit.learned,
        "forecast": None,
    }  # fmt: skip


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
