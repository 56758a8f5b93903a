"""Fixtures that every folder of tests may use."""

import contextlib
import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from apikeyrouter.infrastructure.observability.events import EventLog
from tests.servers import Server, default_flavour, describe, flavours, running

EXPLORING = bool(os.environ.get("AKR_LONG"))
settings.register_profile(
    "repeatable", deadline=None, derandomize=not EXPLORING, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
"""Properties hold however busy the machine is; their examples are the same in every run, unless one explores."""


def pytest_report_header() -> str:
    """Say which servers the tests run against."""
    return describe()


@pytest.fixture(autouse=True, scope="session")
def _own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a service keeps without being told where (ends that an outage left over) is not kept in who tests' home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A service configures structlog and a router sets its level, for the whole process; the next test has neither."""
    level = EventLog.level
    yield
    EventLog.level = level
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, Server]]:
    """The servers that were asked for so far, started on first use (`any_server`, `valkey_server`)."""
    with contextlib.ExitStack() as stack:
        yield _Started(stack)


class _Started(dict[str, Server]):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, flavour: str) -> Server:
        self[flavour] = self._stack.enter_context(running(flavour))
        return self[flavour]


@pytest.fixture(scope="session")
def valkey_server(servers: dict[str, Server]) -> Server:
    """The server that most tests share. Not flushed; take `redis_url` for an empty one."""
    return servers[default_flavour()]


@pytest.fixture
def redis_url(valkey_server: Server) -> Iterator[str]:
    """URL of an empty server, emptied again afterwards."""
    yield from _flushed(valkey_server)


@pytest.fixture(params=flavours())
def any_server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Iterator[Server]:
    """Each kind of server that is installed, one after the other, empty."""
    server = servers[request.param]
    for _ in _flushed(server):
        yield server


def _flushed(server: Server) -> Iterator[str]:
    server.flush()
    yield server.url
    server.flush()
