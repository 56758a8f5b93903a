"""Clients that leave, processes that stop, workers that count together."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server, free_port
from tests.service.running import Running, environ_for, providers_of, running_service, until_ready, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello there"}]}
STREAM = {**BODY, "model": "slow", "stream": True, "max_tokens": 4000}


@pytest.fixture
def config(simulator: SimulatorProcess) -> dict[str, Any]:
    """A model that streams for long, one that streams briefly, one that does not answer for long."""
    keys = [{"id": n, "provider": "openai", "key": f"sk-sim-{n}", "models": [n]} for n in ("slow", "brief", "late")]
    return {"providers": providers_of(simulator), "keys": keys}


async def settled(service: Running, count: int) -> None:
    """Wait until so many reservations have ended, and nothing is open."""

    async def done() -> bool:
        return await service.count("apikeyrouter_settlements_total") == count and not service.runtime.router.in_flight

    await wait_until(done)


async def test_a_client_that_leaves_a_stream_pays_for_what_it_got(
    simulator: SimulatorProcess, service: Running
) -> None:
    async with service.http() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        async for _ in answer.aiter_bytes():
            break
    await settled(service, 1)
    facts = service.runtime.router.decisions[-1]
    assert facts.outcome in ("disconnected", "cancelled")
    assert facts.usage is not None
    assert facts.usage.output_tokens < 1000
    assert await service.count("apikeyrouter_requests_total") == 1
    assert await service.count("apikeyrouter_inflight") == 0


async def test_a_client_that_leaves_before_the_answer_frees_its_hold(
    simulator: SimulatorProcess, service: Running
) -> None:
    async with service.http() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json={**BODY, "model": "late"}, timeout=1.0)
    await settled(service, 1)
    assert await service.count("apikeyrouter_inflight") == 0


async def test_a_client_that_leaves_in_the_middle_of_its_body_holds_nothing(service: Running) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()

    async def noted() -> bool:
        return (
            await service.count('apikeyrouter_requests_total{route="messages",provider="",model="",outcome="disc') == 1
        )

    await wait_until(noted)
    assert await service.count("apikeyrouter_settlements_total") == 0


async def test_a_key_of_the_environment_that_the_file_names_is_one_key(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    environ = {"OPENAI_KEY_1": "sk-sim-slow", "OPENAI_KEY_2": "sk-sim-other", "APIKEYROUTER_NAMESPACE": "same-store"}
    without = {**config, "keys": []}
    named = {**config, "keys": [{"id": "slow", "provider": "openai", "key": "env:OPENAI_KEY_1"}]}
    async with running_service(service_valkey.url, without, environ=environ) as service, service.operator() as client:
        found = (await client.get("/api/v1/keys")).json()["keys"]
    async with running_service(service_valkey.url, named, environ=environ) as service, service.operator() as client:
        keys = (await client.get("/api/v1/keys")).json()["keys"]
    assert [key["metadata"]["source"] for key in found] == ["env:OPENAI_KEY_1", "env:OPENAI_KEY_2"]
    assert {key["id"] for key in keys} == {"slow", found[1]["id"]}


async def test_a_stopping_service_finishes_what_is_under_way(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        runtime = service.runtime
        async with client.stream("POST", "/v1/chat/completions", json={**STREAM, "model": "brief"}) as answer:
            chunks = answer.aiter_lines()
            first = await anext(chunks)
            service.server.should_exit = True
            rest = [line async for line in chunks]
    assert first.startswith("data: ")
    assert rest[-2:] == ["data: [DONE]", ""]
    assert runtime.router.books.waiting == 0
    assert runtime.router.books.settled == 1


async def test_what_does_not_end_in_time_is_cut_off_with_an_event(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    environ = {"PROXY_DRAIN_SECONDS": "0"}
    async with running_service(service_valkey.url, config, environ=environ) as service, service.http() as client:
        runtime = service.runtime
        async with client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            drained = asyncio.create_task(runtime.drain())
            rest = [line async for line in lines if line]
            await drained
        ready = await client.get("/health/ready")
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert ready.status_code == 503
    assert runtime.router.books.settled == 1


@contextlib.asynccontextmanager
async def worker_processes(
    command: list[str], environ: Mapping[str, str], url: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server process group that answers at `url`, ended by SIGTERM at exit."""
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, env={**inherited, **environ}, cwd=Path(environ["HOME"])
    )
    try:
        await until_ready(process, url)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def _ask(url: str, count: int) -> list[int]:
    """Ask over connections of their own, so that every worker gets some."""
    statuses = []
    for _ in range(count):
        async with httpx.AsyncClient(timeout=60) as client:
            statuses.append((await client.post(f"{url}/v1/chat/completions", json=BODY)).status_code)
    return statuses


def _prepared(directory: Path, simulator: SimulatorProcess, redis_url: str) -> tuple[dict[str, str], Path]:
    config = {
        "providers": providers_of(simulator),
        "keys": [{"id": "k1", "provider": "openai", "key": "sk-sim-service-1", "models": ["gpt-4o-mini"]}],
    }
    path, log = directory / "config.yaml", directory / "access.log"
    path.write_text(yaml.safe_dump(config))
    environ = environ_for(redis_url, path, log) | {"HOME": str(directory)}
    return {name: value for name, value in environ.items() if value}, log


def _sample(text: str, name: str) -> int:
    return sum(int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
async def test_a_scrape_of_any_worker_counts_all_of_them_and_nothing_is_lost_at_the_end(
    simulator: SimulatorProcess, service_valkey: Server, tmp_path: Path, server: str
) -> None:
    environ, log = _prepared(tmp_path, simulator, service_valkey.url)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    app = "apikeyrouter_proxy.main:app"
    commands = {
        "uvicorn": [
            "uvicorn", app, "--port", str(port), "--workers", "2", "--log-level", "warning",
            "--http", "apikeyrouter_proxy.http_protocol:ServiceProtocol",
        ],
        "gunicorn": [
            "gunicorn", app, "-w", "2", "-k", "apikeyrouter_proxy.gunicorn_worker.Worker",
            "-b", f"127.0.0.1:{port}", "--log-level", "warning",
        ],
    }  # fmt: skip
    async with worker_processes(commands[server], environ, url) as process:
        assert await _ask(url, 18) == [200] * 18
        await _check_that_it_speaks_as_our_workers_do(port)

        async def counted() -> bool:
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"{url}/metrics")).text
            found = [
                _sample(text, f"apikeyrouter_{name}") for name in ("requests_total", "settlements_total", "workers")
            ]
            return found == [20, 20, 2]

        await wait_until(counted)
        assert await _ask(url, 5) == [200] * 5
        process.send_signal(signal.SIGTERM)
        await process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({line["request_id"] for line in lines}) == len(lines) == 25


async def _check_that_it_speaks_as_our_workers_do(port: int) -> None:
    """A stream to a client of HTTP/1.0 ends with its connection; who would change to HTTP/2 is answered in HTTP/1.1."""
    body = json.dumps({**BODY, "stream": True, "max_tokens": 3}).encode()
    head = b"host: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    unusual = {b"1.0": b"", b"1.1": b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"}
    for version, more in unusual.items():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/%b\r\n%b%b\r\n%b" % (version, head, more, body))
        async with asyncio.timeout(20):
            told, _, rest = (await reader.readuntil(b"data: [DONE]\n\n")).partition(b"\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 200 ")
            assert rest.startswith(b"data: {") == (version == b"1.0"), "no sizes of chunks for who cannot read them"
            assert version == b"1.1" or await reader.read() == b""
        writer.close()


async def test_workers_without_a_redis_share_one_embedded_server(simulator: SimulatorProcess, tmp_path: Path) -> None:
    environ, _ = _prepared(tmp_path, simulator, "")
    environ["APIKEYROUTER_DATA_DIR"] = str(tmp_path / "data")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        "uvicorn", "apikeyrouter_proxy.main:app", "--port", str(port), "--workers", "2", "--log-level", "warning",
    ]  # fmt: skip
    async with worker_processes(command, environ, url), httpx.AsyncClient(base_url=url) as client:
        assert await _ask(url, 10) == [200] * 10

        async def shared() -> bool:
            text = (await client.get("/metrics")).text
            return (_sample(text, "apikeyrouter_requests_total"), _sample(text, "apikeyrouter_workers")) == (10, 2)

        await wait_until(shared)


async def test_an_application_without_a_lifespan_starts_with_its_first_request(
    simulator: SimulatorProcess, service_valkey: Server, tmp_path: Path
) -> None:
    from apikeyrouter_proxy.main import create_app

    environ, _ = _prepared(tmp_path, simulator, service_valkey.url)
    app = create_app(environ)
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answer = await client.post("/v1/chat/completions", json=BODY)
    await app.closed()
    assert answer.status_code == 200
    assert answer.json()["routing_metadata"]["key_used"] == "k1"


async def test_a_service_that_will_stop_says_so_first_and_still_serves(
    service_valkey: Server, config: dict[str, Any], tmp_path: Path
) -> None:
    path, port = tmp_path / "config.yaml", free_port()
    path.write_text(yaml.safe_dump(config))
    environ = environ_for(service_valkey.url, path, tmp_path / "access.log")
    environ |= {"HOME": str(tmp_path), "PROXY_DRAIN_NOTICE_SECONDS": "300", "PROXY_OPEN": "true"}
    url = f"http://127.0.0.1:{port}"
    command = ["apikeyrouter.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    async with worker_processes(command, environ, url) as process, httpx.AsyncClient(base_url=url) as client:
        process.send_signal(signal.SIGTERM)

        async def leaving() -> bool:
            return bool((await client.get("/health/ready")).json()["status"] == "draining")

        await wait_until(leaving)
        assert (await client.get("/health/live")).status_code == 200
        answer = await client.post("/v1/chat/completions", json={**BODY, "model": "brief", "max_tokens": 3})
        assert answer.status_code == 200
        await asyncio.sleep(1.1)  # sooner, a second signal is the first one told twice
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_workers_that_are_replaced_all_the_time_lose_no_answer_no_stream_and_no_count(
    simulator: SimulatorProcess, service_valkey: Server, tmp_path: Path
) -> None:
    """A server that goes closes connections whose request it has not read. Clients try again, as the SDKs do: nothing
    was admitted of the first try, so that what is counted is what was answered."""
    environ, log = _prepared(tmp_path, simulator, service_valkey.url)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        "gunicorn", "apikeyrouter_proxy.main:app", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--max-requests",
        "8", "--worker-class", "uvicorn.workers.UvicornWorker", "--log-level", "warning", "--graceful-timeout", "60",
    ]  # fmt: skip

    async def ask(body: dict[str, Any]) -> str:
        while True:
            async with httpx.AsyncClient(timeout=60) as client:
                with contextlib.suppress(httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                    answer = await client.post(f"{url}/v1/chat/completions", json=body)
                    return "whole" if answer.status_code == 200 and _is_whole(answer.text) else answer.text

    async def asked(count: int, **more: Any) -> set[str]:
        return {await ask({**BODY, **more}) for _ in range(count)}

    async with worker_processes(command, environ, url), httpx.AsyncClient(base_url=url, timeout=60) as client:
        streams = (asked(10, stream=True, max_tokens=40) for _ in range(2))
        assert await asyncio.gather(asked(40), *streams) == [{"whole"}] * 3

        async def counted() -> bool:
            with contextlib.suppress(httpx.TransportError):
                text = (await client.get("/metrics")).text
                names = ("requests_total", "settlements_total")
                return [_sample(text, f"apikeyrouter_{name}") for name in names] == [60, 60]
            return False

        await wait_until(counted)
    assert len(log.read_text().splitlines()) == 60


def _is_whole(text: str) -> bool:
    return text.endswith(("data: [DONE]\n\n", "}"))
