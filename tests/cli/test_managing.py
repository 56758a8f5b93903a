"""The commands on a running service, each told apart by what it changes there."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.processes import CHAT, clean_environ, command, hear, running

MODEL = str(CHAT["model"])
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a quickstart announced that runs while this file's tests ask it."""
    arguments = ["-m", "apikeyrouter.cli", "quickstart", "--port", "0", "--json"]
    with running(arguments, cwd=tmp_path_factory.mktemp("quickstart")) as process:
        yield hear(process, "listening")


@pytest.fixture
def run(served: dict[str, Any], tmp_path: Path) -> Run:
    """Run a command as an operator has it set up: where the service is, and the key, in the environment."""
    environ = clean_environ(APIKEYROUTER_URL=served["url"], MANAGEMENT_API_KEY=served["management_key"])

    def run(*arguments: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = command(*arguments, cwd=tmp_path, environ=environ, stdin=stdin)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


def _ask(served: dict[str, Any], token: str, request_id: str = "asked") -> int:
    headers = {"authorization": f"Bearer {token}", "x-request-id": request_id}
    return httpx.post(f"{served['url']}/v1/chat/completions", json=CHAT, headers=headers, timeout=60).status_code


def test_a_client_lives_on_the_command_line(run: Run, served: dict[str, Any]) -> None:
    token = run("clients", "create", "app", "--rpm", "600", "--budget", "5/daily", "--model", MODEL).stdout.strip()
    try:
        assert _ask(served, token, "by-the-app") == 200
        assert _ask(served, "wrong") == 401
        listed = json.loads(run("clients", "list", "--json").stdout)["clients"]
        run("clients", "update", "app", "--unset", "rpm", "--weight", "2", "--disable")
        refused = _ask(served, token)
        run("clients", "update", "app", "--enable")
        renewed = run("clients", "rotate", "app").stdout.strip()
        shown = json.loads(run("clients", "show", "app", "--json").stdout)
        statuses = [_ask(served, token), _ask(served, renewed)]
        told = run("explain", "by-the-app").stdout
        budgets = run("budgets", "list").stdout
        again = run("clients", "create", "app", "--rpm", "5", code=1)
    finally:
        run("clients", "revoke", "app")
    gone = run("clients", "show", "app", code=1)
    assert [(one["name"], one["rpm"], one["models"]) for one in listed] == [("app", 600, [MODEL])]
    assert (refused, statuses) == (403, [401, 200])
    assert (shown["rpm"], shown["weight"], shown["enabled"]) == (None, 2.0, True)
    assert MODEL in told
    assert "client:app:client-hard-daily" in budgets
    assert "other settings" in again.stderr
    assert "no client 'app'" in gone.stderr
    audit = json.loads(run("audit", "--kind", "client", "--json").stdout)["audit"]
    assert [one["action"] for one in audit[:5]] == [
        "client.deleted", "client.rotated", "client.updated", "client.updated", "client.created",
    ]  # fmt: skip


def test_keys_are_taken_out_brought_back_rotated_and_revoked(run: Run) -> None:
    key_id = json.loads(run("keys", "add", "--provider", "openai", "--json", stdin="sk-sim-of-this-test").stdout)["id"]
    grouped = ("--quota-group", "org-q", "--model", MODEL, "--weight", "2", "--json")
    again = json.loads(run("keys", "add", "--provider", "openai", *grouped, stdin="sk-sim-of-this-test").stdout)
    assert (again["id"], again["metadata"]) == (key_id, {"quota_group": "org-q", "models": [MODEL], "weight": 2.0})
    states = [
        run("keys", "disable", key_id, "--reason", "on holiday").stdout,
        run("keys", "enable", key_id).stdout,
    ]
    run("keys", "rotate", key_id, stdin="sk-sim-of-this-test-2")
    history = json.loads(run("keys", "history", key_id, "--json").stdout)["transitions"]
    probed = run("keys", "probe", key_id, code=1).stdout
    run("keys", "revoke", key_id)
    missing = run("keys", "show", key_id, code=1)
    assert states == [f"{key_id} is disabled\n", f"{key_id} is available\n"]
    assert "on holiday" in [one["reason"] for one in history]
    assert key_id in probed
    assert f"no key '{key_id}'" in missing.stderr


def test_budgets_and_policies_are_made_changed_and_removed(run: Run, tmp_path: Path) -> None:
    made = run("budgets", "create", "--scope", "team", "--scope-id", "red", "--limit", "5", "--period", "daily").stdout
    run("budgets", "update", "team:red:daily", "--limit", "7.5")
    shown = json.loads(run("budgets", "show", "team:red:daily", "--json").stdout)
    run("budgets", "delete", "team:red:daily")
    policy = tmp_path / "policy.yaml"
    policy.write_text("{name: one provider, scope: team, scope_id: red, rules: {allowed_providers: [anthropic]}}")
    assert run("policies", "validate", str(policy)).stdout == "sound\n"
    assert "nonsense" in run("policies", "validate", "-", stdin="{name: x, rules: {nonsense: 1}}", code=1).stdout
    impact = run("policies", "dry-run", str(policy), "--model", MODEL, "--team", "red").stdout
    run("policies", "create", str(policy))
    listed = run("policies", "list").stdout
    run("policies", "delete", "one-provider")
    assert (made.strip(), shown["limit_usd"]) == ("team:red:daily", 7.5)
    assert "keys_after: -" in impact
    assert "one-provider" in listed
    assert run("policies", "list").stdout == "no policies\n"


def test_an_admin_key_of_a_small_role_is_refused_what_is_above_it(run: Run, served: dict[str, Any]) -> None:
    key = run("admin-keys", "create", "looker", "--role", "read").stdout.strip()
    assert run("state", "--management-key", key).stdout.startswith("keys ")
    refused = run("keys", "disable", "k1", "--management-key", key, code=2)
    run("admin-keys", "revoke", "looker")
    revoked = run("state", "--management-key", key, code=2)
    assert "operate" in refused.stderr
    assert "401" in revoked.stderr
    assert key not in refused.stderr + revoked.stderr


def test_what_there_is_to_look_at(run: Run, served: dict[str, Any]) -> None:
    _ask(served, "anybody", "looked-at")
    assert "openai" in run("providers", "list").stdout
    assert "looked-at" in run("decisions").stdout
    assert run("reservations").stdout == "no reservations\n"
    assert run("suspense", "list").stdout == "no suspense\n"
    assert "no reservation 00" in run("suspense", "resolve", "00", "--refund", code=1).stderr
    assert run("audit", "--ledger").stdout.startswith("the books agree")
    limits = json.loads(run("limits", "list", "--json").stdout)["limits"]
    assert all(limit["used"] <= limit["capacity"] for limit in limits)
    usage = json.loads(run("usage", "--by", "model", "--json").stdout)["usage"]
    assert sum(row["requests"] for row in usage) > 0
    nobody = json.loads(run("usage", "--model", "nobody-asked-for", "--key", "k1", "--json").stdout)["usage"]
    assert nobody == []
    assert run("usage", "--csv").stdout.startswith("day,requests,")
    assert run("config", "reload").stdout.startswith("taken over: ")


def test_providers_and_limits_are_stated_changed_and_removed(run: Run) -> None:
    added = run("providers", "add", "mine", "--adapter", "vllm", "--base-url", "https://93.184.216.34/v1").stdout
    run("providers", "update", "mine", "--options", "-", stdin="{models: [tiny]}")
    shown = json.loads(run("providers", "show", "mine", "--json").stdout)
    inside = run("providers", "update", "mine", "--base-url", "http://10.0.0.1/v1", code=1)
    lane = run("limits", "state", "--quota-group", "org-z", "--row", "rpm=500,tpm=200000", "--row", "concurrency=9")
    run("limits", "update", lane.stdout.strip(), "--row", "rpd=1500,kind=calendar,timezone=America/Los_Angeles")
    limits = json.loads(run("limits", "show", "g:org-z:*", "--json").stdout)
    wrong = run("limits", "state", "--key", "k1", "--row", "rpm=many", code=2)
    run("limits", "delete", "g:org-z:*")
    run("providers", "remove", "mine")
    gone = run("providers", "show", "mine", code=1)
    assert "keys add --provider mine" in added
    assert (shown["adapter"], shown["options"], shown["source"]) == ("vllm", {"models": ["tiny"]}, "api")
    assert "private address" in inside.stderr
    assert (limits["source"], [one["capacity"] for one in limits["limits"]]) == ("api", [1500])
    assert "rpm=500" in wrong.stderr
    assert "no provider 'mine'" in gone.stderr


def test_a_webhook_and_a_backup_from_the_command_line(run: Run, tmp_path: Path) -> None:
    secret = run("webhooks", "create", "pager", "https://example.com/hook", "--event", "key.out").stdout.strip()
    refused = run("webhooks", "create", "inside", "http://10.0.0.1/", code=1)
    run("webhooks", "update", "pager", "--disable")
    off = json.loads(run("webhooks", "show", "pager", "--json").stdout)
    nothing = run("webhooks", "deliveries", "pager").stdout
    unknown = run("webhooks", "repeat", "pager", "evt_0", code=1)
    backup = run("config", "export", "--secrets").stdout
    (tmp_path / "backup.json").write_text(backup)
    run("webhooks", "delete", "pager")
    tried = run("config", "import", "backup.json", "--dry-run").stdout
    run("config", "import", "backup.json")
    listed = run("webhooks", "list").stdout
    run("webhooks", "delete", "pager")
    assert (off["enabled"], nothing, "evt_0" in unknown.stderr) == (False, "no deliveries\n", True)
    assert secret.startswith("whsec_")
    assert secret not in backup + listed
    assert "private address" in refused.stderr
    assert '"webhook": 1' in tried
    assert "https://example.com/hook" in listed


def test_what_is_wrong_is_one_line_and_a_code(run: Run, tmp_path: Path) -> None:
    nowhere = run("state", "--url", "http://127.0.0.1:1", code=2)
    unreadable = run("policies", "create", str(tmp_path / "nothing.yaml"), code=2)
    wrong = run("budgets", "create", "--limit", "-5", code=1)
    usage = run("clients", "create", "x", "--rpm", "0", code=2)
    keyless = command("state", "--url", "http://127.0.0.1:1", cwd=tmp_path, environ=clean_environ())
    empty = run("keys", "add", "--provider", "openai", code=2)
    assert "no service answers" in nowhere.stderr
    assert "nothing.yaml" in unreadable.stderr
    assert "limit_usd" in wrong.stderr
    assert "--rpm" in usage.stderr
    assert (keyless.returncode, "MANAGEMENT_API_KEY" in keyless.stderr) == (2, True)
    assert "standard input" in empty.stderr
    for done in (nowhere, unreadable, wrong, keyless, empty):
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_the_shell_completes_commands(tmp_path: Path) -> None:
    asked = clean_environ(_APIKEYROUTER_COMPLETE="complete_bash", COMP_WORDS="apikeyrouter cli", COMP_CWORD="1")
    done = subprocess.run(
        ["apikeyrouter"], cwd=tmp_path, env=asked, capture_output=True, text=True, check=False, timeout=60,
        executable=str(Path(__import__("sys").executable).with_name("apikeyrouter")),
    )  # fmt: skip
    assert "clients" in done.stdout
