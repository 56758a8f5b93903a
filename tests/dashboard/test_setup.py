"""Providers, limits, admin keys and webhooks through their forms, checked through the API; and the deployment."""

from typing import Any

import pytest

from tests.dashboard.driving import Seat
from tests.service.running import Running, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def _get(service: Running, path: str, **params: Any) -> Any:
    async with service.operator() as client:
        answer = await client.get(f"/api/v1{path}", params=params)
        return answer.json() if answer.status_code == 200 else answer.status_code


async def _fill(operator: Seat, **fields: str) -> None:
    dialog = operator.page.locator(".q-dialog").last
    for label, text in fields.items():
        await dialog.get_by_label(label.replace("_", " "), exact=True).fill(text)


async def _delete(operator: Seat, act: str, id: str) -> None:
    await operator.act(act, id=id)
    await operator.page.locator(".q-dialog").last.get_by_label(f"Type {id} to go on").fill(id)
    await operator.press("Delete")
    await operator.reads(f"{id} is deleted")


async def _new(operator: Seat, what: str) -> None:
    await operator.page.get_by_role("button", name=f"New {what} …").click()


async def test_a_provider_is_registered_changed_and_deleted(operator: Seat, service: Running) -> None:
    await operator.go("/setup")
    await _new(operator, "provider")
    await _fill(operator, Name="own", Adapter="vllm", Address="http://93.184.216.34/v1")
    await operator.press("Save")
    await operator.page.wait_for_selector('[data-act="provider-change"][data-id="own"]')
    assert (await _get(service, "/providers/own"))["adapter"] == "vllm"
    await operator.act("provider-change", id="own")
    told = '{"base_url": "http://93.184.216.34/v2", "timeouts": {"idle_ms": 5000}}'
    await operator.page.get_by_label("The provider as JSON").fill(told)
    await operator.press("Save")
    await operator.reads("own: changed")
    shown = await _get(service, "/providers/own")
    assert (shown["base_url"], shown["timeouts"]["idle_ms"]) == ("http://93.184.216.34/v2", 5000)
    await _delete(operator, "provider-delete", "own")
    assert await _get(service, "/providers/own") == 404


async def test_limits_are_stated_changed_and_deleted(operator: Seat, service: Running) -> None:
    await operator.go("/setup")
    await _new(operator, "limits")
    await _fill(operator, Quota_group="west-1", Limits="rpm=50, kind=bucket\nrpd=1000, kind=calendar, timezone=UTC")
    await operator.press("Save")
    lane = "g:west-1:*"
    await operator.page.wait_for_selector(f'[data-act="limit-change"][data-id="{lane}"]')
    assert [row.get("rpm", row.get("rpd")) for row in (await _get(service, f"/limits/{lane}"))["rows"]] == [50, 1000]
    await operator.act("limit-change", id=lane)
    editor = operator.page.locator(".q-dialog").last.get_by_label("Limits", exact=True)
    assert await editor.input_value() == "rpm=50, kind=bucket\nrpd=1000, kind=calendar, timezone=UTC"
    await editor.fill("rpm=fast")
    await operator.press("Save")
    await operator.reads("line 1: 'rpm=fast' is not name=number")
    await editor.fill("rpm=60, kind=triangle")
    await operator.press("Save")
    await operator.page.wait_for_selector(".q-notification:has-text('kind')")
    assert await editor.input_value() == "rpm=60, kind=triangle"  # what was refused is not lost
    await editor.fill("rpm=60")
    await operator.press("Save")
    await operator.reads(f"{lane}: changed")
    assert (await _get(service, f"/limits/{lane}"))["rows"] == [{"rpm": 60}]
    await _delete(operator, "limit-delete", lane)


async def test_an_admin_key_is_made_changed_and_revoked(operator: Seat, service: Running) -> None:
    await operator.go("/setup")
    await _new(operator, "admin key")
    await _fill(operator, Name="ann")
    await operator.press("Save")
    await operator.reads("It is shown this once")
    made = await operator.page.locator(".secret input").input_value()
    async with service.http(headers={"X-API-Key": made}) as client:
        assert (await client.get("/api/v1/whoami")).json()["role"] == "read"
    await operator.press("I have it")
    await operator.act("admin-change", id="ann")
    await operator.page.locator(".q-dialog").last.get_by_label("Role").click()
    await operator.page.get_by_role("option", name="operate").click()
    await operator.press("Save")
    await operator.reads("ann: changed")
    assert (await _get(service, "/admin-keys/ann"))["role"] == "operate"
    await _delete(operator, "admin-delete", "ann")
    async with service.http(headers={"X-API-Key": made}) as client:
        assert (await client.get("/api/v1/whoami")).status_code == 401


async def test_a_webhook_is_made_switched_off_and_deleted(operator: Seat, service: Running) -> None:
    await operator.go("/setup")
    await _new(operator, "webhook")
    await _fill(operator, Name="pager", Address="https://93.184.216.34/")
    await operator.press("Save")
    await operator.reads("It is shown this once")
    assert (await operator.page.locator(".secret input").input_value()).startswith("whsec_")
    await operator.press("I have it")
    await operator.act("webhook-log", id="pager")
    await operator.reads("nothing was sent yet")
    await operator.press("Close")
    await operator.act("webhook-change", id="pager")
    await operator.page.locator(".q-dialog").last.get_by_label("It is", exact=True).click()
    await operator.page.get_by_role("option", name="off").click()
    await operator.press("Save")
    await operator.reads("pager: changed")
    assert (await _get(service, "/webhooks/pager"))["enabled"] is False
    await _delete(operator, "webhook-delete", "pager")


async def test_what_doctor_finds_is_over_every_page_and_in_full_on_the_fleets(operator: Seat, service: Running) -> None:
    found = {one["check"]: one for one in (await _get(service, "/findings"))["findings"]}
    assert found["persistence"]["verdict"] == "warning"
    await operator.go("/headroom")
    await operator.page.locator(".banner summary:has-text('persistence')").click()
    await operator.reads(found["persistence"]["remedy"])
    await operator.go("/fleet")
    await operator.page.wait_for_selector("td:has-text('stored keys')")


async def test_the_fleet_shows_its_workers_its_store_and_what_happened(operator: Seat, service: Running) -> None:
    own = (await _get(service, "/workers"))["workers"][0]
    async with service.operator() as client:
        await client.patch("/api/v1/keys/west-1", json={"state": "disabled", "reason": "by a test"})
        await operator.go("/fleet")
        await operator.page.wait_for_selector(f"td:has-text('{own['id']}')")
        await operator.reads("✓ normal")
        await operator.reads("noeviction")
        await operator.page.wait_for_selector("td:has-text('west-1 disabled')")
        await client.patch("/api/v1/keys/west-1", json={"state": "available"})

    async def back() -> bool:
        return bool((await _get(service, "/keys/west-1"))["state"] == "available")

    await wait_until(back)
