"""What is held right now, and what is in suspense: money of requests whose end was never told."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from msgspec import structs

from apikeyrouter.domain.components.reservation_ids import process_of
from apikeyrouter.domain.models.accounting import AMOUNT_MAX, Metric, Outcome, Result, Settlement
from apikeyrouter.domain.models.cost_estimate import nanousd
from apikeyrouter.infrastructure.ledger.records import ReservationRecord
from apikeyrouter.serving.open_calls import OpenCall
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.budgets import Dollars
from apikeyrouter_proxy.management.desk import Input, OperateDesk, Page, ReadDesk, page_of

__all__ = ["routes"]

routes = APIRouter()
NANOUSD = 1_000_000_000
Rid = Annotated[str, Path(pattern="^[0-9a-f]{1,64}$")]


class Resolution(Input):
    """What becomes of suspended money. `charge`: it was spent, `cost_usd` (default: what is held); `refund`: it was
    not."""

    action: Literal["charge", "refund"]
    cost_usd: Dollars | None = None


@routes.get("/reservations")
async def list_reservations(desk: ReadDesk, page: Page) -> dict[str, Any]:
    """Every open reservation of every worker, a moment's view. `call`: what it is held for; null for one of another
    worker that is young still."""
    found, calls = await desk.router.ledger.reservations(), await desk.runtime.fleet.open_calls()
    return page_of("reservations", (_open(one, calls.get(one.rid.hex())) for one in found), page)


@routes.get("/suspense")
async def list_suspense(desk: ReadDesk, page: Page) -> dict[str, Any]:
    """Every reservation whose lease ended without a word, with what is held for it still."""
    found = await desk.router.ledger.reservations(suspended=True)
    paged = page_of("suspense", map(_shown, found), page)
    return {**paged, "total_usd": sum(_held(one) for one in found) / NANOUSD}


@routes.post("/suspense/{reservation_id}/resolve")
async def resolve_suspense(desk: OperateDesk, reservation_id: Rid, resolution: Resolution) -> Response:
    """Say what became of it. Its budgets book that, in the periods that were charged; its limits stay as they are.

    404: it is not in suspense, e.g. because the worker woke up and settled it.
    """
    if resolution.action == "refund" and resolution.cost_usd is not None:
        raise Refused(400, "invalid_request", "cost_usd: goes with action charge", param="cost_usd")
    async with desk.turn():
        found = await desk.router.ledger.reservations(suspended=True)
        record = next((one for one in found if one.rid.hex() == reservation_id), None)
        if record is None:
            raise Refused(404, "not_found", f"no reservation {reservation_id} in suspense")
        cost = _held(record) if resolution.cost_usd is None else nanousd(resolution.cost_usd)
        cost = 0 if resolution.action == "refund" else min(cost, AMOUNT_MAX)
        incoming, outgoing = _tokens(record)
        ended = await desk.router.ledger.settle(
            Settlement(
                rid=record.rid, input_tokens=incoming, output_tokens=outgoing, cost_nanousd=cost,
                outcome=Outcome.NEUTRAL, estimated=True,
            )
        )  # fmt: skip
        if ended.result is not Result.OK:
            raise Refused(409, "resolved_meanwhile", f"reservation {reservation_id} was ended by somebody else")
        told = {"action": resolution.action, "cost_usd": cost / NANOUSD}
        await desk.note("suspense", reservation_id, "resolved", told)
    return JSONResponse({"id": reservation_id, **told})


def _open(record: ReservationRecord, call: OpenCall | None) -> dict[str, Any]:
    told = None if call is None else structs.asdict(call)
    if told is not None:
        del told["rid"]
    return {**_shown(record), "call": told}


def _shown(record: ReservationRecord) -> dict[str, Any]:
    return {
        "id": record.rid.hex(), "worker": process_of(record.rid), "state": record.state.name.lower(),
        "created_at": _time(record.created_us),
        "deadline": _time(record.deadline_us), "lanes": list(record.lanes), "held_usd": _held(record) / NANOUSD,
        "scopes": [
            {"id": scope, "held_usd": held / NANOUSD, "due_at": _time(due) if due else None}
            for scope, held, _, due, _ in record.scopes
        ],
        "charges": [{"lane": lane, "limit": limit, "amount": amount} for lane, limit, amount in record.charges],
    }  # fmt: skip


def _held(record: ReservationRecord) -> int:
    """The largest amount that one budget holds for it, in nano-dollars."""
    return max((held for _, held, _, _, _ in record.scopes), default=0)


def _tokens(record: ReservationRecord) -> tuple[int, int]:
    """Input and output tokens as the lanes counted them at arrival, so that they stay as they are."""

    def most(counts: Callable[[str], bool]) -> int:
        return max((amount for _, name, amount in record.charges if counts(name)), default=0)

    outgoing = most(lambda name: name.startswith(("otp", Metric.OUTPUT_TOKENS)))
    incoming = most(lambda name: name.startswith(("itp", Metric.INPUT_TOKENS)))
    both = most(lambda name: name.startswith(("tp", f"{Metric.TOKENS}_")))
    return max(incoming, both - outgoing), outgoing


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
