"""What `doctor` says a server could forget, before it does."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from apikeyrouter.infrastructure.state_store.redis_records import RedisRecords
from apikeyrouter_proxy.doctor.loss import durability_of, examine
from tests.cli.processes import command
from tests.servers import binaries, running
from tests.topologies.deployments import port_of, until

AOF = {"aof_enabled": 1, "aof_last_write_status": "ok", "connected_slaves": 0}
RATE = 50_000_000
"""Five cents a second."""


def told(info: dict[str, Any], **config: str) -> dict[str, str]:
    """Findings by check: verdict and words."""
    words = {name.replace("_", "-"): value for name, value in config.items()}
    return {one.check: f"{one.verdict} {one.found} {one.remedy}" for one in examine(info, words, RATE)}


@pytest.mark.parametrize(
    ("fsync", "says"),
    [
        ("always", "ok append-only file (appendfsync always): a crash forgets nothing"),
        ("everysec", "may forget up to 2 s of what workers wrote that die with it: $0.1000"),
        ("no", "up to 30 s of what workers wrote that die with it: $1.5000"),
    ],
)
def test_a_crash_forgets_what_was_not_synced(fsync: str, says: str) -> None:
    assert says in told(AOF, appendfsync=fsync)["persistence"]


def test_what_is_not_told_is_assumed_and_said_to_be() -> None:
    assert "(appendfsync everysec, assumed)" in told(AOF)["persistence"]


def test_a_failover_forgets_what_replicas_may_lack() -> None:
    bounded = told({**AOF, "connected_slaves": 2}, min_replicas_to_write="1", min_replicas_max_lag="3")["failover"]
    assert "ok 2 replicas: a failover may forget up to 3 s" in bounded
    assert "$0.1500" in bounded
    unbounded = told({**AOF, "connected_slaves": 1}, min_replicas_to_write="0")["failover"]
    assert unbounded.startswith("warning 1 replica, ")
    assert "$0.0500 a second" in unbounded
    assert "min-replicas-to-write 1" in unbounded
    assert "failover" not in told(AOF)


def test_a_disk_that_fails_is_a_problem() -> None:
    assert told({**AOF, "aof_last_write_status": "err"})["persistence"].startswith("problem")
    assert durability_of({}, {}).restart_seconds is None


@pytest.mark.parametrize("flavour", list(binaries()))
async def test_a_servers_own_settings_and_spending_are_told_in_dollars(flavour: str, tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "everysec", "--min-replicas-to-write", "1")
    with (
        running(flavour, options=(*options, "--repl-diskless-sync-delay", "0")) as server,
        server.client() as client,
        running(flavour, options=("--replicaof", f"127.0.0.1 {port_of(server)}")),
    ):
        until(lambda: cast("Any", client.info("replication")).get("min_slaves_good_slaves") == 1)
        records = RedisRecords(server.url, "apikeyrouter")
        place = json.dumps(["", "", "k", "p", "m", "cost_nanousd"])
        day = datetime.now(UTC).date().isoformat()
        await records.add_counts(f"usage-{day}", {place: 172_800 * 10**9})
        await records.close()
        answer = command("doctor", "--redis-url", server.url, "--json", cwd=tmp_path)
    found = {finding["check"]: finding for finding in json.loads(answer.stdout)}
    assert found["persistence"]["verdict"] == found["failover"]["verdict"] == "ok"
    assert "10 s" in found["failover"]["found"]
    dollars = float(found["failover"]["found"].partition("$")[2].partition(" ")[0])
    assert dollars >= 9.9
