"""Reports of what was used: every request once, whichever worker served it."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apikeyrouter.infrastructure.state_store.memory_records import MemoryRecords
from apikeyrouter_proxy.usage import PLACES_MAX, UsageCounts
from tests.servers import Server
from tests.service.running import fresh_namespace, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
CLIENTS: list[dict[str, Any]] = [
    {"name": "red-app", "token": "a-token-that-is-long", "team": "red"},
    {"name": "other", "token": "another-token-that-is-long", "rpm": 1},
]


async def test_usage_adds_up_over_workers_clients_and_models(service_valkey: Server, config: dict[str, Any]) -> None:
    config["clients"] = CLIENTS
    shared = fresh_namespace()
    async with (
        running_service(service_valkey.url, config, environ=shared) as one,
        running_service(service_valkey.url, config, environ=shared) as other,
        one.http() as first,
        other.http() as second,
        other.operator() as operator,
    ):
        red, rest = ({"authorization": f"Bearer {client['token']}"} for client in CLIENTS)
        costs = [
            float((await client.post("/v1/chat/completions", json=BODY, headers=red)).headers["x-akr-cost-usd"])
            for client in (first, second, first)
        ]
        streamed = await first.post("/v1/chat/completions", json={**BODY, "stream": True}, headers=red)
        statuses = [
            (await second.post("/v1/chat/completions", json={**BODY, "model": "gpt-4o"}, headers=rest)).status_code
            for _ in range(2)
        ]

        async def told(**params: Any) -> Any:
            return (await operator.get("/api/v1/usage", params=params)).json()

        async def complete() -> bool:
            return bool((await told())["sum"]["requests"] == 6)

        await wait_until(complete)
        by_client = await told(by="client,model")
        by_team = await told(by="team", team="red")
        today = await told(by="day")
        before = await told(until=str(datetime.now(UTC).date() - timedelta(days=1)))
        paged = await told(by="client,key", limit=1)
        text = (await operator.get("/api/v1/usage", params={"by": "client", "format": "csv"})).text
    assert (streamed.status_code, statuses) == (200, [200, 429])
    rows = {(row["client"], row["model"]): row for row in by_client["usage"]}
    assert rows["red-app", "gpt-4o-mini"]["served"] == 4
    assert rows["red-app", "gpt-4o-mini"]["output_tokens"] == 4 * 12
    assert rows["red-app", "gpt-4o-mini"]["cost_usd"] == pytest.approx(sum(costs) * 4 / 3)
    assert rows["other", "gpt-4o"]["served"] == 1
    assert rows["other", ""]["denied"] == 1
    assert [(row["team"], row["requests"]) for row in by_team["usage"]] == [("red", 4)]
    assert [row["day"] for row in today["usage"]] == [datetime.now(UTC).date().isoformat()]
    assert (before["usage"], before["sum"]["requests"]) == ([], 0)
    assert (len(paged["usage"]), paged["sum"]["requests"]) == (1, 6)
    assert paged["next_cursor"]
    assert [row["client"] for row in csv.DictReader(io.StringIO(text))] == ["other", "red-app"]


@pytest.mark.parametrize(
    "params",
    [
        {"by": "nothing"}, {"by": ""}, {"since": "yesterday"}, {"since": "2020-01-01"}, {"format": "xml"},
        {"since": "2030-01-02", "until": "2030-01-01"}, {"limit": 0},
    ],
)  # fmt: skip
async def test_a_wrong_question_is_refused(
    service_valkey: Server, config: dict[str, Any], params: dict[str, Any]
) -> None:
    async with running_service(service_valkey.url, config) as service, service.operator() as operator:
        answer = await operator.get("/api/v1/usage", params=params)
        oldest = await operator.get("/api/v1/usage", params={"until": "0001-01-05"})
    assert (answer.status_code, oldest.status_code) == (400, 200)


async def test_names_without_end_do_not_fill_the_store(service_valkey: Server, config: dict[str, Any]) -> None:
    records = MemoryRecords()
    counts = UsageCounts(records)
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        await client.post("/v1/chat/completions", json=BODY)
        facts = service.runtime.router.decisions[-1]
    for number in range(PLACES_MAX + 5):
        facts.team = f"team-{number}"
        counts.add(facts)
    await counts.flush()
    found = await records.all_counts(f"usage-{datetime.fromtimestamp(facts.at_us / 1e6, UTC).date()}")
    requests = {field: number for field, number in found.items() if '"requests"' in field}
    assert len(requests) == PLACES_MAX + 1
    assert sum(requests.values()) == PLACES_MAX + 5
