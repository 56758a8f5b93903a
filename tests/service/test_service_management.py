"""Keys through the management plane: everything but their material comes back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import Server
from tests.service.running import MANAGEMENT_KEY, Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

MATERIAL = "sk-sim-a-secret-nobody-may-see"
BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_key_lives_from_registration_to_revocation(service: Running) -> None:
    async with service.operator() as client:
        made = await client.post(
            "/api/v1/keys", json={"key_material": MATERIAL, "provider_id": "openai", "metadata": {"tier": "pro"}}
        )
        key_id = made.json()["id"]
        again = await client.post("/keys", json={"key_material": MATERIAL, "provider_id": "openai"})
        listed = await client.get("/api/v1/keys", params={"provider_id": "openai"})
        throttled = await client.patch(f"/api/v1/keys/{key_id}", json={"state": "Throttled", "reason": "by hand"})
        rotated = await client.post(f"/api/v1/keys/{key_id}/rotate", json={"key_material": MATERIAL + "-2"})
        one = await client.get(f"/api/v1/keys/{key_id}")
        gone = await client.delete(f"/api/v1/keys/{key_id}")
        missing = [
            await client.get(f"/api/v1/keys/{key_id}"),
            await client.delete(f"/api/v1/keys/{key_id}"),
            await client.patch(f"/api/v1/keys/{key_id}", json={"state": "disabled"}),
        ]
    answers = [made, again, listed, throttled, rotated, one]
    assert [answer.status_code for answer in answers] == [201, 201, 200, 200, 200, 200]
    assert again.json()["id"] == key_id
    assert {key["id"] for key in listed.json()["keys"]} == {"k1", "k2", key_id}
    assert (throttled.json()["state"], throttled.json()["state_reason"]) == ("throttled", "by hand")
    assert (gone.status_code, gone.content) == (204, b"")
    assert [answer.status_code for answer in missing] == [404, 404, 404]
    assert not any(MATERIAL in answer.text or "encrypted" in answer.text for answer in answers)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "key_material"),
        ({"key_material": "", "provider_id": "openai"}, "key_material"),
        ({"key_material": MATERIAL, "provider_id": "nobody"}, "nobody"),
        ({"key_material": MATERIAL, "provider_id": "openai", "extra": 1}, "extra"),
        ({"key_material": MATERIAL, "provider_id": "openai", "metadata": {"weight": -1}}, "weight"),
        ({"key_material": [MATERIAL], "provider_id": "openai"}, "key_material"),
        ({"key_material": MATERIAL, "provider_id": 7}, "provider_id"),
    ],
)
async def test_a_wrong_registration_names_the_field_and_never_the_material(
    service: Running, body: dict[str, Any], said: str
) -> None:
    async with service.operator() as client:
        answer = await client.post("/api/v1/keys", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert MATERIAL not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"state": "asleep"},
        {"state": "recovering"},
        {"state": "throttled", "for_seconds": -1},
        {"state": "throttled", "for_seconds": 1e300},
        {},
    ],
)
async def test_a_wrong_state_changes_nothing(service: Running, body: dict[str, Any]) -> None:
    async with service.operator() as client:
        answer = await client.patch("/api/v1/keys/k1", json=body)
        one = await client.get("/api/v1/keys/k1")
    assert answer.status_code == 400
    assert one.json()["state"] == "available"


async def test_malformed_and_oversized_bodies_are_refused(service: Running) -> None:
    async with service.operator() as client:
        malformed = await client.post("/api/v1/keys", content=b"{", headers={"content-type": "application/json"})
        large = await client.post("/api/v1/keys", content=b'{"a":"' + b"x" * 2_000_000 + b'"}')
    assert malformed.status_code == 400
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


async def test_only_the_management_key_opens(service: Running) -> None:
    paths = ("/api/v1/keys", "/api/v1/providers", "/api/v1/state", "/state")
    async with service.http() as client:
        for path in paths:
            statuses = [
                (await client.get(path)).status_code,
                (await client.get(path, headers={"X-API-Key": "wrong"})).status_code,
                (await client.get(path, headers=[(b"X-API-Key", "ü".encode())])).status_code,
                (await client.get(path, headers={"Authorization": f"Bearer {MANAGEMENT_KEY}"})).status_code,
                (await client.get(path, headers={"X-API-Key": MANAGEMENT_KEY})).status_code,
            ]
            assert statuses == [401, 401, 401, 401, 200], path


async def test_without_a_management_key_the_remedy_is_told(service_valkey: Server, config: dict[str, Any]) -> None:
    unset, off = {"MANAGEMENT_API_KEY": ""}, {"MANAGEMENT_API_ENABLED": "false"}
    async with running_service(service_valkey.url, config, environ=unset) as service, service.operator() as client:
        answer = await client.get("/api/v1/keys")
        assert answer.status_code == 403
        assert "MANAGEMENT_API_KEY" in answer.json()["error"]["message"]
    async with running_service(service_valkey.url, config, environ=off) as service, service.operator() as client:
        answer = await client.get("/api/v1/keys")
        assert answer.status_code == 404
        assert "MANAGEMENT_API_ENABLED" in answer.json()["error"]["message"]


async def test_without_a_master_key_nothing_is_registered_on_a_foreign_server(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    del config["keys"]
    environ = {"APIKEYROUTER_ENCRYPTION_KEY": ""}
    async with running_service(service_valkey.url, config, environ=environ) as service, service.operator() as client:
        answer = await client.post("/api/v1/keys", json={"key_material": MATERIAL, "provider_id": "openai"})
    assert answer.status_code in (400, 409)
    assert "ENCRYPTION_KEY" in answer.json()["error"]["message"]


@pytest.mark.parametrize("hsts", ["true", "false"])
async def test_every_answer_of_both_planes_carries_security_headers_and_none_for_other_origins(
    service_valkey: Server, config: dict[str, Any], hsts: str
) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    origin = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/api/v1/keys", {}), ("GET", "/docs", {}), ("GET", "/nowhere", {}), ("GET", "/health/live", {}),
        ("GET", "/metrics", {}), ("POST", "/v1/chat/completions", {"json": body}), ("GET", "/v1/models", {}),
        ("POST", "/v1/chat/completions", {"json": {**body, "stream": True}}), ("GET", "/v1/nowhere", {}),
        ("POST", "/v1/chat/completions", {"content": b"{"}), ("GET", "/v1/messages", {}),
        ("OPTIONS", "/v1/chat/completions", {}), ("OPTIONS", "/api/v1/keys", {}),
    ]  # fmt: skip
    environ = {"ENABLE_HSTS": hsts}
    async with running_service(service_valkey.url, config, environ=environ) as service, service.operator() as client:
        answers = [await client.request(method, path, headers=origin, **more) for method, path, more in asked]
        inside = [path.startswith(("/api", "/health", "/metrics")) for _, path, _ in asked]
    assert {answer.status_code for answer in answers} == {200, 400, 404, 405}
    for answer, sealed in zip(answers, inside, strict=True):
        assert answer.headers["x-content-type-options"] == "nosniff", answer.url
        assert ("strict-transport-security" in answer.headers) is (hsts == "true"), answer.url
        assert not [name for name in answer.headers if name.startswith("access-control-")], answer.url
        assert not sealed or answer.headers["cache-control"] == "no-store"


async def test_the_description_has_both_planes(service: Running) -> None:
    async with service.http() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/v1/messages", "/v1/models", "/api/v1/keys/{key_id}", "/health"} <= set(paths)


async def test_the_description_promises_the_errors_that_there_are(service: Running) -> None:
    async with service.http() as client:
        schema = (await client.get("/openapi.json")).json()
        refused = await client.get("/api/v1/keys")
        wrong = await client.post("/api/v1/keys", json={}, headers={"X-API-Key": MANAGEMENT_KEY})
    answers = {
        path: {code for operation in operations.values() for code in operation["responses"]}
        for path, operations in schema["paths"].items()
    }
    assert {str(refused.status_code), str(wrong.status_code)} == {"401", "400"} <= answers["/api/v1/keys"]
    assert not [path for path, codes in answers.items() if "422" in codes]
    assert "ValidationError" not in str(schema["components"])
    told = {parameter["name"] for parameter in schema["paths"]["/v1/messages"]["post"]["parameters"]}
    assert {"x-akr-objective", "x-akr-provider", "x-akr-team", "x-akr-timeout-ms"} <= told


async def test_health_and_state_tell_what_there_is(service: Running) -> None:
    async with service.operator() as client:
        health = (await client.get("/health")).json()
        live = await client.get("/health/live")
        ready = await client.get("/health/ready")
        summary = (await client.get("/state")).json()
        providers = (await client.get("/api/v1/providers")).json()
    assert (health["status"], health["keys_registered"], health["providers_registered"]) == ("healthy", 3, 2)
    assert (live.status_code, ready.status_code) == (200, 200)
    assert summary["keys"]["total"] == 3
    assert {one["id"]: one["keys"] for one in providers["providers"]} == {"openai": 2, "anthropic": 1}


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(config))


async def test_a_reload_takes_over_all_or_nothing(service_valkey: Server, config: dict[str, Any]) -> None:
    async with running_service(service_valkey.url, config) as service, service.operator() as client:
        path = Path(service.runtime.settings.config or "")
        config["clients"] = [{"name": "app", "token": "a-token-that-is-long"}]
        _write(path, config)
        before = await client.post("/v1/chat/completions", json=BODY)
        reloaded = await client.post("/api/v1/config/reload")
        after = await client.post("/v1/chat/completions", json=BODY)
        _write(path, {"clients": [{"name": "x", "tokken": "y"}]})
        refused = await client.post("/api/v1/config/reload")
        still = await client.post(
            "/v1/chat/completions", json=BODY, headers={"authorization": "Bearer a-token-that-is-long"}
        )
        audit = (await client.get("/api/v1/audit", params={"kind": "config"})).json()["audit"]
    (told,) = audit
    assert (told["actor"], told["role"], told["action"]) == ("first", "admin", "config.reloaded")
    assert told["details"] == {"file": str(path), "changes": {"clients": {"added": ["app"]}}}
    assert (before.status_code, reloaded.status_code, after.status_code) == (200, 200, 401)
    assert reloaded.json()["clients"] == 1
    assert (refused.status_code, still.status_code) == (400, 200)
    assert "clients[0]" in refused.json()["error"]["message"]


async def test_no_output_of_the_service_holds_a_secret(
    service_valkey: Server, config: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    token = "client-token-that-is-secret"
    config["clients"] = [{"name": "app", "token": token}]
    async with running_service(service_valkey.url, config) as service, service.operator() as client:
        told = {"authorization": f"Bearer {token}"}
        answers = [
            await client.post("/v1/chat/completions", json=BODY, headers=told),
            await client.post("/v1/chat/completions", json={**BODY, "model": MATERIAL}, headers=told),
            await client.post("/api/v1/keys", json={"key_material": MATERIAL, "provider_id": "openai"}),
            *[await client.get(path) for path in ("/api/v1/keys", "/state", "/metrics", "/health", "/v1/models")],
        ]
        await service.runtime._access_log.flush()
        log = service.log.read_text()
    output = "".join(answer.text + repr(answer.headers) for answer in answers) + log
    printed = capfd.readouterr()
    for secret in (token, "sk-sim-service-1", "sk-ant-sim-service", MANAGEMENT_KEY):
        assert secret not in output + printed.out + printed.err
