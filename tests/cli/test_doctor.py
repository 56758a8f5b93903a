"""`apikeyrouter doctor`: each misconfiguration that it knows, made, and told with what to do."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.infrastructure.ledger.outbox_file import Entry, OutboxFile
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.records import records_for
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter_proxy.deliveries import QUEUE
from tests.cli.processes import clean_environ, command
from tests.servers import Server

ONE, OTHER = (b64encode(bytes([n]) * 32).decode() for n in (1, 2))
MODEL = "gpt-4o-mini"
Findings = dict[str, dict[str, Any]]


def _doctor(server: Server, tmp_path: Path, config: Any = None, **environ: str) -> tuple[int, Findings]:
    (tmp_path / "router.yaml").write_text(yaml.safe_dump(config or {}))
    told = {"APIKEYROUTER_ENCRYPTION_KEY": ONE, **environ}
    arguments = ("--redis-url", server.url, "--config", "router.yaml", "--json")
    done = command("doctor", *arguments, cwd=tmp_path, environ=clean_environ(**told))
    return done.returncode, {finding["check"]: finding for finding in json.loads(done.stdout)}


def _store(server: Server, work: Callable[[RedisStateStore], Awaitable[object]]) -> None:
    """Something is done in the store of a fresh server."""

    async def run() -> None:
        store = RedisStateStore(server.url)
        await work(store)
        await store.aclose()

    server.flush()
    asyncio.run(run())


def _key(key_id: str, **told: Any) -> APIKey:
    sealed = KeyVault.parse(ONE).encrypt(f"sk-{key_id}", key_id=key_id)
    return APIKey(**{"id": key_id, "provider_id": "openai", "encrypted_material": sealed, **told})


async def _both(store: RedisStateStore) -> None:
    await store.save_key(_key("k1", organization="o", metadata={"quota_group": "a", "models": ["gpt-nobody-knows"]}))
    await store.save_key(_key("k2", organization="o", metadata={"quota_group": "b", "models": [MODEL]}))


def test_a_sound_deployment_has_no_problem_and_its_room_is_told(valkey_server: Server, tmp_path: Path) -> None:
    async def use(store: RedisStateStore) -> None:
        router = ApiKeyRouter(state_store=store, config={"encryption_key": ONE})
        async with router:
            await router.cost_controller.create_budget("global", 5, "daily")

    _store(valkey_server, use)
    code, found = _doctor(valkey_server, tmp_path)
    assert (code, found["ledger"]["verdict"], found["memory"]["verdict"]) == (0, "ok", "ok")
    assert "bytes" in found["memory"]["found"]
    assert "ledger clock" not in found
    assert "budgets" not in found


def test_keys_that_no_master_key_opens_are_named(valkey_server: Server, tmp_path: Path) -> None:
    _store(valkey_server, lambda store: store.save_key(_key("k1")))
    right = _doctor(valkey_server, tmp_path)[1]["stored keys"]
    code, wrong = _doctor(valkey_server, tmp_path, APIKEYROUTER_ENCRYPTION_KEY=OTHER)
    rotating = _doctor(valkey_server, tmp_path, APIKEYROUTER_ENCRYPTION_KEY=f"{OTHER},{ONE}")[1]["stored keys"]
    assert (right["verdict"], rotating["verdict"]) == ("ok", "warning")
    assert (code, wrong["stored keys"]["verdict"]) == (1, "problem")
    assert "k1" in wrong["stored keys"]["found"]
    assert "APIKEYROUTER_ENCRYPTION_KEY" in wrong["stored keys"]["remedy"]


def test_one_organisation_in_two_groups_and_models_without_a_price(valkey_server: Server, tmp_path: Path) -> None:
    _store(valkey_server, _both)
    config = {"models": {"fast": [{"provider": "openai", "model": "gpt-unheard-of"}]}}
    code, found = _doctor(valkey_server, tmp_path, config)
    names = ("gpt-unheard-of", "gpt-nobody-knows")
    priced = {**config, "prices": [{"model": name, "input": 1, "output": 2} for name in names]}
    again = _doctor(valkey_server, tmp_path, priced)[1]
    assert code == 0
    assert {"k1", "k2"} <= set(found["quota groups"]["found"].replace(",", "").split())
    assert "quota_group" in found["quota groups"]["remedy"]
    assert "gpt-nobody-knows of openai, gpt-unheard-of of openai" in found["prices"]["found"]
    assert "prices" not in again


def test_hard_budgets_that_never_begin_anew_are_told(valkey_server: Server, tmp_path: Path) -> None:
    async def use(store: RedisStateStore) -> None:
        router = ApiKeyRouter(state_store=store, config={"encryption_key": ONE})
        async with router:
            await router.cost_controller.create_budget("team", 5, "total", "hard", "red")
            await router.cost_controller.create_budget("team", 5, "total", "soft", "blue")

    _store(valkey_server, use)
    config = {"budgets": [{"name": "all", "scope": "global", "limit_usd": 5, "period": "total"}]}
    found = _doctor(valkey_server, tmp_path, config)[1]["budgets"]
    assert found["verdict"] == "warning"
    assert found["found"].startswith("global:all, team:red:total never")


@pytest.mark.parametrize(("url", "verdict"), [("http://93.184.216.34/", "warning"), ("http://10.0.0.1/", "problem")])
def test_webhooks_that_do_not_arrive_or_must_not_are_told(
    valkey_server: Server, tmp_path: Path, url: str, verdict: str
) -> None:
    async def fail(store: RedisStateStore) -> None:
        hook = {"name": "pager", "url": url, "events": ["key.out"], "sealed_secret": "x"}
        await store.save_document("webhook", "pager", hook)
        records = records_for(store)
        await records.enqueue(QUEUE, "evt_1:pager", {"webhook": "pager"}, once_seconds=60)
        await records.remember("webhook:pager", {"delivered": False, "status": 500, "error": None}, seconds=60)
        await records.close()

    _store(valkey_server, fail)
    code, found = _doctor(valkey_server, tmp_path)
    assert (code, found["webhook pager"]["verdict"]) == (verdict == "problem", verdict)
    if verdict == "warning":
        assert "answered 500" in found["webhook pager"]["found"]
        assert "1 wait" in found["webhook pager"]["found"]


def test_a_ledger_of_another_layout_and_a_clock_in_doubt_are_problems(valkey_server: Server, tmp_path: Path) -> None:
    async def begin(store: RedisStateStore) -> None:
        async with ApiKeyRouter(state_store=store, config={"encryption_key": ONE}) as router:
            await router.start()

    _store(valkey_server, begin)
    write = "local h = redis.call('HGET', KEYS[1], '') local a = {struct.unpack('<dddddddd', h)} a[1], a[7] = 99, 1 "
    write += "return redis.call('HSET', KEYS[1], '', struct.pack('<dddddddd', unpack(a, 1, 8)))"
    with valkey_server.client() as client:
        client.eval(write, 1, "apikeyrouter:{c:main}:L")
    code, found = _doctor(valkey_server, tmp_path)
    assert (code, found["ledger"]["verdict"], found["ledger clock"]["verdict"]) == (1, "problem", "problem")
    assert "layout 99" in found["ledger"]["found"]
    assert "NTP" in found["ledger clock"]["remedy"]


def test_a_server_that_is_nearly_full_is_told(valkey_server: Server, tmp_path: Path) -> None:
    valkey_server.flush()
    with valkey_server.client() as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.2))
        try:
            found = _doctor(valkey_server, tmp_path)[1]["memory"]
        finally:
            client.config_set("maxmemory", 0)
    assert found["verdict"] == "warning"
    assert "maxmemory" in found["remedy"]


def test_no_secret_is_told(valkey_server: Server, tmp_path: Path) -> None:
    _store(valkey_server, lambda store: store.save_key(_key("k1")))
    told = json.dumps(_doctor(valkey_server, tmp_path, APIKEYROUTER_ENCRYPTION_KEY=OTHER))
    assert ONE not in told
    assert OTHER not in told
    assert "sk-" not in told


def test_an_outbox_that_a_dead_worker_left_is_told(valkey_server: Server, tmp_path: Path) -> None:
    told = {"APIKEYROUTER_OUTBOX_DIR": str(tmp_path / "outbox")}
    assert _doctor(valkey_server, tmp_path, **told)[1]["outbox"]["verdict"] == "ok"
    file = OutboxFile.make(tmp_path / "outbox", "apikeyrouter at redis://somewhere")
    file.append([Entry(kind="cancel", rid=bytes([n]) * 16) for n in range(3)])
    file.close()
    found = _doctor(valkey_server, tmp_path, **told)[1]["outbox"]
    assert found["verdict"] == "warning"
    assert "3 ends of requests in 1 files" in found["found"]
    assert file.path.exists()
