"""Webhooks: told once by all workers, signed, tried again, and never sent to a private address unasked."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.security.addresses import is_public
from apikeyrouter_proxy import deliveries
from apikeyrouter_proxy.outbound import Outbound
from tests.servers import Server, default_flavour, running
from tests.service.running import Running, fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ok!").decode()


@dataclass
class Receiver:
    """Somebody's endpoint. The first `failing` deliveries are answered with 500."""

    url: str = ""
    failing: int = 0
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.heard.append(({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        self.failing -= 1
        return web.Response(status=500 if self.failing >= 0 else 204)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was delivered, in order."""
        return [json.loads(body) for _, body in self.heard]


@pytest_asyncio.fixture(loop_scope="package")
async def receiver() -> AsyncIterator[Receiver]:
    made, app = Receiver(), web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@contextlib.asynccontextmanager
async def _service(server: Server, config: dict[str, Any], **environ: str) -> AsyncIterator[Running]:
    async with running_service(server.url, config, environ={"PROXY_PRIVATE_URLS": "true", **environ}) as service:
        yield service


async def _hook(service: Running, receiver: Receiver, **settings: Any) -> None:
    async with service.operator() as operator:
        body = {"name": "pager", "url": receiver.url, "secret": SECRET, **settings}
        made = await operator.post("/api/v1/webhooks", json=body)
        assert made.status_code == 201, made.text


async def _heard(receiver: Receiver, count: int) -> None:
    async def enough() -> bool:
        return len(receiver.heard) >= count

    await wait_until(enough)


async def test_a_delivery_is_signed_and_tried_again_until_it_is_taken(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    receiver.failing = 1
    async with _service(service_valkey, config) as service, service.operator() as operator:
        await _hook(service, receiver)
        event_id = (await operator.post("/api/v1/webhooks/pager/test")).json()["event_id"]
        await _heard(receiver, 2)

        async def noted() -> bool:
            last = (await operator.get("/api/v1/webhooks/pager")).json()["last_delivery"]
            return bool(last and last["delivered"])

        await wait_until(noted)
        last = (await operator.get("/api/v1/webhooks")).json()["webhooks"][0]["last_delivery"]
        everything = (await operator.get("/api/v1/webhooks")).text + (await operator.get("/api/v1/audit")).text
    (first, body), (second, again) = receiver.heard
    assert body == again
    assert first["webhook-id"] == second["webhook-id"] == event_id == json.loads(body)["id"]
    signed = f"{second['webhook-id']}.{second['webhook-timestamp']}.".encode() + again
    expected = hmac.new(b"a secret of thirty-two bytes ok!", signed, hashlib.sha256).digest()
    assert second["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
    assert (last["attempt"], last["status"]) == (2, 204)
    assert SECRET not in everything
    assert "sealed" not in everything


async def test_budgets_and_keys_are_told_of_once_by_two_workers(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    shared = fresh_namespace()
    config["budgets"] = [
        {"name": "all", "scope": "global", "limit_usd": 0.000012, "period": "daily", "enforcement": "soft"}
    ]
    async with (
        _service(service_valkey, config, **shared) as one,
        _service(service_valkey, config, **shared) as other,
        one.http() as caller,
        other.operator() as operator,
    ):
        await _hook(one, receiver)
        await operator.patch("/api/v1/keys/k2", json={"state": "disabled", "reason": "leaked"})
        await _heard(receiver, 1)
        await operator.patch("/api/v1/keys/k2", json={"state": "available"})
        answer = await caller.post("/v1/chat/completions", json={**BODY, "max_tokens": 12})
        assert answer.status_code == 200, answer.text

        async def booked() -> bool:
            return bool((await operator.get("/api/v1/budgets/global:all")).json()["settled_usd"] > 0)

        await wait_until(booked)
        for service in (one, other):
            await service.runtime.router.cost_controller.sample()
        await _heard(receiver, 2)
        await asyncio.sleep(0.2)  # time for what must not come
    told = [(event["type"], event["data"]) for event in receiver.events]
    assert told[0][0] == "key.out"
    assert (told[0][1]["key_id"], told[0][1]["state"], told[0][1]["reason"]) == ("k2", "disabled", "leaked")
    assert [event for event, _ in told[1:]] == ["budget.threshold"]
    assert told[1][1]["budget_id"] == "global:all"
    assert told[1][1]["percent"] in (50, 80, 90, 100)


async def _state(operator: httpx.AsyncClient, state: str) -> list[dict[str, Any]]:
    """The deliveries of the webhook that are in a state, once there is one."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        told = (await operator.get("/api/v1/webhooks/pager/deliveries")).json()["deliveries"]
        found[:] = [one for one in told if one["state"] == state]
        return bool(found)

    await wait_until(there)
    return found


async def test_what_was_not_delivered_survives_a_restart(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    shared, receiver.failing = fresh_namespace(), 1
    async with _service(service_valkey, config, **shared) as service, service.operator() as operator:
        await _hook(service, receiver)
        event_id = (await operator.post("/api/v1/webhooks/pager/test")).json()["event_id"]
        (waiting,) = await _state(operator, "waiting")
        await _heard(receiver, 1)
    async with _service(service_valkey, config, **shared) as service, service.operator() as operator:
        await _heard(receiver, 2)
        (delivered,) = await _state(operator, "delivered")
    assert [event["id"] for event in receiver.events] == [event_id] * 2
    assert (waiting["event_id"], waiting["type"]) == (event_id, "webhook.test")
    assert (delivered["event_id"], delivered["attempts"], delivered["status"]) == (event_id, 2, 204)


async def test_what_happens_while_the_store_is_away_is_told_once_when_it_is_back(
    config: dict[str, Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = fresh_namespace()
    monkeypatch.setattr(deliveries, "AWAY_MAX", 3)
    with running(default_flavour()) as server:
        async with _service(server, config, **shared) as one, _service(server, config, **shared) as other:
            await _hook(one, receiver, events=["provider.opened"])
            await other.runtime.webhooks.refresh()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for number in range(4):
                    for service in (one, other):
                        data = {"provider_id": f"p{number}", "until": None}
                        await service.runtime.webhooks.tell("provider.opened", f"p{number}", data)
                assert receiver.heard == []
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await _heard(receiver, 3)
            await asyncio.sleep(0.3)  # time for what must not come
    assert sorted(event["data"]["provider_id"] for event in receiver.events) == ["p1", "p2", "p3"]


async def test_what_a_dead_worker_had_is_anothers_and_nobody_elses(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    shared = fresh_namespace()
    async with _service(service_valkey, config, **shared) as service:
        await _hook(service, receiver)
        await end_task(service.runtime.webhooks.deliveries._task)
        await service.runtime.webhooks.tell("webhook.test", "x", {}, only="pager")
        (dead,) = await service.runtime.records.take(deliveries.QUEUE, count=1, seconds=0.0)
        async with _service(service_valkey, config, **shared) as other, other.operator() as operator:
            await _heard(receiver, 1)
            (delivered,) = await _state(operator, "delivered")
        late = await service.runtime.records.settle(deliveries.QUEUE, dead, again=None)
    assert (delivered["attempts"], late, len(receiver.heard)) == (1, False, 1)


async def test_two_workers_never_send_the_same_at_once(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    shared = fresh_namespace()
    async with _service(service_valkey, config, **shared) as one, _service(service_valkey, config, **shared) as other:
        await _hook(one, receiver)
        for n in range(20):
            await asyncio.gather(
                *(worker.runtime.webhooks.tell("webhook.test", str(n), {}, only="pager") for worker in (one, other))
            )
        await _heard(receiver, 20)

        async def over() -> bool:
            return not await one.runtime.records.waiting(deliveries.QUEUE, limit=1)

        await wait_until(over)
    assert len({event["id"] for event in receiver.events}) == len(receiver.heard) == 20


async def test_what_nobody_takes_is_given_up_seen_and_sent_again_when_asked(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "GIVE_UP_SECONDS", 0.0)
    receiver.failing = 1
    async with _service(service_valkey, config) as service, service.operator() as operator:
        await _hook(service, receiver)
        event_id = (await operator.post("/api/v1/webhooks/pager/test")).json()["event_id"]
        (given_up,) = await _state(operator, "given_up")
        repeated = await operator.post(f"/api/v1/webhooks/pager/deliveries/{event_id}/repeat")
        unknown = await operator.post("/api/v1/webhooks/pager/deliveries/evt_0/repeat")
        await _state(operator, "delivered")
        paged = (await operator.get("/api/v1/webhooks/pager/deliveries", params={"limit": 1})).json()
        second = {"limit": 1, "cursor": paged["next_cursor"]}
        rest = (await operator.get("/api/v1/webhooks/pager/deliveries", params=second)).json()
    assert (given_up["attempts"], given_up["status"], given_up["next_at"]) == (1, 500, None)
    assert (repeated.status_code, unknown.status_code) == (200, 404)
    assert [event["id"] for event in receiver.events] == [event_id] * 2
    assert [one["state"] for one in (*paged["deliveries"], *rest["deliveries"])] == ["delivered", "given_up"]


async def test_what_waits_for_a_webhook_waits_while_it_is_off_and_goes_with_it(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    async with _service(service_valkey, config) as service, service.operator() as operator:
        await _hook(service, receiver)
        await operator.patch("/api/v1/webhooks/pager", json={"enabled": False})
        event = {"id": "evt_1", "type": "key.out", "at": "now", "data": {}}
        await service.runtime.webhooks.deliveries.put("pager", event)
        (waiting,) = await _state(operator, "waiting")
        await operator.delete("/api/v1/webhooks/pager")
        await service.runtime.webhooks.deliveries.put("pager", {**event, "id": "evt_2"})

        async def gone() -> bool:
            left = await service.runtime.records.waiting(deliveries.QUEUE, limit=10)
            return {one.name for one in left} == {"evt_1:pager"}

        await wait_until(gone)
    assert (waiting["attempts"], receiver.heard) == (0, [])


async def test_tries_are_further_and_further_apart_up_to_an_hour() -> None:
    delays = [deliveries.delay_after(attempts) for attempts in range(1, 40)]
    assert 1 <= delays[0] <= 1.1
    assert all(later > earlier for earlier, later in itertools.pairwise(delays[:6]))
    assert all(3600 <= delay <= 3960 for delay in delays[6:])
    assert sum(delays) > deliveries.GIVE_UP_SECONDS


async def test_an_open_provider_and_books_that_disagree_are_told(
    service_valkey: Server, config: dict[str, Any], receiver: Receiver
) -> None:
    async with _service(service_valkey, config) as service:
        await _hook(service, receiver, events=["provider.opened", "provider.closed", "ledger.drift"])
        router = service.runtime.router
        router.observability.emit("circuit.opened", lane="p:openai", until_us=1_900_000_000_000_000)
        router.observability.emit("circuit.opened", lane="p:openai", until_us=1_900_000_000_000_000)
        router.observability.emit("circuit.opened", lane="k:k1", until_us=1)
        await _heard(receiver, 1)
        router.observability.emit("circuit.closed", lane="p:openai")
        await _heard(receiver, 2)
        await service.runtime.webhooks.look_for_drift()
    assert [event["type"] for event in receiver.events] == ["provider.opened", "provider.closed"]
    assert receiver.events[0]["data"]["provider_id"] == "openai"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x", "http://localhost/x", "http://[::1]/", "http://10.0.0.1/", "http://169.254.169.254/latest",
        "http://192.168.1.1:8080/", "http://[::ffff:10.0.0.1]/", "http://0.0.0.0/", "http://2130706433/", "http://0x7f.1/",
        "http://127.1/", "ftp://example.com/", "http://user:secret@example.com/", "https://", "file:///etc/passwd", "x",
        "http://[fd00::1]/", "http://100.64.0.1/", "http://224.0.0.1/", "http://a.localhost/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://[fe80::1%25eth0]/", "http://[::]/",
    ],
)  # fmt: skip
async def test_a_private_address_is_refused(service: Running, url: str) -> None:
    async with service.operator() as operator:
        answer = await operator.post("/api/v1/webhooks", json={"name": "x", "url": url})
        made = await operator.post("/api/v1/webhooks", json={"name": "y", "url": "https://example.com/hook"})
        changed = await operator.patch("/api/v1/webhooks/y", json={"url": url})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "url")
    assert (made.status_code, changed.status_code) == (201, 400)


async def test_a_name_that_stands_for_a_private_address_is_not_called(receiver: Receiver) -> None:
    port = receiver.url.split(":")[2].split("/")[0]
    guarded, free = Outbound(private=False), Outbound(private=True)
    try:
        status, error = await guarded.post(f"http://ip6-localhost.:{port}/hook", b"{}", {})
        named, _ = await free.post(f"http://localhost:{port}/hook", b"{}", {})
        refused, why = await guarded.post(receiver.url, b"{}", {})
    finally:
        await guarded.close()
        await free.close()
    assert (status, bool(error)) == (0, True)
    assert (refused, "private" in why) == (0, True)
    assert named == 204
    assert len(receiver.heard) == 1


async def test_what_a_name_stands_for_is_looked_up_once_for_the_check_and_the_connection(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name service that says something else each time it is asked (DNS rebinding) gains nothing."""
    port = int(receiver.url.split(":")[2].split("/")[0])
    told = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"], ["64:ff9b::7f00:1"]]
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def name_service(host: str, *rest: Any, **more: Any) -> Any:
        if host != "rebinding.example":
            return real(host, *rest, **more)
        looked_up.append(host)
        addresses = told[len(looked_up) - 1]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (one, port, 0, 0))
            if ":" in one
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", name_service)
    guarded = Outbound(private=False)
    try:
        answers = [await guarded.post(f"http://rebinding.example:{port}/hook", b"{}", {}) for _ in told]
    finally:
        await guarded.close()
    assert [(status, "private" in why) for status, why in answers] == [(0, True)] * len(told)
    assert len(looked_up) == len(told)
    assert receiver.heard == []


def _refused(url: str) -> bool:
    try:
        Outbound(private=False).check(url)
    except InvalidRequestError:
        return True
    return False


async def test_public_addresses_are_public() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")
    assert not is_public("example.com")
    assert not _refused("https://example.com:8443/a?b=c")


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": "x"}, {"name": "x", "url": "https://example.com", "events": []},
        {"name": "x", "url": "https://example.com", "events": ["nothing"]},
        {"name": "x", "url": "https://example.com", "secret": "plain"},
        {"name": "x", "url": "https://example.com", "secret": "whsec_c2hvcnQ="},
    ],
)  # fmt: skip
async def test_a_wrong_webhook_is_refused(service: Running, body: dict[str, Any]) -> None:
    async with service.operator() as operator:
        answer = await operator.post("/api/v1/webhooks", json=body)
        listed = (await operator.get("/api/v1/webhooks")).json()
    assert (answer.status_code, listed["total"]) == (400, 0)


async def test_limits_show_what_is_used_of_them(service_valkey: Server, config: dict[str, Any]) -> None:
    for key in config["keys"]:
        if key["provider"] == "openai":
            key["quota_group"] = "org-a"
    config["limits"] = [{"quota_group": "org-a", "rpd": 100, "kind": "calendar", "concurrency": 9}]
    config["clients"] = [{"name": "app", "token": "a-token-that-is-long", "rpm": 50}]
    async with (
        running_service(service_valkey.url, config) as service,
        service.operator() as operator,
        service.http() as caller,
    ):
        await caller.post("/v1/chat/completions", json=BODY, headers={"x-api-key": "a-token-that-is-long"})
        listed = (await operator.get("/api/v1/limits")).json()["limits"]
        group = (await operator.get("/api/v1/limits/g:org-a:*")).json()
        everything = (await operator.get("/api/v1/limits", params={"everything": True})).json()["total"]
        clients = (await operator.get("/api/v1/limits", params={"kind": "client"})).json()["limits"]
        missing = await operator.get("/api/v1/limits/g:nobody:*")
    assert {one["id"] for one in listed} == {"g:org-a:*", "c:app"}
    assert [(one["name"], one["capacity"], one["used"]) for one in group["limits"]] == [
        ("rpd", 100, 1), ("concurrency", 9, 0),
    ]  # fmt: skip
    assert everything > len(listed)
    assert [one["limits"][0]["remaining"] for one in clients] == [49]
    assert missing.status_code == 404
