"""Whatever the management API can do, a command does: held against the service's own description."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from typer.testing import CliRunner

from apikeyrouter.commands.app import app
from apikeyrouter_proxy.main import create_app

PREFIX = "/api/v1"
POLICY, METADATA, OPTIONS, EXPORT = "policy.yaml", "metadata.yaml", "options.yaml", "export.json"
KEYS = "keys.jsonl"
FILES: dict[str, dict[str, Any]] = {
    POLICY: {
        "name": "p", "id": "p", "type": "routing", "scope": "team", "scope_id": "red", "rules": {"x": 1},
        "enforcement": "soft", "priority": 3, "enabled": True,
    },
    METADATA: {"tier": "pro"},
    OPTIONS: {"organization": "o"},
    EXPORT: {"version": 1},
    KEYS: {"key_material": "sk-x"},
}  # fmt: skip
CLIENT = (
    "--team red --model m --provider openai --rpm 1 --tpm 2 --concurrency 3 --weight 2 --priority batch"
    " --expires-at 2030-01-01T00:00:00Z --budget 5/daily/soft"
)
RULES = "--timezone Europe/Berlin --unpriced flat --flat 0.1 --suspense refund --suspense-after 60"
SERVED = (
    "--base-url http://127.0.0.1:1 --options options.yaml --timeout total_ms=5 --breaker failures=3 --connections-max 9"
)
COMMANDS = {
    "GET /admin-keys": "admin-keys list",
    "POST /admin-keys": "admin-keys create ann --role operate --expires-at 2030-01-01T00:00:00Z",
    "GET /admin-keys/{name}": "admin-keys show ann",
    "PATCH /admin-keys/{name}": "admin-keys update ann --role read --expires-at 2030-01-01T00:00:00Z",
    "DELETE /admin-keys/{name}": "admin-keys revoke ann",
    "POST /admin-keys/{name}/rotate": "admin-keys rotate ann",
    "GET /audit": "audit --kind client --id app --actor ann",
    "GET /audit/ledger": "audit --ledger",
    "GET /budgets": "budgets list --scope team --scope-id red",
    "POST /budgets": f"budgets create --limit 5 --scope team --scope-id red --period daily --soft --name b {RULES}",
    "GET /budgets/{budget_id}": "budgets show team:red:daily",
    "PATCH /budgets/{budget_id}": f"budgets update b --limit 5 --period daily --enforcement soft {RULES}",
    "DELETE /budgets/{budget_id}": "budgets delete b",
    "GET /clients": "clients list --team red",
    "POST /clients": f"clients create app {CLIENT} --disable --token-from-stdin",
    "GET /clients/{name}": "clients show app",
    "PATCH /clients/{name}": f"clients update app {CLIENT} --disable",
    "DELETE /clients/{name}": "clients revoke app",
    "POST /clients/{name}/rotate": "clients rotate app --grace 5 --token-from-stdin",
    "POST /config/reload": "config reload",
    "GET /decisions": "decisions --key k1 --provider openai --only refused",
    "POST /decisions/dry-run": (
        "dry-run m --prompt hi --max-tokens 5 --provider openai --client app --team red --objective cost"
    ),
    "GET /decisions/{request_id}": "explain req_1",
    "GET /export": "config export --secrets",
    "POST /import": "config import export.json --replace --dry-run",
    "GET /findings": "findings",
    "GET /keys": "keys list --provider openai --state available",
    "POST /keys": "keys add --provider openai --quota-group g --model m --weight 2 --metadata metadata.yaml",
    "POST /keys/import": "keys import keys.jsonl --provider openai --dry-run",
    "GET /keys/{key_id}": "keys show k1",
    "PATCH /keys/{key_id}": "keys update k1 --state throttled --for 5 --reason why --quota-group g",
    "DELETE /keys/{key_id}": "keys revoke k1",
    "POST /keys/{key_id}/probe": "keys probe k1",
    "POST /keys/{key_id}/rotate": "keys rotate k1",
    "GET /keys/{key_id}/transitions": "keys history k1 --limit 5",
    "GET /limits": "limits list --kind key --all --forecast",
    "POST /limits": "limits state --quota-group g --key k1 --model m --row rpm=5,kind=fixed",
    "GET /limits/{lane_id}": "limits show g:org-a:*",
    "PATCH /limits/{lane_id}": "limits update g:org-a:* --row rpm=5",
    "DELETE /limits/{lane_id}": "limits delete g:org-a:*",
    "GET /policies": "policies list --scope team",
    "POST /policies": "policies create policy.yaml",
    "POST /policies/dry-run": "policies dry-run policy.yaml --model m",
    "POST /policies/validate": "policies validate policy.yaml",
    "GET /policies/{policy_id}": "policies show p",
    "PATCH /policies/{policy_id}": "policies update p policy.yaml --enable --enforcement soft --priority 3",
    "DELETE /policies/{policy_id}": "policies delete p",
    "GET /pool": "pool --provider openai --quota-group g",
    "GET /providers": "providers list",
    "POST /providers": f"providers add own --adapter generic {SERVED}",
    "GET /providers/{provider_id}": "providers show own",
    "PATCH /providers/{provider_id}": f"providers update own --adapter generic {SERVED}",
    "DELETE /providers/{provider_id}": "providers remove own",
    "GET /reservations": "reservations",
    "GET /state": "state",
    "GET /store": "store",
    "GET /suspense": "suspense list",
    "POST /suspense/{reservation_id}/resolve": "suspense resolve r1 --charge --cost 0.5",
    "GET /transitions": "keys history --limit 5",
    "GET /usage": (
        "usage --by client --since 2030-01-01 --until 2030-01-02 --client app --team red --key k1 --provider openai"
        " --model m --csv"
    ),
    "GET /webhooks": "webhooks list",
    "POST /webhooks": "webhooks create hook https://example.com --event key.out --secret-from-stdin",
    "GET /webhooks/{name}": "webhooks show hook",
    "PATCH /webhooks/{name}": "webhooks update hook --target https://example.com --event key.out --enable",
    "DELETE /webhooks/{name}": "webhooks delete hook",
    "GET /webhooks/{name}/deliveries": "webhooks deliveries hook --limit 5",
    "POST /webhooks/{name}/deliveries/{event_id}/repeat": "webhooks repeat hook e1",
    "POST /webhooks/{name}/test": "webhooks test hook",
    "GET /whoami": "whoami",
    "GET /workers": "workers",
}
"""Endpoint → the command that asks it, with every option that it takes a field or a parameter from."""
NOT_BY_OPTION = {"limit", "cursor", "scope_value"}
"""All pages are read; `scope_value` is another name of `scope_id`."""


READ_FIRST = "GET /keys/{key_id}"
"""What is read before it is changed, so that the listener has an answer."""


@dataclass
class Asked:
    """What was asked of the listener, oldest first: method, path, query and body."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def listener() -> Iterator[Asked]:
    """A listener that writes down what it is asked; what it answers is of no use to a command."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            told = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            query = dict(parse_qsl(told.query))
            asked.requests.append((self.command, unquote(told.path), query, json.loads(body) if body else None))
            read_first = (self.command, told.path) == ("GET", f"{PREFIX}/keys/k1")
            text = b'{"metadata": {}}' if read_first else b'{"error": {"message": "only listening"}}'
            self.send_response(200 if read_first else 404)
            self.send_header("etag", '"1"')
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 (the names that http.server calls)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        asked.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def _operations() -> dict[str, tuple[set[str], set[str]]]:
    """Endpoint → the fields of its body, the parameters of its query."""
    described = create_app({}).openapi()
    schemas = described["components"]["schemas"]
    found = {}
    for path, methods in described["paths"].items():
        if not path.startswith(PREFIX):
            continue
        for method, told in methods.items():
            body = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            of_body = set(schemas.get(body.get("$ref", "").rpartition("/")[2], {}).get("properties", {}))
            of_query = {one["name"] for one in told.get("parameters", []) if one["in"] == "query"}
            found[f"{method.upper()} {path.removeprefix(PREFIX)}"] = (of_body, of_query)
    return found


OPERATIONS = _operations()


def test_every_endpoint_of_management_has_a_command() -> None:
    assert set(COMMANDS) == set(OPERATIONS)


@pytest.mark.parametrize("endpoint", sorted(COMMANDS))
def test_a_command_asks_its_endpoint_with_every_field_and_parameter_there_is(
    endpoint: str, listener: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, told in FILES.items():
        (tmp_path / name).write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    listener.requests.clear()
    words = [*COMMANDS[endpoint].split(), "--json", "--url", listener.url, "--management-key", "k"]
    done = CliRunner().invoke(app, words, input="a-secret-of-standard-input\n")
    method, _, path = endpoint.partition(" ")
    asked = listener.requests[-1]
    assert asked[0] == method, done.output
    assert re.fullmatch(PREFIX + re.sub(r"\{\w+\}", "[^/]+", path), asked[1])
    fields, parameters = OPERATIONS[endpoint]
    assert fields | parameters <= NOT_BY_OPTION | set(asked[3] or {}) | set(asked[2])
    if endpoint != READ_FIRST:
        assert (done.exit_code, done.stderr) == (1, "error: only listening\n")
