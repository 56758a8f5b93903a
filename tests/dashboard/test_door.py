"""Signing in and out, roles, and whoever comes from elsewhere."""

import httpx
import pytest

from tests.dashboard.driving import Seat
from tests.service.running import MANAGEMENT_KEY, Running

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_nothing_is_shown_to_whoever_is_not_signed_in(seat: Seat) -> None:
    await seat.page.goto(f"{seat.url}/")
    assert seat.page.url == f"{seat.url}/sign-in"
    async with httpx.AsyncClient(base_url=seat.url) as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/_nicegui_ws/socket.io/?EIO=4&transport=polling")).status_code == 401


async def test_a_wrong_key_is_refused_and_said_so(seat: Seat) -> None:
    await seat.page.goto(f"{seat.url}/sign-in")
    await seat.page.fill("#key", "no-such-key")
    await seat.page.click("button[type=submit]")
    await seat.reads("that is not an admin key of this service")
    assert await seat.context.cookies(seat.url) == []


async def test_the_cookie_is_for_this_page_alone_and_the_key_never_reaches_the_browser(operator: Seat) -> None:
    cookies = {cookie["name"]: cookie for cookie in await operator.context.cookies(operator.url)}
    cookie = cookies["akr_operator"]
    assert cookie["httpOnly"] is True
    assert cookie["sameSite"] == "Strict"
    await operator.go("/")
    assert MANAGEMENT_KEY not in await operator.page.content()
    assert MANAGEMENT_KEY not in str(cookies)


async def test_signing_out_ends_it(seat: Seat) -> None:
    await seat.sign_in(MANAGEMENT_KEY)
    session = await seat.context.cookies(seat.url)
    await seat.page.click("text=Sign out")
    await seat.page.wait_for_url(f"{seat.url}/sign-in")
    async with httpx.AsyncClient(base_url=seat.url) as client:
        told = {"cookie": f"akr_seat={session[0]['value']}"}
        assert (await client.get("/", headers=told)).status_code == 401


async def test_a_form_of_another_page_is_refused(operator: Seat) -> None:
    session = next(one for one in await operator.context.cookies(operator.url) if one["name"] == "akr_operator")
    headers = {"cookie": f"akr_operator={session['value']}", "origin": "https://elsewhere.example"}
    async with httpx.AsyncClient(base_url=operator.url) as client:
        assert (await client.post("/sign-out", headers=headers)).status_code == 403
        assert (await client.post("/sign-in", headers=headers, data={"key": MANAGEMENT_KEY})).status_code == 403
        without = {"origin": operator.url}
        assert (await client.post("/sign-in", headers=without, data={"key": MANAGEMENT_KEY})).status_code == 403
    await operator.go("/")
    assert operator.page.url == f"{operator.url}/"


async def test_a_socket_of_another_page_is_refused(operator: Seat) -> None:
    """Browsers send cookies with sockets whatever page opens them, but say where it comes from."""
    session = next(one for one in await operator.context.cookies(operator.url) if one["name"] == "akr_operator")
    wanted = {
        "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "cookie": f"akr_operator={session['value']}",
    }  # fmt: skip
    path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    async with httpx.AsyncClient(base_url=operator.url) as client:
        refused = await client.get(path, headers={**wanted, "origin": "https://elsewhere.example"})
        assert refused.status_code == 403


async def test_the_page_says_what_a_browser_may_do(operator: Seat) -> None:
    answer = await operator.page.goto(f"{operator.url}/")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert answer.headers["x-frame-options"] == "DENY"


async def test_a_reader_sees_everything_and_may_press_nothing(seat: Seat, service: Running) -> None:
    async with service.operator() as client:
        made = (await client.post("/api/v1/admin-keys", json={"name": "reader", "role": "read"})).json()
    await seat.sign_in(made["key"])
    await seat.reads("reader · read")
    await seat.act("open", id="north-1")
    await seat.reads("What became of it")
    for name in ("Probe", "Disable", "Enable", "Rotate …", "Revoke …"):
        assert await seat.page.locator(".q-dialog").get_by_role("button", name=name, exact=True).is_disabled()
