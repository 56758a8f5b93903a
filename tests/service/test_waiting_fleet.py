"""Who waits at two workers for the same room: clients share it by their weights, whichever worker they came to."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.servers import Server
from tests.service.running import Running, fresh_namespace, running_service
from tests.service.test_client_properties import BODY, CHAT, clients, token

pytestmark = pytest.mark.asyncio(loop_scope="package")

SERVED = 90
AT_ONCE = 6
"""Requests of each client that are under way at any time."""


async def test_clients_that_wait_at_two_workers_share_by_weight(service_valkey: Server, config: dict[str, Any]) -> None:
    config["keys"] = [{**config["keys"][0], "quota_group": "org-one"}]
    config["limits"] = [{"quota_group": "org-one", "rpm": 1200, "kind": "bucket", "burst": 20}]
    config["routing"] = {"wait_max_ms": 60_000}
    config["clients"] = clients(light={"weight": 1}, heavy={"weight": 4})
    served: Counter[str] = Counter()
    shared = fresh_namespace()

    async def client(service: Running, name: str) -> None:
        async with service.http() as http:
            while served.total() < SERVED:
                answer = await http.post(CHAT, json=BODY, headers=token(name))
                assert answer.status_code == 200, answer.text
                served[name] += 1

    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
    ):
        await asyncio.gather(
            *(client(one, "light") for _ in range(AT_ONCE)), *(client(other, "heavy") for _ in range(AT_ONCE))
        )
        assert await one.runtime.router.drain(20)
        assert await other.runtime.router.drain(20)
        assert await other.runtime.router.ledger.audit(lanes=other.runtime.router.catalogue.lane_ids(), scopes=[]) == []
    assert served["heavy"] > 1.5 * served["light"], served
