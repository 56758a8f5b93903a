"""The pool map, and what is done to keys from there, checked by its effect through the API."""

import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.dashboard.driving import Seat
from tests.service.running import Running, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

TURNS = """(away) => {
  Object.defineProperty(document, 'hidden', {value: away, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""
"""What a browser does when somebody turns to another tab, and back."""


async def _key(service: Running, key_id: str) -> dict[str, object]:
    async with service.operator() as client:
        answer = await client.get(f"/api/v1/keys/{key_id}")
        told: dict[str, object] = answer.json() if answer.status_code == 200 else {"state": "gone"}
        return told


async def test_every_key_has_a_tile_by_its_quota_group(operator: Seat) -> None:
    await operator.go("/")
    await operator.reads("2 keys")
    tiles = await operator.page.locator(".tile.card").evaluate_all("all => all.map(one => one.dataset.id)")
    assert sorted(tiles) == ["north-1", "north-2", "west-1"]
    west = operator.page.locator('.tile[data-id="west-1"]')
    assert "unknown" in await west.inner_text()
    await operator.page.get_by_text("by provider").click()
    await operator.page.wait_for_selector('h2:has-text("anthropic")')


async def test_a_key_is_disabled_and_enabled_from_its_tile(operator: Seat, service: Running) -> None:
    await operator.go("/")
    await operator.act("open", id="north-2")
    await operator.press("Disable")
    await operator.press("Do it")
    await operator.reads("north-2 is disabled")
    assert (await _key(service, "north-2"))["state"] == "disabled"
    await operator.page.wait_for_selector('.tile[data-id="north-2"].is-disabled')
    await operator.press("Enable")

    async def back() -> bool:
        return (await _key(service, "north-2"))["state"] == "available"

    await wait_until(back)


async def test_a_key_is_probed_and_says_what_the_provider_said(operator: Seat, service: Running) -> None:
    await operator.go("/")
    await operator.act("open", id="north-1")
    await operator.press("Probe")
    await operator.reads("north-1: the provider takes it")
    async with service.operator() as client:
        newest = (await client.get("/api/v1/audit", params={"limit": 1})).json()["audit"][0]
    assert (newest["action"], newest["id"]) == ("key.probed", "north-1")


async def test_what_destroys_asks_for_a_typed_word(operator: Seat, service: Running) -> None:
    await operator.go("/")
    async with service.operator() as client:
        body = {"key_material": "sk-sim-spare-1", "provider_id": "openai", "metadata": {"quota_group": "spare"}}
        made = (await client.post("/api/v1/keys", json=body)).json()["id"]
    await operator.act("open", id=made)
    await operator.press("Rotate …")
    dialog = operator.page.locator(".q-dialog").last
    await dialog.get_by_label("New key material").fill("sk-sim-spare-2")
    go = dialog.get_by_role("button", name="Rotate", exact=True)
    assert await go.is_disabled()
    await dialog.get_by_label(f"Type {made} to go on").fill(made)
    await go.click()
    await operator.reads(f"{made} is rotated")
    assert (await _key(service, made))["generation"] == 1
    await operator.press("Revoke …")
    await operator.page.locator(".q-dialog").last.get_by_label(f"Type {made} to go on").fill(made)
    await operator.press("Revoke")
    await operator.reads(f"{made} is revoked")
    assert (await _key(service, made))["state"] == "gone"


async def test_whoever_looks_away_is_not_served(operator: Seat, service: Running) -> None:
    """A hidden tab asks for nothing; one that is looked at again does."""
    await operator.go("/")
    await operator.reads("keys that serve")
    await operator.page.evaluate(TURNS, True)
    shown = operator.page.locator(".age")
    async with service.operator() as client:
        await client.patch("/api/v1/keys/north-2", json={"state": "disabled"})
        await operator.page.wait_for_timeout(500)
        before = await shown.inner_text()
        await operator.page.wait_for_timeout(2200)
        assert await shown.inner_text() == before
        await operator.page.evaluate(TURNS, False)
        await operator.page.wait_for_selector('.tile[data-id="north-2"].is-disabled')
        await client.patch("/api/v1/keys/north-2", json={"state": "available"})


async def test_the_map_is_walked_through_with_the_keyboard(operator: Seat) -> None:
    await operator.go("/")
    tile = operator.page.locator('.tile[data-id="north-1"]')
    await tile.focus()
    await operator.page.wait_for_timeout(2500)
    focused = "document.activeElement.dataset.id"
    assert await operator.page.evaluate(focused) == "north-1"
    await operator.page.keyboard.press("Enter")
    await operator.reads("What became of it")


async def test_a_tile_tells_the_last_error_and_who_took_its_key_out(
    operator: Seat, service: Running, simulator: SimulatorProcess
) -> None:
    async with service.operator() as client, service.http(headers={"x-request-id": "it-failed"}) as caller:
        bob = (await client.post("/api/v1/admin-keys", json={"name": "bob", "role": "operate"})).json()["key"]
        await simulator.fail("server_error", count=1)
        chat = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        assert (await caller.post("/v1/chat/completions", json=chat)).status_code == 200
        told = (await client.get("/api/v1/pool")).json()["keys"]
        failed = next(key["id"] for key in told if key["last_error"])
        async with service.http(headers={"X-API-Key": bob}) as other:
            await other.patch(f"/api/v1/keys/{failed}", json={"state": "disabled", "reason": "it smells"})
        await operator.go("/")
        tile = f'.tile[data-id="{failed}"]'
        for text in ("it smells", "by bob", "last error provider 500"):
            await operator.page.wait_for_selector(f"{tile}:has-text('{text}')")
        await operator.act("open", id=failed)
        await operator.page.get_by_text("explain the request").click()
        await operator.page.wait_for_selector(".q-dialog :text('it-failed')")
        await operator.page.wait_for_selector(f".q-dialog td:has-text('{failed}')")
        await client.patch(f"/api/v1/keys/{failed}", json={"state": "available"})
        await client.delete("/api/v1/admin-keys/bob")


async def test_the_metadata_of_a_key_are_changed(operator: Seat, service: Running) -> None:
    async with service.operator() as client:
        body = {"key_material": "sk-sim-spare-2", "provider_id": "openai", "metadata": {"quota_group": "spare"}}
        made = (await client.post("/api/v1/keys", json=body)).json()["id"]
        await operator.go("/")
        await operator.act("open", id=made)
        await operator.press("Metadata …")
        text = operator.page.get_by_label("Metadata as JSON")
        assert '"quota_group": "spare"' in await text.input_value()
        await text.fill('{"quota_group": "moved", "tier": "pro"}')
        await operator.press("Save")
        await operator.reads(f"{made}: changed")
        changed = (await client.get(f"/api/v1/keys/{made}")).json()
        assert changed["metadata"] == {"quota_group": "moved", "tier": "pro"}
        await client.delete(f"/api/v1/keys/{made}")


async def test_a_group_without_a_serving_key_is_out_on_headroom(operator: Seat, service: Running) -> None:
    async with service.operator() as client:
        for key_id in ("north-1", "north-2"):
            await client.patch(f"/api/v1/keys/{key_id}", json={"state": "throttled", "for_seconds": 600})
        await operator.go("/headroom")
        await operator.page.get_by_role("button", name="by quota group").click()
        row = operator.page.locator("tr:has(td:text-is('north'))")
        await row.locator(":text('✕ out: 0 of 2')").wait_for()
        assert "wait until" in await row.inner_text()
        await operator.page.wait_for_selector("tr:has-text('g:north:*'):has-text('none of its keys serves')")
        for key_id in ("north-1", "north-2"):
            await client.patch(f"/api/v1/keys/{key_id}", json={"state": "available"})
