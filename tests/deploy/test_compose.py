"""docker-compose.yml, its containers run as processes behind a real HAProxy."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import load_config
from tests.deploy.containers import compose
from tests.deploy.stack import MASTER_KEY, OPERATOR, TOKEN, Stack, nginx_up, stack_up
from tests.house.tree import ROOT

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
BEARER = {"authorization": f"Bearer {TOKEN}"}
IN_USE = {"APIKEYROUTER_ENCRYPTION_KEY": MASTER_KEY}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack_up(
        tmp_path_factory.mktemp("stack"), {"ROUTER_CONFIG": "./deploy/simulated.yaml", "ROUTER_WORKERS": "2"}
    ) as up:
        yield up


def test_the_compose_file_asks_for_the_master_key_and_mounts_what_is_there() -> None:
    with pytest.raises(KeyError, match="APIKEYROUTER_ENCRYPTION_KEY"):
        compose({})
    services = compose(IN_USE)
    mounted = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    ]
    assert [source for source in mounted if not (ROOT / source).is_file()] == []


def test_every_variable_of_the_compose_file_is_in_the_example_environment() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    listed = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used - listed - {"ROUTER_TAG"} == set()


def test_redis_keeps_what_was_spent_and_evicts_nothing() -> None:
    command = " ".join(compose(IN_USE)["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_grace_of_a_router_covers_its_notice_and_its_drain() -> None:
    for name in ("router-1", "router-2"):
        router = compose(IN_USE)[name]
        told = router["environment"]
        seconds = float(told["PROXY_DRAIN_NOTICE_SECONDS"]) + float(told["PROXY_DRAIN_SECONDS"])
        assert float(router["stop_grace_period"].removesuffix("s")) >= seconds + 15
        assert router["read_only"] is True
        assert router["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", ["router.yaml", "simulated.yaml"])
def test_the_configurations_that_come_along_are_valid(name: str) -> None:
    path = ROOT / "deploy" / name
    compiled = compile_config(load_config(path), environ={"APP_TOKEN": TOKEN}, base=path.parent)
    assert [client.name for client in compiled.clients] == ["app"]


def test_the_profiles_are_those_that_the_head_of_the_file_names() -> None:
    profiles = {profile for service in compose(IN_USE).values() for profile in service.get("profiles", [])}
    assert profiles == {"simulated", "mongodb", "monitoring"}
    text = (ROOT / "docker-compose.yml").read_text().partition("name:")[0]
    assert all(f"#   {profile} " in text for profile in profiles)


def test_grafana_and_prometheus_are_given_files_that_say_the_same_names() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    targets = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert {target.partition(":")[0] for target in targets} == {"router-1", "router-2"}
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


@needs_haproxy
def test_an_application_is_served_through_the_balancer_by_both_routers(stack: Stack) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    answers = [httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=BEARER) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(answer.headers["x-request-id"] for answer in answers)
    assert httpx.post(f"{stack.url}/v1/chat/completions", json=body).status_code == 401
    for name in ("router-1", "router-2"):
        assert 'outcome="ok"' in httpx.get(f"{stack.router_url(name)}/metrics").text


@needs_haproxy
@pytest.mark.parametrize("path", ["/metrics", "/api/v1/keys", "/state", "/docs", "/keys", "/openapi.json"])
def test_applications_cannot_reach_what_is_for_operators(stack: Stack, path: str) -> None:
    headers = {"X-API-Key": OPERATOR}
    assert httpx.get(stack.url + path, headers=headers).status_code == 404
    told = httpx.get(stack.operators_url + path, headers=headers)
    assert told.status_code == (405 if path == "/keys" else 200)
    assert "server" not in told.headers


def _guide() -> list[str]:
    """The shell lines of the guide's section on Compose."""
    section = (ROOT / "docs/deployment.md").read_text().partition("## Docker Compose")[2].partition("\n## ")[0]
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).replace("\\\n", " ")
    return [re.sub(r"\s{2,}#.*", "", line) for line in blocks.splitlines()]


@needs_haproxy
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_guides_lines_do_what_it_says(stack: Stack) -> None:
    inside = "docker compose exec router-1 "
    environ = stack.environ("router-1") | {"APIKEYROUTER_URL": stack.router_url("router-1")}
    asked = [line.removeprefix(inside) for line in _guide() if line.startswith(inside)]
    asked += [line.replace("curl -s", "curl -sf") for line in _guide() if line.startswith("curl ")]
    assert len(asked) == 8
    answers = {}
    for line in asked:
        for door, port in (("8000", stack.ports["balancer"]), ("8001", stack.ports["operators"])):
            line = line.replace(f"127.0.0.1:{door}", f"127.0.0.1:{port}")
        line = line.replace("apikeyrouter ", f"{sys.executable} -m apikeyrouter.cli ", 1)
        done = subprocess.run(["sh", "-c", line], env=environ, cwd=stack.folder, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        answers[line] = done.stdout
    told = "\n".join(answers.values())
    for expected in ("akr-", "client:app-1:", "team:engineering:monthly", '"object":"list"', "You said", "alpha-1"):
        assert expected in told, expected


@needs_haproxy
def test_a_router_that_is_gone_costs_its_clients_nothing(stack: Stack) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    stack.processes["router-2"].kill()  # not told: no notice, no drain
    stack.processes.pop("router-2").wait()
    try:
        for _ in range(4):
            assert httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=BEARER).status_code == 200
    finally:
        stack.up("router-2")


@pytest.fixture
def nginx(stack: Stack, tmp_path: Path) -> Iterator[str]:
    with nginx_up(stack, tmp_path) as url:
        yield url


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_passes_streams_on_as_they_come_and_a_router_that_is_gone_costs_nothing(stack: Stack, nginx: str) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
    with httpx.stream("POST", f"{nginx}/v1/chat/completions", json={**body, "stream": True}, headers=BEARER) as answer:
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert pieces[-1].endswith(b"data: [DONE]\n\n")
    assert len(pieces) > 10
    assert httpx.get(f"{nginx}/api/v1/keys", headers={"X-API-Key": OPERATOR}).status_code == 404
    assert httpx.post(f"{nginx}/v1/chat/completions", json=body).status_code == 401
    stack.processes["router-1"].kill()
    stack.processes.pop("router-1").wait()
    try:
        answers = [httpx.post(f"{nginx}/v1/chat/completions", json=body, headers=BEARER) for _ in range(8)]
    finally:
        stack.up("router-1")
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.headers["x-request-id"] for answer in answers}) == 8


def test_the_probe_says_no_where_nothing_listens_and_refuses_what_it_does_not_know() -> None:
    probe = [sys.executable, "-m", "apikeyrouter_proxy.probe"]
    away = subprocess.run([*probe, "live"], env={"PROXY_PORT": "1"}, capture_output=True, text=True, check=False)
    assert (away.returncode, away.stdout.partition(" answer")[0]) == (1, "no")
    assert subprocess.run([*probe, "both"], capture_output=True, check=False).returncode == 2
