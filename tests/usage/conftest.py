"""One simulator for the folder, both kinds of store, and an event log that other tests find as it was."""

from collections.abc import Iterator

import pytest

from apikeyrouter.infrastructure.observability.events import EventLog
from tests.router.conftest import shared_simulator, simulator, store

__all__ = ["shared_simulator", "simulator", "store"]


@pytest.fixture(autouse=True)
def _own_level() -> Iterator[None]:
    """Routers set the log's level for the whole process."""
    before = EventLog.level
    yield
    EventLog.level = before
