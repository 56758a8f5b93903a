"""Webhooks: who is told of which events, and how the last delivery went."""

import base64
import secrets
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field, SecretStr

from apikeyrouter.domain.models.client import NewName
from apikeyrouter.infrastructure.state_store.records import QUEUE_LENGTH_MAX
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.deliveries import JOURNAL, QUEUE
from apikeyrouter_proxy.management.desk import (
    AdminDesk,
    Desk,
    Input,
    Made,
    Page,
    Paging,
    ReadDesk,
    Resource,
    by_name,
    journal_page,
    page_of,
)
from apikeyrouter_proxy.webhooks import EVENTS, SECRET_PREFIX, Webhook, WebhookEvent, secret_bytes

__all__ = ["routes"]

routes = APIRouter()
WEBHOOK = Resource(kind="webhook", counted=frozenset({"last_delivery"}))
Name = Annotated[str, Path(min_length=1, max_length=64)]
EventId = Annotated[str, Path(min_length=1, max_length=64)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Events = Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(EVENTS) + 1)]


class NewWebhook(Input):
    """A webhook to make. `secret`: `whsec_` and base64 of 24 to 64 bytes; absent, one is made and shown this once."""

    name: NewName
    url: Url
    events: Events = Field(default_factory=lambda: list(EVENTS))
    secret: Annotated[SecretStr, Field(max_length=200)] | None = None


class WebhookUpdate(Input):
    """What is to change; the rest stays."""

    url: Url | None = None
    events: Events | None = None
    enabled: bool | None = None


@routes.post("/webhooks", status_code=201)
async def create_webhook(desk: AdminDesk, new: NewWebhook) -> Response:
    """Have events sent to a URL, signed. The answer is the only one that has the secret. The same again: 200."""

    async def make() -> Made:
        hooks = desk.runtime.webhooks
        hooks.outbound.check(new.url)
        await hooks.refresh()
        known = hooks.named.get(new.name)
        if known is not None:
            if (known.url, sorted(known.events)) == (new.url, sorted(new.events)):
                return Made(id=new.name, shown=await _shown(desk, new.name), is_new=False)
            raise Refused(409, "name_taken", f"webhook {new.name!r} exists; PATCH changes it", param="name")
        made = f"{SECRET_PREFIX}{base64.b64encode(secrets.token_bytes(32)).decode()}"
        secret = made if new.secret is None else new.secret.get_secret_value()
        secret_bytes(secret)
        sealed = hooks.seal(new.name, secret)
        await hooks.put(Webhook(name=new.name, url=new.url, events=new.events, sealed_secret=sealed))
        return Made(id=new.name, shown=await _shown(desk, new.name), secret={"secret": secret})

    return await desk.create(WEBHOOK, new, make)


@routes.get("/webhooks")
async def list_webhooks(desk: ReadDesk, page: Page) -> dict[str, Any]:
    """Every webhook, with how its last delivery went. Never their secrets."""
    await desk.runtime.webhooks.refresh()
    shown = [await _with_status(desk, one) for one in desk.runtime.webhooks.named.values()]
    return page_of("webhooks", shown, page, by=by_name)


@routes.get("/webhooks/{name:name}/deliveries")
async def list_deliveries(desk: ReadDesk, name: Name, page: Page) -> dict[str, Any]:
    """What waits to be delivered (on the first page), then what has ended, newest first: delivered or given up."""
    await _found(desk, name)
    waiting = [] if page.after else await desk.records.waiting(QUEUE, limit=QUEUE_LENGTH_MAX)
    found, cursor = await journal_page(desk.records, JOURNAL, page, lambda entry: bool(entry["webhook"] == name))
    shown = [_delivery(one.job, "waiting", one.due_us / 1e6) for one in waiting if one.job["webhook"] == name]
    shown += [_delivery(job, "delivered" if job["delivered"] else "given_up", None) for _, job in found]
    return {"deliveries": shown, "next_cursor": cursor}


@routes.get("/webhooks/{name:name}")
async def get_webhook(desk: ReadDesk, name: Name) -> Response:
    """One webhook."""
    return WEBHOOK.answer(await _shown(desk, name))


@routes.patch("/webhooks/{name:name}")
async def update_webhook(desk: AdminDesk, name: Name, new: WebhookUpdate) -> Response:
    """Change where it goes, what it tells, or switch it off."""

    async def write() -> None:
        news = {field: getattr(new, field) for field in new.model_fields_set if getattr(new, field) is not None}
        if "url" in news:
            desk.runtime.webhooks.outbound.check(news["url"])
        await desk.runtime.webhooks.put(Webhook(**{**dict(await _found(desk, name)), **news}))

    return await desk.change(WEBHOOK, name, lambda: _shown(desk, name), write)


@routes.post("/webhooks/{name:name}/test")
async def test_webhook(desk: AdminDesk, name: Name) -> dict[str, Any]:
    """Send it an event `webhook.test`; how that went is in `last_delivery` of the webhook soon."""
    await _found(desk, name)
    event_id = await desk.runtime.webhooks.tell("webhook.test", secrets.token_hex(8), {"webhook": name}, only=name)
    return {"event_id": event_id}


@routes.post("/webhooks/{name:name}/deliveries/{event_id}/repeat")
async def repeat_delivery(desk: AdminDesk, name: Name, event_id: EventId) -> dict[str, Any]:
    """Send an event that was delivered or given up once more, under its old id."""
    await _found(desk, name)
    same = journal_page(
        desk.records, JOURNAL, Paging(limit=1, cursor=None),
        lambda entry: bool(entry["webhook"] == name and entry["event"]["id"] == event_id),
    )  # fmt: skip
    found, _ = await same
    if not found:
        raise Refused(404, "not_found", f"no delivery of {event_id!r} to {name!r} has ended")
    await desk.runtime.webhooks.deliveries.put(name, found[0][1]["event"], again=f":{secrets.token_hex(4)}")
    await desk.note("webhook", name, "repeated", {"event_id": event_id})
    return {"event_id": event_id}


def _delivery(job: dict[str, Any], state: str, next_at: float | None) -> dict[str, Any]:
    return {
        "event_id": job["event"]["id"], "type": job["event"]["type"], "state": state, "attempts": job["attempts"],
        "status": job.get("status"), "error": job.get("error"), "created_at": _time(job["created_at"]),
        "tried_at": _time(job.get("tried_at")), "next_at": _time(next_at),
    }  # fmt: skip


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


@routes.delete("/webhooks/{name:name}", status_code=204, response_class=Response)
async def delete_webhook(desk: AdminDesk, name: Name) -> Response:
    """Send it nothing any more."""
    return await desk.delete(WEBHOOK, name, lambda: _shown(desk, name), lambda: desk.runtime.webhooks.drop(name))


async def _shown(desk: Desk, name: str) -> dict[str, Any]:
    return await _with_status(desk, await _found(desk, name))


async def _with_status(desk: Desk, webhook: Webhook) -> dict[str, Any]:
    return {**webhook.public(), "last_delivery": await desk.runtime.webhooks.deliveries.status(webhook.name)}


async def _found(desk: Desk, name: str) -> Webhook:
    await desk.runtime.webhooks.refresh()
    webhook = desk.runtime.webhooks.named.get(name)
    if webhook is None:
        raise Refused(404, "not_found", f"no webhook {name!r}")
    return webhook
