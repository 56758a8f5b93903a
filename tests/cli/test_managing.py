"""The commands on a running service, each told apart by what it changes there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.processes import CHAT, clean_environ, command, hear, invoke, on_terminal, running, wait_until

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
        done = invoke(*arguments, cwd=tmp_path, environ=environ, stdin=stdin)
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


def test_many_keys_are_registered_from_a_file_in_any_form(run: Run, tmp_path: Path) -> None:
    (tmp_path / "keys.csv").write_text("key_material,quota_group\nsk-sim-of-a-file-1,g\nsk-sim-of-a-file-2,\n")
    lines = '{"key_material": "sk-sim-of-a-file-1"}\n{"key_material": "two words"}\n'
    tried = json.loads(run("keys", "import", "keys.csv", "--provider", "openai", "--dry-run", "--json").stdout)
    made = json.loads(run("keys", "import", "keys.csv", "--provider", "openai", "--json").stdout)["rows"]
    again = run("keys", "import", "-", "--provider", "openai", stdin=lines, code=1).stdout
    array = run("keys", "import", "-", stdin='[{"key_material": "x"}]', code=1).stdout
    shown = json.loads(run("keys", "show", made[0]["id"], "--json").stdout)
    nothing = run("keys", "import", "-", stdin="nonsense", code=1)
    for row in made:
        run("keys", "revoke", row["id"])
    assert [row["outcome"] for row in tried["rows"]] == [row["outcome"] for row in made] == ["created", "created"]
    assert again.splitlines()[0] == f"1  unchanged  {made[0]['id']}  -"
    assert again.splitlines()[1].startswith("2  refused  -  key material must be printable ASCII")
    assert "provider_id" in array
    assert shown["metadata"] == {"quota_group": "g"}
    assert nothing.stderr.startswith("error: body: must begin with")


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
    wait_until(lambda: run("reservations").stdout == "no reservations\n")
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
    assert "--row" in wrong.stderr
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


def test_what_a_client_and_a_budget_were_made_with_is_changed(run: Run, served: dict[str, Any]) -> None:
    token = run("clients", "create", "poor", "--budget", "0.000001/daily").stdout.strip()
    try:
        before = _ask(served, token)
        run("clients", "update", "poor", "--budget", "5/monthly", "--budget", "1/daily/soft", "--team", "blue")
        after = _ask(served, token)
        held = json.loads(run("budgets", "list", "--scope", "client", "--scope-id", "poor", "--json").stdout)["budgets"]
        run("clients", "update", "poor", "--unset", "budgets", "--unset", "team")
        shown = json.loads(run("clients", "show", "poor", "--json").stdout)
    finally:
        run("clients", "revoke", "poor")
    rules = ("--unpriced", "flat", "--flat", "0.25", "--suspense", "hold", "--timezone", "Asia/Tokyo")
    run("budgets", "create", "--scope", "team", "--scope-id", "blue", "--limit", "5", "--name", "b", *rules)
    made = json.loads(run("budgets", "show", "team:blue:b", "--json").stdout)
    run("budgets", "update", "team:blue:b", "--unpriced", "meter", "--suspense", "charge", "--suspense-after", "60")
    changed = json.loads(run("budgets", "show", "team:blue:b", "--json").stdout)
    run("budgets", "delete", "team:blue:b")
    assert (before, after) == (429, 200)
    assert sorted((one["period"], one["enforcement"], one["limit_usd"]) for one in held) == [
        ("daily", "soft", 1), ("monthly", "hard", 5),
    ]  # fmt: skip
    assert (shown["budget_ids"], shown["team"]) == ([], None)
    asked = ("unpriced", "flat_usd", "suspense", "timezone")
    assert [made[name] for name in asked] == ["flat", 0.25, "hold", "Asia/Tokyo"]
    assert [changed[name] for name in ("unpriced", "suspense", "suspense_after_seconds")] == ["meter", "charge", 60]


def test_keys_policies_and_admin_keys_are_changed(run: Run, tmp_path: Path) -> None:
    added = run("keys", "add", "--provider", "openai", "--weight", "2", "--json", stdin="sk-sim-to-be-changed")
    key_id = json.loads(added.stdout)["id"]
    cool = run("keys", "update", key_id, "--state", "throttled", "--for", "600", "--reason", "too eager").stdout
    run("keys", "update", key_id, "--quota-group", "org-c", "--model", MODEL, "--unset", "weight")
    key = json.loads(run("keys", "show", key_id, "--json").stdout)
    throttled = run("keys", "list", "--state", "throttled").stdout
    run("keys", "revoke", key_id)
    (tmp_path / "policy.yaml").write_text("{name: p, rules: {allowed_providers: [openai]}}")
    run("policies", "create", "policy.yaml")
    run("policies", "update", "p", "-", "--disable", "--priority", "7", stdin="{rules: {denied_models: [x]}}")
    policy = json.loads(run("policies", "show", "p", "--json").stdout)
    wrong = run("policies", "update", "p", "-", stdin="{rules: {nonsense: 1}}", code=1)
    run("policies", "delete", "p")
    admin = run("admin-keys", "create", "bob", "--role", "read").stdout.strip()
    run("admin-keys", "update", "bob", "--role", "operate", "--expires-at", "2030-01-01T00:00:00Z")
    bob = json.loads(run("admin-keys", "show", "bob", "--json").stdout)
    itself = json.loads(run("whoami", "--management-key", admin, "--json").stdout)
    run("admin-keys", "revoke", "bob")
    assert cool == f"{key_id} is throttled\n"
    assert (key["state_reason"], key["metadata"]) == ("too eager", {"quota_group": "org-c", "models": [MODEL]})
    assert key_id in throttled
    assert (policy["enabled"], policy["priority"]) == (False, 7)
    assert "denied_models" in str(policy["rules"])
    assert "nonsense" in wrong.stderr
    assert (bob["role"], bob["expires_at"][:10]) == ("operate", "2030-01-01")
    assert (itself["name"], itself["role"]) == ("bob", "operate")


def test_the_pool_is_looked_at_and_a_request_tried_out(run: Run) -> None:
    assert "openai" in run("pool", "--provider", "openai").stdout
    assert run("pool", "--quota-group", "nobodys").stdout == "no keys\n"
    tried = json.loads(run("dry-run", MODEL, "--objective", "cost", "--json").stdout)
    assert tried["selected_provider_id"] == "openai"
    assert run("dry-run", MODEL).stdout.strip()
    assert "no key serves it" in run("dry-run", "no-such-model", code=1).stderr


def test_limits_that_are_used_are_told_with_a_forecast_where_asked_for(run: Run, served: dict[str, Any]) -> None:
    def forecast() -> bool:
        """Nothing is foreseen of a limit before the worker saw it used for a while."""
        _ask(served, "anybody")
        told = json.loads(run("limits", "list", "--kind", "quota_group", "--forecast", "--json").stdout)["limits"]
        return any(one["forecast"] and one["forecast"]["per_hour"] > 0 for one in told if one["name"])

    wait_until(forecast)
    plain = json.loads(run("limits", "list", "--json").stdout)["limits"]
    assert [one for one in plain if one.get("forecast")] == []


def test_a_configuration_file_is_checked_before_anything_reads_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("keys: [{id: k, provider: openai, key: sk-x, quota_group: nobody-limits}]")
    (tmp_path / "wrong.yaml").write_text("keys: [{id: k, provider: openai, key: 'env:NOT_SET'}]\nbudgets: [{scope: x}]")
    good = run("config", "check", "good.yaml").stdout
    wrong = run("config", "check", "wrong.yaml", code=1).stdout
    told = json.loads(run("config", "check", "wrong.yaml", "--json", code=1).stdout)
    assert good.splitlines()[-1] == "sound: 1 keys, 0 clients, 0 policies"
    assert "error: " in wrong
    assert (told["valid"], len(told["errors"])) == (False, 1)
    assert "missing.yaml" in run("config", "check", "missing.yaml", code=1).stdout
    assert "APIKEYROUTER_CONFIG" in run("config", "check", code=2).stderr


ANSI = re.compile(r"\x1b\[[0-9;]*m")


def test_a_terminal_gets_tables_as_wide_as_it_is_and_a_pipe_plain_lines(
    run: Run, served: dict[str, Any], tmp_path: Path
) -> None:
    name = "an-application-with-quite-a-long-name"
    run("clients", "create", name, "--model", MODEL, "--rpm", "600")
    environ = clean_environ(APIKEYROUTER_URL=served["url"], MANAGEMENT_API_KEY=served["management_key"])
    environ = {key: value for key, value in environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    try:
        shown = {
            width: on_terminal("clients", "list", cwd=tmp_path, environ=environ, width=width) for width in (40, 80, 200)
        }
        piped = run("clients", "list").stdout
        keys = on_terminal("keys", "list", cwd=tmp_path, environ=environ, width=200)
        grey = on_terminal("keys", "list", cwd=tmp_path, environ={**environ, "NO_COLOR": "1"}, width=200)
    finally:
        run("clients", "revoke", name)
    for width, text in shown.items():
        plain = ANSI.sub("", text)
        assert max(map(len, plain.splitlines())) <= width
        assert name in re.sub(r"\s", "", plain), width
        assert {"name", "rpm", "600", "expires", MODEL} <= set(re.split(r"[\s:]+", plain)), width
    assert len(shown[200].splitlines()) < len(shown[40].splitlines())
    assert piped == f"{name}  -  {MODEL}  -  600  -  -  yes  -  api\n"
    assert "\x1b[32mavailable" in keys
    assert "available" in grey
    assert "\x1b[3" not in grey


def test_what_is_wrong_is_one_line_and_a_code(run: Run, tmp_path: Path) -> None:
    nowhere = run("state", "--url", "http://127.0.0.1:1", code=2)
    unreadable = run("policies", "create", str(tmp_path / "nothing.yaml"), code=2)
    wrong = run("budgets", "create", "--limit", "5", "--period", "yearly", code=1)
    usage = run("clients", "create", "x", "--rpm", "0", code=2)
    keyless = command("state", "--url", "http://127.0.0.1:1", cwd=tmp_path, environ=clean_environ())
    elsewhere = run("config", "check", "--url", "x", code=2)
    empty = run("keys", "add", "--provider", "openai", code=2)
    odd = command("state", cwd=tmp_path, environ=clean_environ(MANAGEMENT_API_KEY="é"))
    nonsense = run("state", "--url", "nonsense", code=2)
    assert "no service answers" in nowhere.stderr
    assert (odd.returncode, "the management key must be printable ASCII" in odd.stderr) == (2, True)
    assert "--url must be a URL" in nonsense.stderr
    assert "nothing.yaml" in unreadable.stderr
    assert "yearly" in wrong.stderr or "period" in wrong.stderr
    assert "--rpm" in usage.stderr
    assert (keyless.returncode, "MANAGEMENT_API_KEY" in keyless.stderr) == (2, True)
    assert "standard input" in empty.stderr
    assert "--url" in elsewhere.stderr
    for done in (nowhere, unreadable, wrong, keyless, empty, odd, nonsense):
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


BASH = """
eval "$(_APIKEYROUTER_COMPLETE=source_bash apikeyrouter)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p apikeyrouter | sed 's/.*-F \\([^ ]*\\).*/\\1/') apikeyrouter
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""Presses tab behind the words that it is given."""


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("apikeyrouter cli", {"clients"}, {"keys"}),
        ("apikeyrouter clients ", {"list", "create", "revoke"}, {"serve"}),
        ("apikeyrouter clients cr", {"create"}, {"list"}),
        ("apikeyrouter clients create app-1 --team eng --b", {"--budget"}, {"--rpm"}),
        ("apikeyrouter serve --work", {"--workers"}, {"--port"}),
    ],
)
def test_bash_completes_commands_and_options(
    tmp_path: Path, typed: str, offered: set[str], not_offered: set[str]
) -> None:
    asked = clean_environ() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", *typed.split(" ")],
        cwd=tmp_path, env=asked, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    told = set(done.stdout.split())
    assert offered <= told
    assert not told & not_offered


@pytest.mark.parametrize(("shell", "action"), [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})])
def test_zsh_and_fish_have_their_script_and_its_answers(tmp_path: Path, shell: str, action: dict[str, str]) -> None:
    def told(kind: str, **more: str) -> str:
        asked = clean_environ(_APIKEYROUTER_COMPLETE=f"{kind}_{shell}", **more)
        program = str(Path(sys.executable).with_name("apikeyrouter"))
        return subprocess.run([program], cwd=tmp_path, env=asked, capture_output=True, text=True, timeout=60).stdout

    assert f"_APIKEYROUTER_COMPLETE=complete_{shell}" in told("source")
    answered = told("complete", _TYPER_COMPLETE_ARGS="apikeyrouter clients cr", **action)
    assert "create" in answered
    assert "revoke" not in answered
