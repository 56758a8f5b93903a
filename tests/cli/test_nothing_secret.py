"""The service as processes, and the command line: whatever they print, answer or log is searched for secrets."""

import concurrent.futures
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cli.processes import clean_environ, command, hear, running

FRAGMENT = 8
"""Characters of a secret that give it away."""
SECRETS = {
    "provider key": "sk-proj-8hQ2vN5xT1rW9zB4", "another's key": "sk-ant-api03-Jd7Lw2XcVb9Nm",
    "key of no make": "zebra.crossing/4711-Qw8ZxTv", "organisation": "org-Xw7QpLm2ZtKd", "token": "akr-W4xEdR9uTqLmPo",
    "management key": "mgmt-Hy6TgB3nUjM8kI", "master key": "cGxhbnRlZC1tYXN0ZXIta2V5LW9mLTMyLWJ5dGVzISE=",
    "password of Redis": "pw-Fv5RcX2zAq1S",
}  # fmt: skip
SIMULATED = {
    "organisations": [
        {"id": SECRETS["organisation"], "keys": [SECRETS["provider key"]], "output_tokens": 8},
        {"id": "org-k", "dialect": "anthropic", "keys": [SECRETS["another's key"]], "output_tokens": 8},
    ]
}
FAILURES = ["", "context_length_exceeded", "error_mid_stream", "malformed_json", "rate_limit_requests", "disconnect",
            "server_error", "insufficient_quota", "invalid_api_key"]  # fmt: skip
ERR_TO_FILE = "import os, sys, runpy; os.dup2(os.open('err.log', os.O_WRONLY | os.O_CREAT), 2); " \
    "sys.argv = ['apikeyrouter', *sys.argv[1:]]; runpy.run_module('apikeyrouter.cli', run_name='__main__')"  # fmt: skip


def leaks(told: Mapping[str, str]) -> set[tuple[str, str]]:
    """Where which secret shows."""
    found = set()
    for name, whole in SECRETS.items():
        secret = whole.removeprefix("sk-proj-").removeprefix("sk-ant-api03-").removeprefix("org-")
        fragments = [secret[at : at + FRAGMENT] for at in range(len(secret) - FRAGMENT + 1)]
        found |= {(where, name) for where, text in told.items() if any(each in text for each in fragments)}
    return found


def configuration(directory: Path, simulator_url: str) -> Path:
    """A file whose secrets stand in it and in the environment."""
    path = directory / "router.yaml"
    sections: dict[str, Any] = {
        "providers": {
            "openai": {"adapter": "openai", "base_url": f"{simulator_url}/v1"},
            "anthropic": {"adapter": "anthropic", "base_url": simulator_url},
        },
        "keys": [
            {"id": "k1", "provider": "openai", "key": SECRETS["provider key"], "models": ["gpt-4o-mini"]},
            {"id": "k2", "provider": "anthropic", "key": "env:PLANTED", "models": ["claude-haiku-4-5"]},
        ],
        "clients": [{"name": "app", "token": SECRETS["token"], "team": "eng"}],
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def traffic(url: str, simulator_url: str, told: dict[str, str]) -> None:
    """Requests of every kind, most of which fail, with the right token, a wrong one, and none."""
    answers = []
    for failure in FAILURES:
        rules = [{"name": failure}] if failure else []
        httpx.post(f"{simulator_url}/_sim/control", json={"clear_failures": True, "failures": rules})
        for stream in (False, True):
            for path, model in (("/v1/chat/completions", "gpt-4o-mini"), ("/v1/messages", "claude-haiku-4-5")):
                body: dict[str, Any] = {"model": model, "stream": stream, "max_tokens": 8}
                body["messages"] = [{"role": "user", "content": "hi"}]
                for token in (SECRETS["token"], SECRETS["token"][:-4] + "oops"):
                    answer = httpx.post(
                        url + path + "?key=" + token,
                        json=body,
                        headers={"authorization": f"Bearer {token}"},
                        timeout=60,
                    )
                    answers.append(f"{answer.status_code} {dict(answer.headers)} {answer.text}")
    httpx.post(f"{simulator_url}/_sim/control", json={"clear_failures": True})
    told["answers"] = "\n".join(answers)
    assert {"200", "400", "401"} < {answer[:3] for answer in answers}


def looked_at(url: str, told: dict[str, str]) -> None:
    """Whatever can be read of a running service, as an operator and as nobody."""
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/state", "/api/v1/keys",
                 "/api/v1/keys/k1", "/v1/models"):  # fmt: skip
        for who, headers in (("operator", {"X-API-Key": SECRETS["management key"]}), ("nobody", {})):
            answer = httpx.get(url + path, headers=headers, timeout=60)
            told[f"{path} for {who}"] = f"{answer.status_code} {dict(answer.headers)} {answer.text}"
    bad = {"key_material": SECRETS["key of no make"], "provider_id": "nobody", "metadata": {"weight": -1}}
    for body in (bad, {**bad, "provider_id": "openai"}, {"provider_id": SECRETS["key of no make"]}):
        answer = httpx.post(f"{url}/api/v1/keys", json=body, headers={"X-API-Key": SECRETS["management key"]})
        if "key_material" in body:
            told[f"POST {body['provider_id']}"] = answer.text
        assert answer.status_code in (400, 422)


def commands(directory: Path, url: str, config: Path, told: dict[str, str]) -> None:
    """The command line's outputs, right and wrong."""
    key, wrong = ["--management-key", SECRETS["management key"]], ["--management-key", SECRETS["management key"] + "x"]
    secretive = f"redis://app:{SECRETS['password of Redis']}@127.0.0.1:1/0"
    runs = [
        ["keys", "list", "--url", url, *key], ["keys", "list", "--json", "--url", url, *key],
        ["keys", "list", "--url", url, *wrong], ["keys", "add", "--provider", "nobody", "--url", url, *key],
        ["doctor", "--config", str(config), "--redis-url", secretive],
        ["doctor", "--config", str(config), "--json"],
        ["serve", "--config", str(config), "--redis-url", secretive, "--port", "0"],
    ]  # fmt: skip
    (directory / "wrong.yaml").write_text(config.read_text().replace("provider: openai", "provider: 7"))
    (directory / "worse.yaml").write_text(config.read_text().replace("token:", "tokn:"))
    (directory / "bad.yaml").write_text(config.read_text() + "\n  - : [")
    runs += [["serve", "--config", name, "--port", "0"] for name in ("wrong.yaml", "worse.yaml", "bad.yaml")]

    def run(arguments: list[str]) -> tuple[str, str]:
        done = command(*arguments, cwd=directory, environ=environ_of(), stdin=SECRETS["key of no make"] + "\n")
        return " ".join(arguments[:2]) + f" {arguments[-1][:6]}", done.stdout + done.stderr

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, text in pool.map(run, runs):
            assert text, name
            assert "Traceback" not in text, text
            told[name] = text


def environ_of() -> dict[str, str]:
    """The environment of a deployment."""
    return clean_environ(
        MANAGEMENT_API_KEY=SECRETS["management key"], APIKEYROUTER_ENCRYPTION_KEY=SECRETS["master key"],
        PLANTED=SECRETS["another's key"], LOG_LEVEL="DEBUG",
    )  # fmt: skip


def test_nothing_that_the_service_and_its_commands_tell_shows_a_secret(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    (tmp_path / "simulated.yaml").write_text(yaml.safe_dump(SIMULATED))
    with running(
        ["-m", "apikeyrouter.cli", "simulate", "--port", "0", "--config", "simulated.yaml"], cwd=tmp_path
    ) as it:
        assert it.stdout is not None
        simulator_url = it.stdout.readline().removeprefix("ready ").strip()
        config = configuration(tmp_path, simulator_url)
        arguments = ["serve", "--host", "127.0.0.1", "--port", "0", "--workers", "2", "--json"]
        arguments += ["--config", str(config), "--data-dir", str(tmp_path / "data")]
        with running(["-c", ERR_TO_FILE, *arguments], cwd=tmp_path, environ=environ_of()) as process:
            announced = hear(process, "listening")
            told["announcement"] = json.dumps(announced)
            traffic(announced["url"], simulator_url, told)
            looked_at(announced["url"], told)
            commands(tmp_path, announced["url"], config, told)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(60) == 0
            assert process.stdout is not None
            told["standard output"] = process.stdout.read()
        told["standard error"] = (tmp_path / "err.log").read_text()
    assert "k1" in told["standard output"] + told["standard error"]
    told["what is kept"] = "".join(
        each.read_bytes().decode("latin-1")
        for each in (tmp_path / "data").rglob("*")
        if each.is_file() and "master" not in each.name
    )
    assert leaks(told) == set()


def test_the_search_would_find_a_secret() -> None:
    assert leaks({"here": "…" + SECRETS["token"][5:14] + "…", "there": "nothing"}) == {("here", "token")}
