"""Slow, greedy and numerous clients of a real worker, over raw sockets."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
import yaml

from tests.cli.processes import wait_until
from tests.servers import free_port, running
from tests.service.running import MANAGEMENT_KEY, environ_for

LIMITS = {
    "PROXY_CONNECTIONS_MAX": "20", "PROXY_HEADER_BYTES_MAX": "2048", "PROXY_HEADER_SECONDS": "1",
    "PROXY_BODY_SECONDS": "2", "PROXY_WRITE_SECONDS": "1",
}  # fmt: skip
ANSWER_SECONDS_MAX = 20


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One worker with narrow limits."""
    with worker(tmp_path_factory) as (base, _):
        yield base


@contextlib.contextmanager
def worker(
    tmp_path_factory: pytest.TempPathFactory,
    more: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A worker that answers at the URL; no supervisor."""
    folder, port = tmp_path_factory.mktemp("guard"), free_port()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(config or {"keys": []})))
    with running() as server:
        environ = environ_for(server.url, path, folder / "access.log") | LIMITS | dict(more or {})
        command = [sys.executable, "-m", "apikeyrouter_proxy.worker_process", "--app", "apikeyrouter_proxy.main:app"]
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        process = subprocess.Popen([*command, "--port", str(port)], env={**inherited, **environ}, cwd=folder)
        base = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, "the worker did not start"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{base}/health/ready").status_code == 200
            return False

        wait_until(ready)
        yield base, process
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX) as connection:
        yield connection


def rest_of(connection: socket.socket) -> str:
    """Everything until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def counted(url: str, reason: str) -> int:
    text = httpx.get(f"{url}/metrics").text
    found = [line for line in text.splitlines() if line.startswith(f'apikeyrouter_denials_total{{reason="{reason}"}}')]
    return int(found[0].rpartition(" ")[2]) if found else 0


def test_a_client_that_drips_its_headers_is_told_and_closed(url: str) -> None:
    before = counted(url, "header_timeout")
    with connected(url) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        told = rest_of(connection)
    assert told.startswith("HTTP/1.1 408 ")
    assert '"code": "header_timeout"' in told
    assert counted(url, "header_timeout") == before + 1


def test_a_client_that_says_nothing_at_all_is_closed(url: str) -> None:
    with connected(url) as connection:
        assert rest_of(connection).startswith("HTTP/1.1 408 ")


def test_headers_without_end_are_refused(url: str) -> None:
    with connected(url) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        for number in range(64):
            connection.sendall(b"x-%d: %b\r\n" % (number, b"y" * 256))
            time.sleep(0.001)  # its own packets: what comes in one piece is one piece
    with connected(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 3000)
        assert rest_of(connection).startswith("HTTP/1.1 431 ")
    with connected(url) as connection:  # all of it in one piece, and a request behind it
        connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 3000 + b"\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
        assert rest_of(connection).count("HTTP/1.1 ") == 1
    with connected(url) as connection:  # a body may be larger than headers
        connection.sendall(b"POST /health HTTP/1.1\r\nconnection: close\r\ncontent-length: 9000\r\n\r\n" + b"y" * 9000)
        assert rest_of(connection).startswith("HTTP/1.1 405 ")
    assert counted(url, "headers_too_large") == 3


def test_a_client_that_drips_its_body_is_closed_and_holds_nothing(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(30):
                connection.sendall(b" ")
                time.sleep(0.2)
        assert rest_of(connection).startswith("HTTP/1.1 408 ")
    assert counted(url, "body_timeout") == 1


def test_an_idle_connection_that_was_used_is_not_a_slow_one(url: str) -> None:
    before = counted(url, "header_timeout")
    with httpx.Client(base_url=url) as client:
        first = client.get("/health/live")
        time.sleep(2.5)
        second = client.get("/health/live")
    assert (first.status_code, second.status_code) == (200, 200)
    assert counted(url, "header_timeout") == before


def test_a_client_that_takes_nothing_of_its_answers_is_cut_off(url: str) -> None:
    with connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        # more than the buffers between take, one after the other on one connection
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 400)
        wait_until(lambda: counted(url, "write_timeout") == 1)
    assert httpx.get(f"{url}/health/live").status_code == 200


def test_more_connections_than_allowed_are_told_so_and_the_others_go_on(url: str) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(url)) for _ in range(30)]
        told = []
        for connection in held[20:]:
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                told.append(connection.recv(65536).decode())
        assert any(answer.startswith("HTTP/1.1 503 ") for answer in told)
        held[0].sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")
    assert counted(url, "too_many_connections") >= 10


def test_a_request_that_comes_while_the_server_stops_is_served_if_its_connection_was_there(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with worker(tmp_path_factory) as (url, process), connected(url) as connection:
        process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                with connected(url):
                    return False
            except ConnectionRefusedError:
                return True

        wait_until(refused)
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        told = rest_of(connection)
        assert told.startswith("HTTP/1.1 200 ")
        assert process.wait(30) == 0


def test_management_may_have_a_port_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    port = free_port()
    with worker(tmp_path_factory, {"PROXY_MANAGEMENT_PORT": str(port)}) as (url, _):
        inner = f"http://127.0.0.1:{port}"
        operator = {"X-API-Key": MANAGEMENT_KEY}
        for path in ("/metrics", "/state", "/api/v1/keys", "/docs", "/openapi.json"):
            outside, inside = (httpx.get(base + path, headers=operator) for base in (url, inner))
            assert (outside.status_code, inside.status_code) == (404, 200)
        assert httpx.get(f"{url}/v1/models").status_code == 200
        assert httpx.get(f"{inner}/v1/models").status_code == 404
        assert [httpx.get(f"{base}/health/ready").status_code for base in (url, inner)] == [200, 200]
