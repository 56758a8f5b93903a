"""Where the money of a budget lies, and which cell counts a limit: told by the management API and the command line."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from apikeyrouter.domain.models.escrow import ChildBooks
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from tests.cli.processes import clean_environ
from tests.servers import Server
from tests.service.running import MANAGEMENT_KEY, Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")
NANOUSD = 1_000_000_000


async def test_an_operator_sees_in_which_cell_money_lies(
    service_valkey: Server, config: dict[str, Any], tmp_path: Path
) -> None:
    config["keys"] = [{**key, "quota_group": "org-a"} if key["id"] == "a1" else key for key in config["keys"]]
    config["accounting"] = {"cells": [{"name": "north", "quota_groups": ["org-a"], "teams": ["n"]}]}
    config["limits"] = [{"quota_group": "org-a", "rpm": 100}]
    config["budgets"] = [
        {"name": "all", "scope": "global", "limit_usd": 10, "period": "total"},
        {"name": "n", "scope": "team", "scope_id": "n", "limit_usd": 5, "period": "total"},
    ]
    async with running_service(service_valkey.url, config) as service, service.operator() as client:
        ledger = service.runtime.router.ledger
        assert isinstance(ledger, SpreadLedger)
        books = await ledger.home.grant("global:all", 1, ChildBooks(), asked=3 * NANOUSD)
        await ledger.cells[1].fund("global:all", start_us=books.start_us, granted=3 * NANOUSD)
        told = (await client.get("/api/v1/budgets/global:all")).json()
        nothing = {"settled_usd": 0.0, "held_usd": 0.0, "suspense_usd": 0.0}
        assert told["cells"] == [
            {"cell": "main", "granted_usd": 0.0, "free_usd": 7.0, **nothing},
            {"cell": "north", "granted_usd": 3.0, "free_usd": 3.0, **nothing},
        ]
        assert told["remaining_usd"] == 10.0
        assert (await client.get("/api/v1/budgets/team:n:n")).json()["cells"] == []
        lanes = (await client.get("/api/v1/limits", params={"everything": True})).json()["limits"]
        cells = {lane["id"]: lane["cell"] for lane in lanes}
        assert (cells["g:org-a:*"], cells["k:a1"], cells["k:k1"]) == ("north", "north", "main")
        assert {cells[lane] for lane in cells if lane.startswith("p:")} == {None}
        environ = clean_environ(APIKEYROUTER_URL=service.url, MANAGEMENT_API_KEY=MANAGEMENT_KEY)
        shown = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "apikeyrouter.cli", "budgets", "show", "global:all",
            cwd=tmp_path, env=environ, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await shown.communicate()
        assert out.decode().splitlines()[-2:] == ["main  0  0  0  0  7", "north  3  0  0  0  3"]


async def test_with_one_cell_there_are_none_to_tell_of(service: Running) -> None:
    async with service.operator() as client:
        await client.post("/api/v1/budgets", json={"scope": "global", "limit_usd": 5})
        assert (await client.get("/api/v1/budgets/global:monthly")).json()["cells"] == []
        lanes = (await client.get("/api/v1/limits", params={"everything": True})).json()["limits"]
        assert {lane["cell"] for lane in lanes} == {None}
