"""Every route and method that the service has, tried by those who may not: the table is the application's own."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from apikeyrouter.infrastructure.surface.routes import ROUTES, ROUTES_WITH_NAMES
from apikeyrouter_proxy.main import create_app
from tests.servers import Server, free_port
from tests.service.running import MANAGEMENT_KEY, running_service
from tests.service.test_connection_guard import worker
from tests.service.test_management_access import filled, managed

TOKEN = "the-token-of-a-client"
CLIENTS = [{"name": "app", "token": TOKEN}]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OPEN = {
    "/health", "/health/live", "/health/ready", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json",
}  # fmt: skip
"""What anybody may see who reaches the port: nothing of it is a client's, a key's or money's."""
WRONG: tuple[dict[str, str], ...] = (
    {}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"x-api-key": "wrong"},
    {"x-goog-api-key": "wrong"}, {"authorization": f"Bearer {MANAGEMENT_KEY}"}, {"x-api-key": MANAGEMENT_KEY},
    {"authorization": "Bearer"}, {"authorization": f"Bearer {TOKEN[:-1]}"},
)  # fmt: skip


def data_routes() -> list[str]:
    """Every path of the data plane, with names filled in; Gemini's under both of its versions."""
    paths = [*ROUTES, *(route.path for route in ROUTES_WITH_NAMES)]
    named = [path.replace("{model}", "gpt-4o-mini").replace("{response_id}", "resp_1") for path in paths]
    return [*named, *(path.replace("/v1beta/", "/v1/") for path in named if path.startswith("/v1beta/")), "/v1/nothing"]


def served() -> Iterator[tuple[str, str]]:
    """Methods and paths of everything but the data plane."""

    def leaves(routes: Any) -> Iterator[tuple[str, str]]:
        for route in routes:
            if isinstance(route, Route):
                yield from ((method, route.path) for method in route.methods or ())
            else:
                yield from leaves(route.original_router.routes)

    yield from leaves(create_app({}).routes)


def test_whatever_is_served_is_managed_or_open() -> None:
    described = {path for _, path in managed()}
    paths = {path.replace(":path}", "}").replace(":name}", "}") for _, path in served()}
    assert len(paths) > 40
    assert {path for path in paths if not {path, f"/api/v1{path}"} & described} == OPEN


@pytest.mark.asyncio(loop_scope="package")
async def test_the_data_plane_lets_nobody_in_without_a_clients_token(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    config["clients"] = CLIENTS
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        for path in data_routes():
            for method in METHODS:
                told = [await client.request(method, path, headers=headers, content=b"{}") for headers in WRONG]
                assert {answer.status_code for answer in told} == {401}, (method, path)
        assert service.runtime.router.decided == 0
        let_in = {"authorization": f"Bearer {TOKEN}"}
        answers = [await client.request(m, path, headers=let_in) for path in data_routes() for m in ("GET", "POST")]
        assert 401 not in {answer.status_code for answer in answers}


@pytest.mark.asyncio(loop_scope="package")
async def test_a_clients_token_manages_nothing(service_valkey: Server, config: dict[str, Any]) -> None:
    config["clients"] = CLIENTS
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        for method, path in managed():
            told = await client.request(method, filled(path), headers={"x-api-key": TOKEN})
            assert told.status_code == 401, (method, path)


def test_each_port_has_its_own_plane_and_still_asks_who_calls(tmp_path_factory: pytest.TempPathFactory) -> None:
    port = free_port()
    environ = {"PROXY_MANAGEMENT_PORT": str(port)}
    with worker(tmp_path_factory, environ, {"clients": CLIENTS}) as (outer, _):
        inner = f"http://127.0.0.1:{port}"
        with httpx.Client(headers={"x-api-key": MANAGEMENT_KEY}) as operator, httpx.Client() as nobody:
            for method, path in managed():
                told = (
                    operator.request(method, outer + filled(path)).status_code,
                    nobody.request(method, inner + filled(path)).status_code,
                )
                assert told == (404, 401), (method, path)
            for path in data_routes():
                told = (nobody.post(outer + path).status_code, operator.post(inner + path).status_code)
                assert told == (401, 404), path
            for path in OPEN:
                told = nobody.get(outer + path).status_code, nobody.get(inner + path).status_code
                assert told == (200 if path.startswith("/health") else 404, 200), path
