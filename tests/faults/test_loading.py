"""A server that reads its data back says LOADING for a while: nothing is admitted, nothing is lost, nobody restarts."""

import asyncio
import threading
from typing import Any, cast

import pytest
import redis

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Admission, ReserveRequest, Settlement
from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from tests.servers import Server, default_flavour, running
from tests.topologies.books import CANDIDATE, COST, booked, ledger_at, spent
from tests.topologies.deployments import until

KEYS, BYTES = 400, 2_000
DELAY_US = 2_000
"""The server waits so long at each key that it reads: a megabyte takes as long as many gigabytes do."""
OPTIONS = (
    "--enable-debug-command", "yes", "--enable-protected-configs", "yes",
    "--loading-process-events-interval-bytes", "1024",
)  # fmt: skip


def _read_all_again(server: Server) -> None:
    with server.client() as client:
        client.execute_command("DEBUG", "RELOAD")


def _is_loading(client: "redis.Redis") -> bool:
    try:
        client.get("x")
    except redis.BusyLoadingError:
        return True
    return False


async def test_a_server_that_loads_is_waited_for_and_has_everything_again() -> None:
    with running(default_flavour(), options=OPTIONS) as server:
        with server.client() as client:
            client.mset({f"filling:{number}": "x" * BYTES for number in range(KEYS)})
            cast("Any", client).config_set("key-load-delay", DELAY_US)
        async with ledger_at(server.url) as ledger:
            request = ReserveRequest(rid=new_rid(), candidates=(CANDIDATE,))
            assert isinstance(await ledger.reserve(request), Admission)
            reading = threading.Thread(target=_read_all_again, args=(server,))
            reading.start()
            with server.client() as client:
                await asyncio.to_thread(until, lambda: _is_loading(client))
                with pytest.raises(LedgerUnavailableError, match=r"LOADING|loading|deadline|did not answer|not asked"):
                    await ledger.reserve(ReserveRequest(rid=new_rid(), candidates=(CANDIDATE,)))
            await asyncio.to_thread(reading.join)
            assert await booked(ledger)
            await ledger.settle(Settlement(rid=request.rid, input_tokens=1, output_tokens=1, cost_nanousd=COST))
            assert await spent(ledger) == (2 * COST, 0)
            assert ledger.forgotten == 0
