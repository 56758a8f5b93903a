"""What all resources share: pages, versions, repeated creations, the audit log; and budgets, policies, suspense."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Candidate, Charge, ReserveRequest
from tests.servers import Server
from tests.service.running import Running, fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
BUDGET: dict[str, Any] = {"scope": "team", "scope_id": "red", "limit_usd": 5, "period": "daily"}
POLICY: dict[str, Any] = {"name": "only one", "scope": "global", "rules": {"allowed_providers": ["anthropic"]}}


async def _pages(client: httpx.AsyncClient, path: str, name: str, limit: int) -> list[list[dict[str, Any]]]:
    pages, cursor = [], None
    while True:
        params = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        told = (await client.get(path, params=params)).json()
        pages.append(told[name])
        cursor = told["next_cursor"]
        if cursor is None:
            return pages


async def test_pages_hold_everything_once(service: Running) -> None:
    async with service.operator() as client:
        for number in range(7):
            await client.post("/api/v1/clients", json={"name": f"client-{number}"})
        pages = await _pages(client, "/api/v1/clients", "clients", 3)
        keys = await _pages(client, "/api/v1/keys", "keys", 2)
        audit = await _pages(client, "/api/v1/audit", "audit", 2)
        wrong = [
            await client.get("/api/v1/clients", params=params)
            for params in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"cursor": "é"}, {"cursor": "x"})
        ]
    assert [[one["name"] for one in page] for page in pages] == [
        ["client-0", "client-1", "client-2"], ["client-3", "client-4", "client-5"], ["client-6"],
    ]  # fmt: skip
    assert [one["id"] for page in keys for one in page] == ["k1", "k2", "a1"]
    assert [one["id"] for page in audit for one in page] == [f"client-{number}" for number in range(6, -1, -1)]
    assert [answer.status_code for answer in wrong] == [400] * 5


async def test_only_one_of_two_who_change_the_same_version_does(service_valkey: Server, config: dict[str, Any]) -> None:
    shared = fresh_namespace()
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
        one.operator() as first,
        other.operator() as second,
    ):
        for path, made, change in (
            ("/api/v1/clients/app", {"name": "app"}, "rpm"),
            ("/api/v1/budgets/team:red:daily", BUDGET, "limit_usd"),
            ("/api/v1/policies/only-one", POLICY, "priority"),
        ):
            created = await first.post(path.rsplit("/", 1)[0], json=made)
            etag = created.headers["etag"]
            assert created.status_code == 201, created.text
            answers = await asyncio.gather(
                *[
                    client.patch(path, json={change: 10 + number}, headers={"if-match": etag})
                    for client in (first, second)
                    for number in range(4)
                ]
            )
            assert sorted(answer.status_code for answer in answers) == [200, *[412] * 7], path
            now = next(answer for answer in answers if answer.status_code == 200)
            read = await second.get(path)
            assert read.headers["etag"] == now.headers["etag"] != etag
            assert read.json()[change] == now.json()[change]
            stale = await second.delete(path, headers={"if-match": etag})
            gone = await second.delete(path, headers={"if-match": read.headers["etag"]})
            assert [stale.status_code, gone.status_code] == [412, 204]

            async def forgotten(where: str = path) -> bool:
                return (await first.get(where)).status_code == 404

            await wait_until(forgotten)


async def test_what_changes_by_use_is_in_no_version(service: Running) -> None:
    async with service.operator() as client, service.http() as caller:
        await client.post("/api/v1/budgets", json={**BUDGET, "scope": "global", "scope_id": None})
        before = [await client.get(path) for path in ("/api/v1/keys/k1", "/api/v1/budgets/global:daily")]
        for _ in range(4):
            assert (await caller.post("/v1/chat/completions", json=BODY)).status_code == 200

        async def spent() -> bool:
            return bool((await client.get("/api/v1/budgets/global:daily")).json()["settled_usd"] > 0)

        await wait_until(spent)
        after = [await client.get(path) for path in ("/api/v1/keys/k1", "/api/v1/budgets/global:daily")]
    assert [one.headers["etag"] for one in before] == [one.headers["etag"] for one in after]


async def test_a_creation_with_one_idempotency_key_happens_once(service_valkey: Server, config: dict[str, Any]) -> None:
    shared, told = fresh_namespace(), {"idempotency-key": "an-attempt"}
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
        one.operator() as first,
        other.operator() as second,
    ):
        answers = await asyncio.gather(
            *[client.post("/api/v1/clients", json={"name": "app"}, headers=told) for client in (first, second) * 3]
        )
        conflict = await second.post("/api/v1/clients", json={"name": "other"}, headers=told)
        wrong = await second.post("/api/v1/clients", json={"name": "x"}, headers={"idempotency-key": "k" * 500})
        audit = (await first.get("/api/v1/audit")).json()["audit"]
    assert {answer.status_code for answer in answers} == {201}
    assert sum("token" in answer.json() for answer in answers) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 5
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert wrong.status_code == 400
    assert [(entry["action"], entry["id"]) for entry in audit] == [("client.created", "app")]


async def test_the_audit_log_tells_who_changed_what(service: Running) -> None:
    async with service.operator() as client:
        key = (await client.post("/api/v1/admin-keys", json={"name": "ann", "role": "admin"})).json()["key"]
        headers = {"X-API-Key": key}
        await client.post("/api/v1/budgets", json=BUDGET, headers=headers)
        await client.patch("/api/v1/budgets/team:red:daily", json={"limit_usd": 7}, headers=headers)
        await client.patch("/api/v1/keys/k1", json={"state": "disabled", "reason": "leak"}, headers=headers)
        await client.delete("/api/v1/budgets/team:red:daily")
        await client.patch("/api/v1/budgets/team:blue:daily", json={"limit_usd": 7})
        everything = (await client.get("/api/v1/audit")).json()["audit"]
        anns = (await client.get("/api/v1/audit", params={"actor": "ann", "kind": "budget"})).json()["audit"]
        moved = (await client.get("/api/v1/keys/k1/transitions")).json()["transitions"]
    assert [(entry["actor"], entry["action"]) for entry in everything] == [
        ("first", "budget.deleted"), ("ann", "key.updated"), ("ann", "budget.updated"), ("ann", "budget.created"),
        ("first", "admin_key.created"),
    ]  # fmt: skip
    assert anns[0]["details"] == {"changed": {"limit_usd": [5.0, 7.0]}}
    assert len(anns) == 2
    assert (moved[0]["actor"], moved[0]["to_state"]) == ("ann", "disabled")
    assert key not in json.dumps(everything)


async def test_a_budget_made_here_holds_and_shows_its_books(service_valkey: Server, config: dict[str, Any]) -> None:
    config["budgets"] = [{"name": "filed", "scope": "global", "limit_usd": 100, "period": "daily"}]
    async with (
        running_service(service_valkey.url, config) as service,
        service.operator() as client,
        service.http() as caller,
    ):
        made = await client.post("/api/v1/budgets", json={**BUDGET, "limit_usd": 0.000000001})
        denied = await caller.post("/v1/chat/completions", json=BODY, headers={"x-akr-team": "red"})
        await client.patch("/api/v1/budgets/team:red:daily", json={"limit_usd": 10})
        served = await caller.post("/v1/chat/completions", json=BODY, headers={"x-akr-team": "red"})

        async def booked() -> bool:
            return bool((await client.get("/api/v1/budgets/team:red:daily")).json()["settled_usd"] > 0)

        await wait_until(booked)
        listed = (await client.get("/api/v1/budgets")).json()
        again = await client.post("/api/v1/budgets", json={**BUDGET, "limit_usd": 10})
        foreign = [
            await client.patch("/api/v1/budgets/global:filed", json={"limit_usd": 1}),
            await client.delete("/api/v1/budgets/global:filed"),
        ]
    assert (made.status_code, made.json()["id"], made.json()["source"]) == (201, "team:red:daily", "code")
    assert (denied.status_code, served.status_code) == (429, 200)
    assert [one["id"] for one in listed["budgets"]] == ["global:filed", "team:red:daily"]
    assert again.status_code == 200
    assert [answer.status_code for answer in foreign] == [409, 409]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**BUDGET, "limit_usd": 0},
        {**BUDGET, "limit_usd": "5"},
        {**BUDGET, "limit_usd": 1e300},
        {**BUDGET, "scope": "galaxy"},
        {**BUDGET, "scope": "global"},
        {**BUDGET, "scope_id": None},
        {**BUDGET, "timezone": "Mars/Base"},
        {**BUDGET, "period": "yearly"},
        {**BUDGET, "unpriced": "flat"},
        {**BUDGET, "name": "a:b"},
    ],
)
async def test_a_wrong_budget_is_refused(service: Running, body: dict[str, Any]) -> None:
    async with service.operator() as client:
        answer = await client.post("/api/v1/budgets", json=body)
        listed = (await client.get("/api/v1/budgets")).json()
    assert answer.status_code == 400, answer.text
    assert listed["total"] == 0


async def test_a_policy_is_checked_tried_and_put_into_force(service: Running) -> None:
    async with service.operator() as client, service.http() as caller:
        assert (await caller.post("/v1/chat/completions", json=BODY)).status_code == 200
        sound = (await client.post("/api/v1/policies/validate", json=POLICY)).json()
        unsound = (await client.post("/api/v1/policies/validate", json={"name": "x", "rules": {"nonsense": 1}})).json()
        trial = await client.post("/api/v1/policies/dry-run", json={"policy": POLICY, "context": {"model": "gpt-4o"}})
        still = (await caller.post("/v1/chat/completions", json=BODY)).status_code
        made = await client.post("/policies", json=POLICY)
        refused = (await caller.post("/v1/chat/completions", json=BODY)).status_code
        again = await client.post("/api/v1/policies", json=POLICY)
        other = await client.post("/api/v1/policies", json={**POLICY, "rules": {"denied_providers": ["openai"]}})
        off = await client.patch("/api/v1/policies/only-one", json={"enabled": False})
        served = (await caller.post("/v1/chat/completions", json=BODY)).status_code
        wrong = await client.patch("/api/v1/policies/only-one", json={"rules": {"nonsense": 1}})
        bad = await client.post("/api/v1/policies", json={"name": "x", "rules": {"nonsense": 1}})
    assert (sound["valid"], unsound["valid"]) == (True, False)
    assert (trial.json()["keys_before"], trial.json()["keys_after"]) == (["k1", "k2"], [])
    assert (still, refused, served) == (200, 403, 200)
    assert [one.status_code for one in (made, again, other, off, wrong, bad)] == [201, 200, 409, 200, 400, 400]
    assert (made.json()["id"], made.json()["source"]) == ("only-one", "api")


async def test_decisions_of_every_worker_can_be_asked_for(service_valkey: Server, config: dict[str, Any]) -> None:
    shared = fresh_namespace()
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
        one.http() as caller,
        other.operator() as client,
    ):
        for number in range(5):
            await caller.post("/v1/chat/completions", json=BODY, headers={"x-request-id": f"asked-{number}"})

        async def known() -> bool:
            return bool((await client.get("/api/v1/decisions")).json()["total"] == 5)

        await wait_until(known)
        pages = await _pages(client, "/api/v1/decisions", "decisions", 2)
        single = (await client.get("/api/v1/decisions/asked-2")).json()
        missing = await client.get("/api/v1/decisions/never-asked")
    assert [one["request_id"] for page in pages for one in page] == [f"asked-{number}" for number in range(4, -1, -1)]
    assert single["selected_key_id"] in single["text"]
    assert single["candidates"]
    assert missing.status_code == 404


async def _suspend(service: Running) -> str:
    """A reservation whose worker died: its lease has ended."""
    rid, ledger = new_rid(), service.runtime.router.ledger
    charge = Charge(input_tokens=10, output_tokens=20, expected_nanousd=1000, bound_nanousd=2000)
    candidate = Candidate(lanes=("k:k1",), charge=charge)
    await ledger.reserve(ReserveRequest(rid=rid, candidates=(candidate,), scopes=("team:red:daily",), lease_us=1000))

    async def suspended() -> bool:
        await ledger.sweep()
        return any(one.rid == rid for one in await ledger.reservations(suspended=True))

    await wait_until(suspended)
    return rid.hex()


async def test_suspense_is_resolved_by_an_operators_word(service: Running) -> None:
    async with service.operator() as client:
        await client.post("/api/v1/budgets", json=BUDGET)
        spent, kept, free = [await _suspend(service) for _ in range(3)]
        listed = (await client.get("/api/v1/suspense")).json()
        before = (await client.get("/api/v1/budgets/team:red:daily")).json()
        path = "/api/v1/suspense/{}/resolve"
        answers = [
            await client.post(path.format(spent), json={"action": "charge", "cost_usd": 0.0000015}),
            await client.post(path.format(kept), json={"action": "charge"}),
            await client.post(path.format(free), json={"action": "refund"}),
            await client.post(path.format(free), json={"action": "refund"}),
            await client.post(path.format(free), json={"action": "forget"}),
            await client.post(path.format("zz"), json={"action": "refund"}),
        ]
        after = (await client.get("/api/v1/budgets/team:red:daily")).json()
        drift = (await client.get("/api/v1/audit/ledger")).json()["drift"]
        audit = (await client.get("/api/v1/audit", params={"kind": "suspense"})).json()["audit"]
    assert {one["id"] for one in listed["suspense"]} == {spent, kept, free}
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 400, 400]
    assert before["suspense_usd"] == pytest.approx(0.000006)
    assert (after["suspense_usd"], after["settled_usd"]) == (0, pytest.approx(0.0000035))
    assert drift == []
    assert len(audit) == 3


async def test_open_reservations_are_listed(service: Running) -> None:
    async with service.operator() as client:
        ledger, rid = service.runtime.router.ledger, new_rid()
        candidate = Candidate(lanes=("k:k1",), charge=Charge(input_tokens=1))
        await ledger.reserve(ReserveRequest(rid=rid, candidates=(candidate,)))
        listed = (await client.get("/api/v1/reservations")).json()["reservations"]
        await ledger.release(rid, sent=False)
        after = (await client.get("/api/v1/reservations")).json()["total"]
    assert [(one["id"], one["lanes"], one["state"]) for one in listed] == [(rid.hex(), ["k:k1"], "open")]
    assert after == 0


async def test_a_reload_reaches_every_worker_that_has_the_file(
    service_valkey: Server, config: dict[str, Any], tmp_path: Path
) -> None:
    path, secret = tmp_path / "config.yaml", tmp_path / "token"
    secret.write_text("a-token-of-a-secret-file")
    path.write_text(yaml.safe_dump(config))
    shared = {**fresh_namespace(), "APIKEYROUTER_CONFIG": str(path)}
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
        one.operator() as operator,
        other.http() as caller,
    ):

        async def status(token: str) -> int:
            headers = {"authorization": f"Bearer {token}"}
            return (await caller.post("/v1/chat/completions", json=BODY, headers=headers)).status_code

        assert await status("-") == 200
        config["clients"] = [{"name": "app", "token": f"file:{secret}"}]
        path.write_text(yaml.safe_dump(config))
        assert (await operator.post("/api/v1/config/reload")).status_code == 200

        async def refused() -> bool:
            return await status("-") == 401

        await wait_until(refused)
        assert await status("a-token-of-a-secret-file") == 200
        secret.write_text("the-token-after-that-one")

        async def renewed() -> bool:
            return await status("the-token-after-that-one") == 200

        await wait_until(renewed)
        config["keys"][0]["weight"] = 7
        config["routing"] = {"attempts_max": 2}
        path.write_text(yaml.safe_dump(config))
        await asyncio.gather(one.runtime.reload_quietly(), other.runtime.reload_quietly())
        audit = (await operator.get("/api/v1/audit", params={"kind": "config"})).json()["audit"]
        assert [(told["actor"], told["role"], told["details"]["changes"]) for told in audit] == [
            ("SIGHUP", "process", {"keys": {"changed": ["k1"]}, "routing": {"changed": ["attempts_max"]}}),
            ("a secret's file", "process", {"clients": {"changed": ["app"]}}),
            ("first", "admin", {"clients": {"added": ["app"]}}),
        ]
        path.write_text("clients: 7")
        assert (await operator.post("/api/v1/config/reload")).status_code == 400
        assert await status("the-token-after-that-one") == 200


async def test_metadata_of_a_key_is_changed_by_an_admin_alone(service: Running) -> None:
    async with service.operator() as client:
        key = (await client.post("/api/v1/admin-keys", json={"name": "bob", "role": "operate"})).json()["key"]
        body = {"metadata": {"models": ["gpt-4o"], "weight": 3}}
        refused = await client.patch("/api/v1/keys/k1", json=body, headers={"X-API-Key": key})
        changed = await client.patch("/api/v1/keys/k1", json=body)
        wrong = await client.patch("/api/v1/keys/k1", json={"metadata": {"weight": -3}})
        now = (await client.get("/api/v1/keys/k1")).json()
    assert (refused.status_code, changed.status_code, wrong.status_code) == (403, 200, 400)
    assert (now["metadata"]["weight"], now["metadata"]["models"]) == (3, ["gpt-4o"])
