"""The dashboard and the alert rules: every metric and label they name is really told by a service under load."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tools.go_tools import found

from apikeyrouter.infrastructure.observability.metric_names import METRICS, OUTCOMES
from apikeyrouter.simulator import SimulatorProcess
from tests.house.tree import ROOT, read
from tests.servers import running
from tests.service.running import Running, providers_of, running_service, wait_until

RULES = ROOT / "helm/files/alerts.yml"
DASHBOARD = ROOT / "helm/files/dashboard.json"
RULE_TESTS = ROOT / "tests/deploy/alerts_test.yml"
_METRIC = re.compile(r"\b(apikeyrouter_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!=|!~|=)")
_BY = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
FROM_PROMETHEUS = {"job", "instance", "le"}
SIMULATED = {
    "organisations": [{"id": "org", "keys": ["sk-sim-ok", "sk-sim-other"], "output_tokens": 4}],
    "failures": [],
}


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return found


def dashboard() -> list[tuple[str, str]]:
    """Title and expression of every panel's queries."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [expr for _, expr in dashboard()]


@pytest.fixture
def valkey_url() -> Iterator[str]:
    with running() as server:
        yield server.url


async def test_every_metric_that_is_asked_for_is_told_under_load(valkey_url: str) -> None:
    async with SimulatorProcess(SIMULATED) as simulator:
        key = {"provider": "openai", "models": ["gpt-4o-mini"]}
        config = {
            "providers": providers_of(simulator),
            "keys": [
                {"id": "k1", "key": "sk-sim-ok", **key},
                {"id": "k2", "key": "sk-wrong", "provider": "openai", "models": ["gpt-4o"]},
            ],
            "budgets": [{"name": "all", "scope": "global", "limit_usd": 1, "period": "daily", "enforcement": "hard"}],
        }
        async with running_service(valkey_url, config) as service, service.http() as client:
            message = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
            for model, stream in (("gpt-4o-mini", False), ("gpt-4o-mini", True), ("gpt-4o", False), ("none", False)):
                await client.post("/v1/chat/completions", json={"model": model, "stream": stream, **message})

            async def settled() -> bool:
                return 'state="invalid"' in await _metrics(service) and "budget_spent_nanousd{" in await _metrics(
                    service
                )

            await wait_until(settled)
            told = await _metrics(service)
    samples = {re.split(r"[ {]", line)[0] for line in told.splitlines() if line and line[0] != "#"}
    asked = {name for expr in expressions() for name, _ in _METRIC.findall(expr)}
    assert len(asked) > 12
    assert asked - samples == set()
    assert re.search(r'budget_limit_nanousd\{budget="[a-z:]*all"} 1000000000\b', told)
    assert "apikeyrouter_store_up 1" in told


async def _metrics(service: Running) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{service.url}/metrics")).text


async def test_a_store_that_goes_away_is_told(simulated: SimulatorProcess) -> None:
    with running() as server:
        config = {
            "providers": providers_of(simulated),
            "keys": [{"id": "k1", "provider": "openai", "key": "sk-sim-ok"}],
        }
        async with running_service(server.url, config) as service:
            assert "apikeyrouter_store_up 1" in await _metrics(service)
            server.stop()

            async def away() -> bool:
                return "apikeyrouter_store_up 0" in await _metrics(service)

            await wait_until(away)
            told = await _metrics(service)
            async with service.http() as client:
                ready, live = await client.get("/health/ready"), await client.get("/health/live")
    assert "apikeyrouter_held_nanousd" not in told
    assert (ready.status_code, live.status_code) == (503, 200)


@pytest.fixture
async def simulated() -> Any:
    async with SimulatorProcess(SIMULATED) as simulator:
        yield simulator


@pytest.mark.parametrize("expr", expressions())
def test_labels_and_outcomes_that_are_asked_for_exist(expr: str) -> None:
    known = {metric.name: set(metric.labels) for metric in METRICS}
    named: set[str] = set()
    for name, matchers in _METRIC.findall(expr):
        base = name.removesuffix("_bucket") if name.endswith("_bucket") else name
        assert base in known
        named |= known[base]
        assert set(_LABEL.findall(matchers)) - known[base] - FROM_PROMETHEUS == set()
    for group in _BY.findall(expr):
        assert {label.strip() for label in group.split(",")} - named - FROM_PROMETHEUS == set()
    for told in re.findall(r'outcome=~?"([^"]*)"', expr):
        assert set(told.split("|")) - OUTCOMES.keys() == set()


def test_every_alert_is_made_to_fire_and_has_its_paragraph() -> None:
    names = {rule["alert"] for rule in rules()}
    tests = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert names - fired == set()
    page = read("docs/operations.md")
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


PROMTOOL = found("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here; where there is Go, make helm-check builds it")
def test_the_alert_rules_fire_when_they_should() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(RULE_TESTS)], capture_output=True, text=True, check=False, cwd=Path(ROOT)
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_panel_has_a_query_and_its_own_place() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel["targets"]] == []
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in _cells(**panel["gridPos"])]
    assert len(cells) == len(set(cells))


def _cells(x: int, y: int, w: int, h: int) -> list[tuple[int, int]]:
    return [(x + right, y + down) for right in range(w) for down in range(h)]
