"""What a request waits for its store where that is not what is tested: a busy machine is not an outage."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine

PATIENCE_SECONDS = 1.5
"""Ten times what a request waits otherwise; tests that stop a server wait as long, once."""


@contextmanager
def patient_ledgers() -> Iterator[None]:
    """Ledgers that are made meanwhile, and are not told how long to wait, wait that long."""
    with pytest.MonkeyPatch.context() as patch:
        for made, name in ((ScriptLedger, "deadline_s"), (RedisEngine, "timeout_s")):
            defaults = made.__init__.__kwdefaults__ or {}
            assert name in defaults
            patch.setitem(defaults, name, PATIENCE_SECONDS)
        yield


@pytest.fixture(autouse=True, scope="package")
def patient() -> Iterator[None]:
    """For all tests of the folders that import it."""
    with patient_ledgers():
        yield
