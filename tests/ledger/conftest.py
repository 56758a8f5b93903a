"""Cells for the proofs: in process, or on a server under a virtual clock."""

from collections.abc import AsyncIterator, Iterator

import pytest

from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from tests.ledger.cells import Witnessed, ledger_over, local_engine
from tests.ledger.crew import Crew
from tests.ledger.support import Clock


@pytest.fixture
def clock() -> Clock:
    """The time of the cell under test."""
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> LocalEngine:
    """The scripts in this process."""
    return local_engine(clock)


@pytest.fixture
async def ledger(engine: LocalEngine, clock: Clock) -> AsyncIterator[ScriptLedger]:
    """An open cell whose every reply is held against the oracle."""
    made = ledger_over(Witnessed(engine, clock))
    await made.open()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Eight processes that do jobs."""
    made = Crew(8)
    yield made
    made.dismiss()
