"""Every page: in light, dark and narrow, without data, while the API fails or is slow, and with 2,000 keys."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web

from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_dashboard.pages import PAGES
from tests.dashboard.driving import Seat, page_for, seat_at
from tests.servers import Server
from tests.service.running import MANAGEMENT_KEY, Running, providers_of, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

PATHS = [page.path for page in PAGES]
FAILING = PATHS if os.environ.get("AKR_LONG") else PATHS[::3]
"""The pages share the way of a look: a few of them tell, and `AKR_LONG=1` tries them all."""
KEYS = 2000
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


class Between:
    """An API that fails or is slow when it is told to, and else answers as the service behind it does."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.url, self.fails, self.slow_seconds, self.asked = "", False, 0.0, 0

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.slow_seconds)
        if self.fails:
            return web.json_response(
                {"error": {"message": "the store is away", "code": "store_unavailable"}}, status=503
            )
        headers = {"x-api-key": request.headers.get("x-api-key", ""), "content-type": "application/json"}
        url = self._target + str(request.rel_url)
        async with ClientSession() as client:
            found = await client.request(request.method, url, headers=headers, data=await request.read())
            return web.Response(body=await found.read(), status=found.status, content_type=found.content_type)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Between"]:
        """Listening on a free port."""
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def between(service: Running) -> AsyncIterator[Between]:
    async with Between(service.url).open() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def troubled(between: Between) -> AsyncIterator[str]:
    """A page whose API can be made to fail."""
    with page_for(between.url, MANAGEMENT_KEY) as url:
        yield url


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


async def test_a_failing_api_is_said_so_on_the_page_and_passes(browser: Any, between: Between, troubled: str) -> None:
    async with seat_at(browser, troubled) as seat:
        await seat.sign_in(MANAGEMENT_KEY)
        for path in FAILING:
            between.fails = True
            await seat.page.goto(seat.url + path)
            await seat.page.wait_for_selector(".trouble:has-text('the store is away')")
            between.fails = False
            await seat.page.wait_for_selector(".trouble", state="hidden")
            await seat.page.wait_for_selector(".age:has-text('as of')")


async def test_a_slow_api_leaves_the_page_usable(browser: Any, between: Between, troubled: str) -> None:
    async with seat_at(browser, troubled) as seat:
        await seat.sign_in(MANAGEMENT_KEY)
        between.slow_seconds = 3.0
        try:
            await seat.page.goto(f"{seat.url}/money")
            await seat.page.wait_for_selector("h2:has-text('Budgets')")
            assert await seat.page.locator(".age").inner_text() == ""
        finally:
            between.slow_seconds = 0.0
        await seat.page.wait_for_selector(".age:has-text('as of')")


async def test_what_a_key_is_called_is_shown_and_not_run(operator: Seat, service: Running) -> None:
    async with service.operator() as client:
        evil = "<img src=x onerror=alert(1)>"
        body = {"name": evil, "scope": "team", "scope_id": "red", "limit_usd": 1, "period": "daily"}
        assert (await client.post("/api/v1/budgets", json=body)).status_code == 201
    await operator.go("/money")
    await operator.page.wait_for_selector("td:has-text('onerror')")
    assert await operator.page.locator("td img").count() == 0


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def empty(dashboard_valkey: Server) -> AsyncIterator[str]:
    """A service that has nothing yet, and its page."""
    async with running_service(dashboard_valkey.url, {"keys": []}) as started:
        with page_for(started.url, MANAGEMENT_KEY) as url:
            yield url


async def test_where_there_is_nothing_the_first_page_says_what_to_do(browser: Any, empty: str) -> None:
    async with seat_at(browser, empty) as seat:
        await seat.sign_in(MANAGEMENT_KEY)
        await seat.reads("No keys yet")
        assert await seat.page.locator(".empty li").count() == 3
        for path in PATHS[1:]:
            await seat.go(path)


async def test_two_thousand_keys_are_a_map(browser: Any, dashboard_valkey: Server, simulator: SimulatorProcess) -> None:
    keys = [
        {"id": f"key-{n:04}", "provider": "openai", "key": f"sk-sim-many-{n}", "quota_group": f"org-{n % 40}"}
        for n in range(KEYS)
    ]
    config = {"providers": providers_of(simulator), "keys": keys, "limits": [{"quota_group": "org-0", "rpm": 60}]}
    async with running_service(dashboard_valkey.url, config) as started:
        with page_for(started.url, MANAGEMENT_KEY) as url:
            async with seat_at(browser, url) as seat:
                await seat.sign_in(MANAGEMENT_KEY)
                await seat.page.wait_for_function(f"document.querySelectorAll('.map .tile').length === {KEYS}")
                await seat.act("open", id="key-0040")
                await seat.reads("rpm: 0 of")
