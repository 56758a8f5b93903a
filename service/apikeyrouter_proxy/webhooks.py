"""Webhooks: what an operator wants to be told of, sent signed, tried again, and never to a private address unasked.

Signed as Standard Webhooks says (standardwebhooks.com, read 2026-11): `webhook-id`, `webhook-timestamp`, and in
`webhook-signature` `v1,` and the base64 HMAC-SHA256 of `<id>.<timestamp>.<body>`.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from pydantic import AwareDatetime, Field

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.client import ClientName
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, InvalidRequestError, LedgerUnavailableError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.records import Records
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter_proxy.deliveries import Deliveries, Sent
from apikeyrouter_proxy.outbound import Outbound

__all__ = ["EVENTS", "KIND", "Webhook", "WebhookEvent", "Webhooks", "secret_bytes"]

KIND = "webhook"
WebhookEvent = Literal[
    "budget.threshold", "key.out", "provider.opened", "provider.closed", "ledger.drift", "webhook.test"
]
EVENTS: tuple[WebhookEvent, ...] = ("budget.threshold", "key.out", "provider.opened", "provider.closed", "ledger.drift")
AUDIT_EVERY_SECONDS = 600.0
SECRET_PREFIX = "whsec_"  # noqa: S105 (what secrets begin with)
OUT = frozenset({"exhausted", "invalid", "disabled"})
_log = structlog.get_logger("apikeyrouter")


class Webhook(EdgeModel):
    """Where to send which events. `sealed_secret`: what deliveries are signed with, encrypted like keys."""

    name: ClientName
    url: str
    events: list[WebhookEvent] = Field(min_length=1)
    enabled: bool = True
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    sealed_secret: str = Field(repr=False)

    def public(self) -> dict[str, Any]:
        """What may be shown: everything but the secret, in JSON types."""
        return self.model_dump(mode="json", exclude={"sealed_secret"})


class Webhooks:
    """The webhooks in force in this process, and what they are told of. Of all workers, one sends an event."""

    def __init__(
        self,
        router: ApiKeyRouter,
        store: StateStore,
        records: Records,
        vault: Callable[[], KeyVault],
        outbound: Outbound,
    ) -> None:
        self._router, self._store, self._records, self._vault = router, store, records, vault
        self.outbound = outbound
        self._named: dict[str, Webhook] = {}
        self.deliveries = Deliveries(records, self._send, self._knows)
        self._auditing: asyncio.Task[None] | None = None
        self._subscriptions: list[Any] = []

    @property
    def named(self) -> Mapping[str, Webhook]:
        """Those of the store, by name."""
        return self._named

    async def refresh(self) -> None:
        """Take over the store's."""
        told = await self._store.list_documents(KIND)
        self._named = {name: Webhook.parse(document) for name, document in sorted(told.items())}

    async def put(self, webhook: Webhook) -> None:
        """Add or change one; elsewhere it is in force within a second."""
        await self._store.save_document(KIND, webhook.name, webhook.model_dump(mode="json"))
        self._named = dict(sorted({**self._named, webhook.name: webhook}.items()))

    async def drop(self, name: str) -> None:
        """Forget one."""
        await self._store.delete_document(KIND, name)
        self._named = {other: one for other, one in self._named.items() if other != name}

    def seal(self, name: str, secret: str) -> str:
        """A secret as it is kept. Raises KeyRegistrationError without a master key."""
        return self._vault().encrypt(secret, key_id=f"{KIND}:{name}")

    async def start(self) -> None:
        """Begin to listen."""
        listened = (
            ("budget.threshold", self._budget), ("key.state_changed", self._key), ("circuit.opened", self._opened),
            ("circuit.closed", self._closed),
        )  # fmt: skip
        self._subscriptions = [self._router.subscribe_to_events(name, callback) for name, callback in listened]
        self._auditing = asyncio.get_running_loop().create_task(self._audit(), name="apikeyrouter.webhooks.audit")
        self.deliveries.start()

    async def close(self) -> None:
        """Stop; what was not delivered yet waits in the store."""
        for subscription in self._subscriptions:
            subscription.cancel()
        await end_task(self._auditing)
        await self.deliveries.close()
        await self.outbound.close()

    async def tell(
        self, event: WebhookEvent, identity: str, data: Mapping[str, Any], *, only: str | None = None
    ) -> str:
        """Have an event sent to whoever wants it, unless another worker did; its id. `identity` tells events apart.

        `only`: to that webhook, at somebody's word. Errors: StateStoreError with `only`; without, the event is kept.
        """
        digest = hashlib.blake2b(f"{event}\n{identity}".encode(), digest_size=12).hexdigest()
        id_ = f"evt_{digest}"
        told = {"id": id_, "type": event, "at": datetime.now(UTC).isoformat(), "data": dict(data)}
        for name, webhook in self._named.items():
            if name == only:
                await self.deliveries.put(name, told)
            elif only is None and webhook.enabled and event in webhook.events:
                await self.deliveries.put_or_keep(name, told)
        return id_

    # --- what is listened to -------------------------------------------------------------------------------------

    async def _budget(self, told: Mapping[str, Any]) -> None:
        data = {
            "budget_id": told["scope"], "percent": told["percent"], "limit_usd": told["limit_nanousd"] / 1e9,
            "spent_usd": told["spent_nanousd"] / 1e9, "resets_at": _time(told["resets_at_us"]),
        }  # fmt: skip
        await self.tell("budget.threshold", f"{told['scope']} {told['percent']} {told['resets_at_us']}", data)

    async def _key(self, told: Mapping[str, Any]) -> None:
        if told["to_state"] in OUT and told["from_state"] != told["to_state"]:
            data = {
                "key_id": told["key_id"], "state": told["to_state"], "reason": told["reason"], "actor": told["actor"],
                "until": _time(told["until_us"]),
            }  # fmt: skip
            await self.tell("key.out", f"{told['key_id']} {told['to_state']} {told['at_us']}", data)

    async def _opened(self, told: Mapping[str, Any]) -> None:
        if told["lane"].startswith("p:"):
            data = {"provider_id": told["lane"][2:], "until": _time(told["until_us"])}
            await self.tell("provider.opened", f"{told['lane']} {told['until_us']}", data)

    async def _closed(self, told: Mapping[str, Any]) -> None:
        if told["lane"].startswith("p:"):
            minute = told["at_us"] // 60_000_000
            await self.tell("provider.closed", f"{told['lane']} {minute}", {"provider_id": told["lane"][2:]})

    async def _audit(self) -> None:
        """Now and then, one worker looks whether the books agree with what is held."""
        while True:
            await asyncio.sleep(AUDIT_EVERY_SECONDS)
            with contextlib.suppress(ApiKeyRouterError):
                await self.look_for_drift()

    async def look_for_drift(self) -> None:
        """Tell of counters that differ from what reservations add up to, unless somebody looked just now."""
        wanted = any("ledger.drift" in webhook.events for webhook in self._named.values())
        if not wanted or not await self._records.claim("ledger.audit", seconds=int(AUDIT_EVERY_SECONDS) - 1):
            return
        catalogue = self._router.catalogue
        try:
            drifts = await self._router.ledger.audit(lanes=catalogue.lane_ids(), scopes=list(catalogue.budget_rules()))
        except LedgerUnavailableError:
            return  # too much traffic to tell; the next look may
        if drifts:
            found = [{"where": one.where, "counter": one.counter, "counted": one.counted, "recomputed": one.recomputed}
                     for one in drifts[:100]]  # fmt: skip
            await self.tell("ledger.drift", json.dumps(found), {"count": len(drifts), "drift": found})

    # --- delivery ------------------------------------------------------------------------------------------------

    async def _knows(self, name: str) -> bool:
        """Whether there is such a webhook; another worker may just have made it."""
        if name not in self._named:
            await self.refresh()
        return name in self._named

    async def _send(self, name: str, event: Mapping[str, Any]) -> Sent | None:
        """Post an event, signed as of now. None: the webhook is switched off."""
        webhook, id, body = self._named[name], str(event["id"]), json.dumps(event).encode()
        if not webhook.enabled and event["type"] != "webhook.test":
            return None
        try:
            secret = secret_bytes(self._vault().decrypt(webhook.sealed_secret, key_id=f"{KIND}:{webhook.name}"))
        except ApiKeyRouterError as exc:
            return 0, str(exc)
        at = str(int(time.time()))
        signed = hmac.new(secret, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
        headers = {
            "content-type": "application/json", "user-agent": "apikeyrouter-webhooks", "webhook-id": id,
            "webhook-timestamp": at, "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }  # fmt: skip
        return await self.outbound.post(webhook.url, body, headers)


def secret_bytes(secret: str) -> bytes:
    """The key of the signature: `whsec_` and base64. Raises InvalidRequestError."""
    try:
        made = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequestError("must be whsec_ and base64", field="secret") from exc
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(made) <= 64:
        raise InvalidRequestError("must be whsec_ and 24 to 64 bytes in base64", field="secret")
    return made


def _time(us: int | None) -> str | None:
    return None if not us else datetime.fromtimestamp(us / 1e6, UTC).isoformat()
