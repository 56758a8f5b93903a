"""What is done on the pages, checked by its effect through the API."""

from typing import Any

import pytest

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Candidate, Charge, ReserveRequest
from tests.dashboard.driving import Seat
from tests.service.running import Running, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


async def _get(service: Running, path: str, **params: Any) -> Any:
    async with service.operator() as client:
        return (await client.get(f"/api/v1{path}", params=params)).json()


async def _import(operator: Seat, lines: str, button: str) -> None:
    await operator.page.get_by_label("Keys to import").fill(lines)
    await operator.page.get_by_role("button", name=button, exact=True).click()


async def test_keys_are_checked_and_imported_with_a_result_a_row(operator: Seat, service: Running) -> None:
    await operator.go("/manage")
    rows = ("key_material,provider_id,quota_group,models", "sk-sim-imported,openai,org-i,gpt-4o-mini")
    lines = "\n".join((*rows, "sk-x,nobody,,", ",openai,,"))
    before = (await _get(service, "/keys"))["total"]
    await _import(operator, lines, "Check")
    await operator.reads("✓ would be registered")
    assert (await _get(service, "/keys"))["total"] == before
    await operator.page.get_by_role("button", name="Import", exact=True).click()  # what was checked is still there
    await operator.page.wait_for_selector("td:has-text('✓ registered')")
    assert await operator.page.locator("td:has-text('✕ refused')").count() == 2
    assert await operator.page.locator("[aria-label='Keys to import']").input_value() == ""
    keys = (await _get(service, "/keys"))["keys"]
    made = next(key for key in keys if key["metadata"].get("quota_group") == "org-i")
    assert made["metadata"]["models"] == ["gpt-4o-mini"]
    await operator.page.wait_for_selector(f"td:has-text('{made['id']}')")
    await _import(operator, lines, "Import")
    await operator.page.wait_for_selector("td:has-text('= there already')")
    async with operator.page.expect_download() as saved:
        await operator.page.get_by_role("button", name="Save the results").click()
    saved_rows = (await (await saved.value).path()).read_text().splitlines()
    assert saved_rows[0] == "line,outcome,id,reason"
    assert saved_rows[1] == f"2,unchanged,{made['id']},"
    async with service.operator() as client:
        await client.delete(f"/api/v1/keys/{made['id']}")


async def test_a_file_of_keys_is_imported_and_never_sent_back(operator: Seat, service: Running) -> None:
    received: list[str] = []
    listen = operator.page.on
    listen("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(str(frame))))
    await operator.go("/manage")
    file = {"name": "keys.txt", "mimeType": "text/plain", "buffer": b"sk-sim-of-a-file\n"}
    async with operator.page.expect_response(lambda answer: "/upload" in answer.url):
        await operator.page.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    await operator.page.get_by_role("button", name="Import", exact=True).click()
    await operator.page.wait_for_selector("td:has-text('✓ registered')")
    made = next(one for one in (await _get(service, "/audit", limit=5))["audit"] if one["action"] == "key.imported")
    assert made["details"]["created"] == [await operator.page.locator("td:has-text('key_')").first.inner_text()]
    assert received
    assert "sk-sim-of-a-file" not in "".join(received) + await operator.page.content()
    async with service.operator() as client:
        await client.delete(f"/api/v1/keys/{made['details']['created'][0]}")


async def test_a_client_is_made_switched_off_and_deleted(operator: Seat, service: Running) -> None:
    await operator.go("/manage")
    await operator.page.get_by_role("button", name="New client …").click()
    dialog = operator.page.locator(".q-dialog").last
    await dialog.get_by_label("Name", exact=True).fill("app-9")
    await dialog.get_by_label("Requests a minute", exact=True).fill("60")
    await operator.press("Save")
    await operator.reads("It is shown this once")
    token = await operator.page.locator(".secret input").input_value()
    assert token.strip() != ""
    assert (await _get(service, "/clients/app-9"))["rpm"] == 60
    await operator.press("I have it")
    await operator.act("client-off", id="app-9")
    await operator.page.wait_for_selector('[data-act="client-on"][data-id="app-9"]')
    assert (await _get(service, "/clients/app-9"))["enabled"] is False
    await operator.act("client-change", id="app-9")
    dialog = operator.page.locator(".q-dialog").last
    await dialog.get_by_label("Requests a minute", exact=True).fill("")
    await dialog.get_by_label("Models", exact=True).fill("gpt-4o-mini, fast")
    await operator.press("Save")
    await operator.reads("app-9: changed")
    changed = await _get(service, "/clients/app-9")
    assert (changed["rpm"], changed["models"], changed["enabled"]) == (None, ["gpt-4o-mini", "fast"], False)
    await operator.act("client-rotate", id="app-9")
    await operator.press("Rotate")
    await operator.page.wait_for_selector(".secret input")
    assert await operator.page.locator(".secret input").input_value() not in ("", token)
    await operator.press("I have it")
    await operator.act("client-delete", id="app-9")
    await operator.page.locator(".q-dialog").last.get_by_label("Type app-9 to go on").fill("app-9")
    await operator.press("Delete")
    await operator.reads("app-9 is deleted")
    assert (await _get(service, "/clients"))["total"] == 0


async def test_a_budget_is_made_and_changed(operator: Seat, service: Running) -> None:
    await operator.go("/manage")
    await operator.page.get_by_role("button", name="New budget …").click()
    dialog = operator.page.locator(".q-dialog").last
    await dialog.get_by_label("Name", exact=True).fill("spare")
    await dialog.get_by_label("Limit, in dollars", exact=True).fill("7.5")
    await operator.press("Save")
    await operator.page.wait_for_selector('[data-act="budget-limit"][data-id="global:spare"]')
    assert (await _get(service, "/budgets/global:spare"))["limit_usd"] == 7.5
    await operator.act("budget-limit", id="global:spare")
    await operator.page.locator(".q-dialog").last.get_by_label("Limit, in dollars", exact=True).fill("9")
    await operator.press("Save")
    await operator.reads("global:spare: changed")
    assert (await _get(service, "/budgets/global:spare"))["limit_usd"] == 9


async def test_a_policy_is_tried_out_put_in_force_and_switched_off(operator: Seat, service: Running) -> None:
    await operator.go("/manage")
    await operator.page.get_by_role("button", name="New policy …").click()
    editor = operator.page.get_by_label("The policy as JSON")
    await editor.fill('{"name": "no west", "rules": {"denied_providers": ["anthropic"]}, "enforcement": "shadow"}')
    await operator.press("Validate and dry run")
    await operator.reads("✓ sound")
    assert (await _get(service, "/policies"))["total"] == 0
    await operator.press("Put in force")
    await operator.page.wait_for_selector('[data-act="policy-off"]')
    policy = (await _get(service, "/policies"))["policies"][0]
    assert (policy["enforcement"], policy["enabled"]) == ("shadow", True)
    await operator.act("policy-off", id=policy["id"])
    await operator.page.wait_for_selector('[data-act="policy-on"]')
    assert (await _get(service, f"/policies/{policy['id']}"))["enabled"] is False
    audit = (await _get(service, "/audit", limit=1))["audit"][0]
    assert (audit["action"], audit["actor"]) == ("policy.updated", "first")


async def _suspend(service: Running) -> str:
    """Something whose end is never told, in suspense; its id."""
    rid = new_rid()
    charge = Charge(input_tokens=10, output_tokens=20, expected_nanousd=1000, bound_nanousd=2000)
    held = Candidate(lanes=("k:north-1",), charge=charge)
    ledger = service.runtime.router.ledger
    await ledger.reserve(ReserveRequest(rid=rid, candidates=(held,), scopes=("global:daily",), lease_us=1000))

    async def suspended() -> bool:
        await ledger.sweep()
        return bool((await _get(service, "/suspense"))["total"])

    await wait_until(suspended)
    return rid.hex()


async def test_what_is_in_suspense_is_seen_as_reclaimed_and_refunded(operator: Seat, service: Running) -> None:
    rid = await _suspend(service)
    await operator.go("/flight")
    await operator.page.wait_for_selector(f'tr:has([title="reservation {rid}"]):has-text("north-1")')
    await operator.go("/money")
    await operator.act("refund", id=rid)
    await operator.press("Refund")
    await operator.reads("nothing is in suspense")
    assert (await _get(service, "/suspense"))["total"] == 0


async def test_what_is_in_suspense_is_charged_with_another_amount(operator: Seat, service: Running) -> None:
    rid = await _suspend(service)
    before = (await _get(service, "/budgets/global:daily"))["settled_usd"]
    await operator.go("/money")
    await operator.act("charge", id=rid)
    await operator.page.get_by_label("What it did cost, in dollars").fill("0.25")
    await operator.press("Charge")
    await operator.reads("nothing is in suspense")
    assert (await _get(service, "/budgets/global:daily"))["settled_usd"] == pytest.approx(before + 0.25)


async def test_a_request_is_found_explained_and_tried_out(operator: Seat, service: Running) -> None:
    async with service.http(headers={"x-request-id": "asked-by-a-test"}) as caller:
        assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def known() -> bool:
        found = (await _get(service, "/decisions"))["decisions"]
        return any(one["request_id"] == "asked-by-a-test" for one in found)

    await wait_until(known)
    await operator.go("/decisions")
    await operator.page.get_by_label("Find").fill("asked-by")
    await operator.page.wait_for_function("document.querySelectorAll('main [data-act=explain]').length === 1")
    await operator.act("explain", id="asked-by-a-test")
    await operator.page.wait_for_selector(".q-dialog .badge.is-chosen")
    told = await _get(service, "/decisions/asked-by-a-test")
    dialog = await operator.page.locator(".q-dialog").last.inner_text()
    assert told["selected_key_id"] in dialog
    assert told["text"].splitlines()[0] in dialog
    await operator.page.keyboard.press("Escape")
    requests = (await _get(service, "/usage"))["sum"]["requests"]
    await operator.page.get_by_role("button", name="Try it").click()
    await operator.reads("It would go to north-")
    assert (await _get(service, "/usage"))["sum"]["requests"] == requests


async def test_refused_requests_are_picked_out(operator: Seat, service: Running) -> None:
    async with service.http(headers={"x-request-id": "too-large-for-anybody"}) as caller:
        assert (await caller.post("/v1/chat/completions", json={**CHAT, "max_tokens": 200_000_000})).status_code >= 400
        assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200
    await operator.go("/decisions")
    await operator.page.get_by_role("button", name="refused", exact=True).click()
    await operator.page.wait_for_selector('[data-act="explain"][data-id="too-large-for-anybody"]')
    rows = operator.page.locator("#main table tbody tr")
    assert await rows.count() == await rows.filter(has_text="✕ refused").count()


async def test_the_list_of_decisions_stays_still_while_it_is_read(operator: Seat, service: Running) -> None:
    await operator.go("/decisions")
    first = await operator.page.locator("#main table tbody tr").count()
    async with service.http() as caller:
        assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200
    await operator.page.wait_for_selector('[data-act="renew"]')
    assert await operator.page.locator("#main table tbody tr").count() == first
    await operator.act("renew")
    await operator.reads("live: nothing new")
    assert await operator.page.locator("#main table tbody tr").count() == first + 1


async def test_a_held_reservation_is_seen_in_flight(operator: Seat, service: Running) -> None:
    rid = new_rid()
    held = Candidate(lanes=("k:north-1", "g:north:*"), charge=Charge(input_tokens=10, output_tokens=20))
    ledger = service.runtime.router.ledger
    await ledger.reserve(ReserveRequest(rid=rid, candidates=(held,), lease_us=60_000_000))
    await operator.go("/flight")
    seen = f'tr:has([title="reservation {rid.hex()}"])'
    await operator.page.wait_for_selector(seen)
    row = operator.page.locator(seen)
    assert "north-1" in await row.inner_text()
    assert "30" in (await row.locator("td.n").first.inner_text())
    await ledger.cancel(rid)
    await operator.page.wait_for_selector(seen, state="detached")


async def test_the_audit_log_tells_who_changed_what(operator: Seat, service: Running) -> None:
    body = {"name": "audited", "scope": "team", "scope_id": "blue", "limit_usd": 3, "period": "daily"}
    async with service.operator() as client:
        ann = (await client.post("/api/v1/admin-keys", json={"name": "ann", "role": "admin"})).json()["key"]
    async with service.http(headers={"X-API-Key": ann}) as client:
        id_ = (await client.post("/api/v1/budgets", json=body)).json()["id"]
        await client.patch(f"/api/v1/budgets/{id_}", json={"limit_usd": 4})
    await operator.go("/manage")
    row = operator.page.locator(f"tr:has-text('budget.updated'):has-text('{id_}')")
    assert await row.locator("td").all_inner_texts() == [
        (await row.locator("td").first.inner_text()), "ann (admin)", "budget.updated", id_, "limit_usd: 3.0 → 4.0",
    ]  # fmt: skip
    assert await row.locator("time[title$='UTC']").count() == 1
    async with service.operator() as client:
        await client.delete(f"/api/v1/budgets/{id_}")
        await client.delete("/api/v1/admin-keys/ann")


async def test_a_range_holds_for_every_chart_on_every_page(operator: Seat, service: Running) -> None:
    async with service.http() as caller:
        assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def counted() -> bool:
        return bool((await _get(service, "/usage", by="day"))["sum"]["served"])

    await wait_until(counted)
    await operator.go("/money")
    await operator.page.get_by_role("button", name="30 days").click()
    days = """() => [...document.querySelectorAll('.nicegui-echart')].map(
        (element) => getElement(Number(element.id.slice(1))).chart.getOption().xAxis[0].data.length)"""
    await operator.page.wait_for_function(f"({days})().join() === '30,30'")
    await operator.page.get_by_text("The same as tables").click()
    await operator.page.wait_for_selector("td[data-label=day]")
    await operator.go("/fleet")
    await operator.page.wait_for_function(f"({days})().join() === '30'")
    assert await operator.page.get_by_role("button", name="30 days").get_attribute("aria-pressed") == "true"
    await operator.page.get_by_role("button", name="now", exact=True).click()
    await operator.page.wait_for_function(f"({days})().join() !== '30'")
