"""Every page: in light, dark and narrow, without data, while the API fails or is slow, and with 2,000 keys."""

import os
from typing import Any

import pytest

from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_dashboard.pages import PAGES
from tests.dashboard.between import Between
from tests.dashboard.driving import Seat, seat_at
from tests.servers import Server
from tests.service.running import MANAGEMENT_KEY, Running, providers_of, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

PATHS = [page.path for page in PAGES]
FAILING = PATHS if os.environ.get("AKR_LONG") else PATHS[::3]
"""The pages share the way of a look: a few of them tell, and `AKR_LONG=1` tries them all."""
KEYS = 2000
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


async def test_every_page_shows_itself_in_light_dark_and_narrow(browser: Any, page_url: str, service: Running) -> None:
    async with service.http() as caller:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        for _ in range(3):
            assert (await caller.post("/v1/chat/completions", json=body)).status_code == 200
    options: list[dict[str, Any]] = [
        {"color_scheme": "light"}, {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
    ]  # fmt: skip
    for option in options:
        viewport = option.pop("viewport", None)
        async with seat_at(browser, page_url, **option) as seat:
            if viewport:
                await seat.page.set_viewport_size(viewport)
            await seat.sign_in(MANAGEMENT_KEY)
            for path in PATHS:
                await seat.go(path)
                assert await seat.page.locator("#main").inner_text() != ""
                assert not await seat.page.evaluate(WIDE), f"{path} is wider than the screen"
                dark = await seat.page.evaluate("document.body.classList.contains('body--dark')")
                assert dark is (option["color_scheme"] == "dark")


async def test_a_failing_api_is_said_so_on_the_page_and_passes(operator: Seat, between: Between) -> None:
    for path in FAILING:
        between.fails = True
        try:
            await operator.page.goto(operator.url + path)
            await operator.page.wait_for_selector(".trouble:has-text('the store is away')")
        finally:
            between.fails = False
        await operator.page.wait_for_selector(".trouble", state="hidden")
        await operator.page.wait_for_selector(".age:has-text('as of')")


async def test_a_slow_api_leaves_the_page_usable(operator: Seat, between: Between) -> None:
    between.hold()
    try:
        await operator.page.goto(f"{operator.url}/money")
        await operator.page.wait_for_selector("h2:has-text('Budgets')")
        assert await operator.page.locator(".age").inner_text() == ""
    finally:
        between.let_go()
    await operator.page.wait_for_selector(".age:has-text('as of')")


async def test_what_a_key_is_called_is_shown_and_not_run(operator: Seat, service: Running) -> None:
    async with service.operator() as client:
        evil = "<img src=x onerror=alert(1)>"
        body = {"name": evil, "scope": "team", "scope_id": "red", "limit_usd": 1, "period": "daily"}
        assert (await client.post("/api/v1/budgets", json=body)).status_code == 201
    await operator.go("/money")
    await operator.page.wait_for_selector("td:has-text('onerror')")
    assert await operator.page.locator("td img").count() == 0


async def test_where_there_is_nothing_the_first_page_says_what_to_do(
    operator: Seat, between: Between, dashboard_valkey: Server
) -> None:
    async with running_service(dashboard_valkey.url, {"keys": []}) as started:
        with between.pointing_to(started.url):
            await operator.page.goto(f"{operator.url}/")
            await operator.reads("No keys yet")
            assert await operator.page.locator(".empty li").count() == 3
            for path in PATHS[1:]:
                await operator.go(path)


async def test_two_thousand_keys_are_a_map(
    operator: Seat, between: Between, dashboard_valkey: Server, simulator: SimulatorProcess
) -> None:
    keys = [
        {"id": f"key-{n:04}", "provider": "openai", "key": f"sk-sim-many-{n}", "quota_group": f"org-{n % 40}"}
        for n in range(KEYS)
    ]
    config = {"providers": providers_of(simulator), "keys": keys, "limits": [{"quota_group": "org-0", "rpm": 60}]}
    async with running_service(dashboard_valkey.url, config) as started:
        with between.pointing_to(started.url):
            await operator.page.goto(f"{operator.url}/")
            await operator.page.wait_for_function(f"document.querySelectorAll('.map .tile').length === {KEYS}")
            await operator.act("open", id="key-0040")
            await operator.reads("rpm: 0 of")
