"""Many keys at once: each row is answered for by itself, in whichever form they come."""

import json
from typing import Any

import httpx
import pytest

from apikeyrouter_proxy.management.key_rows import ROWS_MAX
from tests.service.running import Running

pytestmark = pytest.mark.asyncio(loop_scope="package")

LINES, CSV, JSON = "application/x-ndjson", "text/csv", "application/json"
SECRET = "sk-sim-of-an-import"


async def take_in(operator: httpx.AsyncClient, text: str | bytes, kind: str = LINES, **params: Any) -> httpx.Response:
    return await operator.post("/api/v1/keys/import", content=text, headers={"content-type": kind}, params=params)


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def key(number: int, **more: Any) -> dict[str, Any]:
    return {"key_material": f"{SECRET}-{number}", "provider_id": "openai", **more}


async def test_each_row_says_what_became_of_it_and_the_same_again_changes_nothing(service: Running) -> None:
    rows = [key(1), key(2, metadata={"quota_group": "g"}), key(1), key(3, provider_id="nobody"), "{oops", "", [1]]
    async with service.operator() as operator:
        tried = (await take_in(operator, lines(*rows), dry_run=True)).json()
        before = (await operator.get("/api/v1/keys")).json()["total"]
        done = await take_in(operator, lines(*rows))
        again = (await take_in(operator, lines(*rows))).json()
        changed = (await take_in(operator, lines(key(2, metadata={"quota_group": "h"}), key(2)))).json()
        keys = {one["id"]: one for one in (await operator.get("/api/v1/keys")).json()["keys"]}
        audit = (await operator.get("/api/v1/audit", params={"kind": "key"})).json()["audit"]
    told = done.json()
    outcomes = ["created", "created", "unchanged", "refused", "refused", "refused"]
    assert [row["outcome"] for row in told["rows"]] == [row["outcome"] for row in tried["rows"]] == outcomes
    assert (tried["created"], tried["dry_run"], len(keys) - before) == (2, True, 2)
    assert [row["line"] for row in told["rows"]] == [1, 2, 3, 4, 5, 7]
    assert [told[name] for name in ("created", "updated", "unchanged", "refused")] == [2, 0, 1, 3]
    assert [row["outcome"] for row in again["rows"]] == ["unchanged"] * 3 + ["refused"] * 3
    assert [row["outcome"] for row in changed["rows"]] == ["updated", "unchanged"]
    first, second = told["rows"][0]["id"], told["rows"][1]["id"]
    assert (keys[first]["metadata"], keys[second]["metadata"]) == ({}, {"quota_group": "h"})
    assert "nobody" in told["rows"][3]["reason"]
    assert [(one["action"], one["details"]) for one in audit[:2]] == [
        ("key.imported", {"created": [], "updated": [second]}),
        ("key.imported", {"created": [first, second], "updated": []}),
    ]
    assert SECRET not in done.text + json.dumps(audit)


async def test_a_key_of_an_import_serves_at_once(service: Running) -> None:
    rows = [{"key_material": "sk-sim-service-2", "provider_id": "openai", "metadata": {"models": ["gpt-4o"]}}]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    async with service.operator() as operator, service.http() as caller:
        made = (await take_in(operator, json.dumps(rows), JSON)).json()["rows"][0]["id"]
        await operator.patch(f"/api/v1/keys/{(await operator.get('/api/v1/keys')).json()['keys'][0]['id']}",
                             json={"state": "disabled"})  # fmt: skip
        answers = [await caller.post("/v1/chat/completions", json=body) for _ in range(2)]
    assert {answer.headers["x-akr-key-id"] for answer in answers} == {made}


async def test_columns_of_csv_are_what_keys_are_told_by_name(service: Running) -> None:
    text = (
        "\ufeffkey_material,provider_id,models,weight,tier,quota_group,note\r\n"
        f'{SECRET}-a,anthropic,claude-haiku-5; claude-sonnet-5,2,pro,"org, inc",7\r\n'
        f"{SECRET}-b,,,,,,\r\n"
        "\r\n"
        f"{SECRET}-c,openai,,heavy,,,\r\n"
        f"{SECRET}-d\r\n"
        ",openai,,,,,\r\n"
    )
    async with service.operator() as operator:
        told = (await take_in(operator, text, "text/csv; charset=utf-8", provider_id="openai")).json()["rows"]
        keys = {one["id"]: one for one in (await operator.get("/api/v1/keys")).json()["keys"]}
    first, second = keys[told[0]["id"]], keys[told[1]["id"]]
    assert (first["provider_id"], second["provider_id"], second["metadata"]) == ("anthropic", "openai", {})
    assert first["metadata"] == {
        "models": ["claude-haiku-5", "claude-sonnet-5"], "weight": 2, "tier": "pro", "quota_group": "org, inc",
        "note": "7",
    }  # fmt: skip
    assert [(row["line"], row["outcome"]) for row in told] == [
        (2, "created"), (3, "created"), (5, "refused"), (6, "refused"), (7, "refused"),
    ]  # fmt: skip
    assert all(part in row["reason"] for part, row in zip(("weight", "1 cells", "key_material"), told[2:], strict=True))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"provider_id": "openai"}, "key_material"),
        ({"key_material": SECRET}, "provider_id"),
        ({"key_material": "", "provider_id": "openai"}, "empty"),
        ({"key_material": "two words", "provider_id": "openai"}, "printable"),
        ({"key_material": "\ud800", "provider_id": "openai"}, "printable"),
        ({"key_material": SECRET, "provider_id": ""}, "provider_id"),
        ({"key_material": SECRET, "provider_id": "openai", "id": "k1"}, "id"),
        ({"key_material": SECRET, "provider_id": "openai", "metadata": []}, "metadata"),
        ({"key_material": SECRET, "provider_id": "openai", "metadata": {"weight": -1}}, "weight"),
        (f'{{"key_material": "{SECRET}", "provider_id": "openai", "metadata": {{"x": NaN}}}}', "no JSON"),
        (f'{{"key_material": "{SECRET}", "provider_id": "openai", "metadata": {{"x": 1e999}}}}', "metadata.x"),
        ("[" * 100_000, "no JSON"),
        ("7", "must be an object"),
    ],
)
async def test_a_wrong_row_is_refused_by_itself_and_shows_no_key(service: Running, row: Any, said: str) -> None:
    async with service.operator() as operator:
        before = (await operator.get("/api/v1/keys")).json()["total"]
        answer = await take_in(operator, lines(row))
        after = (await operator.get("/api/v1/keys")).json()["total"]
    (told,) = answer.json()["rows"]
    assert (told["outcome"], said in told["reason"], after) == ("refused", True, before)
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("{}", "text/plain", "content-type"),
        ("{}", JSON, "array"),
        ("provider_id\nopenai\n", CSV, "key_material"),
        ("key_material,tier,tier\n", CSV, "different"),
        ("", CSV, "key_material"),
        ('key_material\n"open', CSV, "line 2"),
        (b"\xff", LINES, "UTF-8"),
        ("{}\n" * (ROWS_MAX + 1), LINES, str(ROWS_MAX)),
    ],
)
async def test_what_cannot_be_read_as_rows_changes_nothing(service: Running, text: Any, kind: str, said: str) -> None:
    async with service.operator() as operator:
        answer = await take_in(operator, text, kind)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


async def test_more_rows_than_a_page_are_all_answered_for_in_order(service: Running) -> None:
    count = 300
    async with service.operator() as operator:
        told = (await take_in(operator, lines(*map(key, range(count))))).json()
        ids = {one["id"] for one in (await operator.get("/api/v1/keys", params={"limit": 1000})).json()["keys"]}
    assert (told["created"], [row["line"] for row in told["rows"]]) == (count, list(range(1, count + 1)))
    assert {row["id"] for row in told["rows"]} <= ids
