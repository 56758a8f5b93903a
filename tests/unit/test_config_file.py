"""The configuration file: what it takes, what it refuses, and how it says so."""

from pathlib import Path

import pytest

from apikeyrouter.domain.models.accounting import SuspenseRule
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.config_file import ConfigFile, load_config, parse_config

DOCUMENTED = """
providers:
  openai: {adapter: openai, base_url: "http://127.0.0.1:9901/v1"}
models:
  fast: [{provider: openai, model: gpt-4o-mini}, {provider: anthropic, model: claude-haiku-5}]
keys:
  - {id: k1, provider: openai, key: "env:OPENAI_KEY_1", quota_group: org-a, models: [gpt-4o-mini], weight: 1,
     metadata: {tier: pro}}
limits:
  - {quota_group: org-a, models: [gpt-4o-mini], rpm: 500, tpm: 200000, rpd: 10000, concurrency: 50,
     on_store_loss: closed}
  - {quota_group: org-g, rpd: 1500, kind: calendar, timezone: America/Los_Angeles}
  - {quota_group: org-x, rpm: 60, kind: bucket, burst: 10, headroom: 0.02}
  - {key: k1, concurrency: 10}
prices:
  - {model: gpt-4o-mini, input: 0.15, output: 0.60, cached_input: 0.075}
budgets:
  - {name: all, scope: global, limit_usd: 100, period: daily, enforcement: hard, timezone: UTC, unpriced: deny,
     suspense: charge_after_1h}
  - {name: eng, scope: team, scope_id: engineering, limit_usd: 20, period: monthly, enforcement: soft}
clients:
  - {name: app-1, token: "env:APP1_TOKEN", team: engineering, models: ["gpt-4o-mini", fast], rpm: 600, weight: 2}
policies: []
routing: {objective: fairness, attempts_max: 3, wait_max_ms: 0, translate: false, lease_ms: 30000}
"""


def test_the_documented_file_is_read() -> None:
    config = parse_config(DOCUMENTED)
    assert config.keys[0].quota_group == "org-a"
    assert config.limits[2].burst == 10
    assert config.budgets[0].suspense.rule is SuspenseRule.CHARGE
    assert config.clients[0].models == ["gpt-4o-mini", "fast"]


@pytest.mark.parametrize("text", ["keys:\n", "{}"])
def test_an_empty_section_is_a_configuration(text: str) -> None:
    assert parse_config(text) == ConfigFile()


@pytest.mark.parametrize("text", ["", "---", "# nothing\n"])
def test_a_file_that_says_nothing_is_refused(text: str) -> None:
    """It may be one that somebody is about to write: taken at its word, it would take budgets and clients away."""
    with pytest.raises(ConfigurationError, match="is empty"):
        parse_config(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1", "must be a mapping of sections"),
        ("1: 2", "must be a mapping of sections"),
        ("keys: [", r"line \d, column"),
        ("keys: 3", "keys: must be a list"),
        ("keys: [3]", r"keys\[0\]: must be a mapping"),
        ("kyes: []", "kyes: is not a known field"),
        ("keys: [{provider: a, provider: b}]", "'provider' is written twice"),
        ("keys: &a []\nlimits: *a", "line 2, column 9: aliases are not allowed"),
        ("keys: !!python/object/apply:os.getcwd []", "line 1"),
        ("keys: [{provider: openai}]", r"keys\[0\].key: is required"),
        ("keys: [{provider: openai, key: 123}]", r"keys\[0\].key: must be env:NAME"),
        ("keys: [{provider: openai, key: x, id: 'a:b'}]", r"keys\[0\].id: must have no blanks and no colons"),
        ("keys: [{provider: openai, key: x, weight: 0}]", r"keys\[0\].weight: must be above 0"),
        ("keys: [{provider: openai, key: x, weight: .inf}]", r"keys\[0\].weight: must be a finite number"),
        ("keys: [{provider: openai, key: x, models: gpt}]", r"keys\[0\].models: must be a list"),
        ("providers: {a: {adapter: openai, base_url: 'ftp://x'}}", "providers.a.base_url: must be a URL"),
        ("providers: {a: {adapter: openai, base_url: 'http://'}}", "providers.a.base_url: must be a URL"),
        ("providers: {a: {}}", "providers.a.adapter: is required"),
        ("models: {fast: [{provider: openai}]}", r"models.fast\[0\].model: is required"),
        ("limits: [{quota_group: a, rpm: 1}, {quota_group: a, tpm: 1}, {quota_group: a, rpm: 0}]",
         r"limits\[2\].rpm: must be a positive integer"),
        ("limits: [{quota_group: a, rpm: -1}]", r"limits\[0\].rpm: must be a positive integer"),
        ("limits: [{quota_group: a, tpm: 9007199254740992}]", r"limits\[0\].tpm: must be at most"),
        ("limits: [{rpm: 1}]", r"limits\[0\]: needs a quota_group or a key"),
        ("limits: [{quota_group: a, key: b, rpm: 1}]", r"limits\[0\]: needs a quota_group or a key"),
        ("limits: [{key: b, models: [m], rpm: 1}]", r"limits\[0\].models: goes with a quota_group"),
        ("limits: [{quota_group: a, models: [], rpm: 1}]", r"limits\[0\].models: must have at least 1"),
        ("limits: [{quota_group: a, rpm: 1, set_aside: 0.1}]", r"limits\[0\].set_aside: goes with on_store_loss"),
        ("limits: [{key: a, rpm: 1, on_store_loss: bounded, set_aside: 0}]", r"limits\[0\].set_aside: goes with"),
        ("limits: [{key: a, rpm: 1, on_store_loss: bounded, set_aside: 0.6}]", r"limits\[0\].set_aside: must be"),
        ("limits: [{key: a, spend_usd: 1, on_store_loss: bounded}]", "goes with a spend_period of a day at most"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily, set_aside: 0.1}]",
         r"budgets\[0\].set_aside: goes with enforcement: hard and on_store_loss: bounded"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily, enforcement: soft, on_store_loss: bounded,"
         " set_aside: 0.1}]", r"budgets\[0\].set_aside: goes with enforcement: hard"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily, on_store_loss: bounded, set_aside: 0}]",
         r"budgets\[0\].set_aside: goes with"),
        ("limits: [{quota_group: a, rpm: 1, on_store_loss: open}]", r"limits\[0\].on_store_loss: must be one of"),
        ("prices: [{model: m, input: -1, output: 1}]", r"prices\[0\].input: must be a finite number, not negative"),
        ("prices: [{model: m, input: .nan, output: 1}]", r"prices\[0\].input: must be a finite number"),
        ("prices: [{model: m, input: '1', output: 1}]", r"prices\[0\].input: must be a number"),
        ("prices: [{model: m, input: 1}]", r"prices\[0\].output: is required"),
        ("budgets: [{name: b, scope: galaxy, limit_usd: 1, period: daily}]", r"budgets\[0\].scope: must be one of"),
        ("budgets: [{name: b, scope: team, limit_usd: 1, period: daily}]", r"budgets\[0\].scope_id: is required"),
        ("budgets: [{name: b, scope: global, scope_id: x, limit_usd: 1, period: daily}]", "does not go with"),
        ("budgets: [{name: b, scope: global, limit_usd: 0, period: daily}]", r"budgets\[0\].limit_usd: must be a pos"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: yearly}]", r"budgets\[0\].period: must be one of"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily, unpriced: flat}]", "flat_usd: goes with"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily, suspense: later}]", "suspense: must be hold"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily, timezone: Moon}]", "not a known time zone"),
        ("clients: [{name: a}]", r"clients\[0\].token: is required"),
        ("clients: [{name: a, token: ''}]", r"clients\[0\].token: must be env:NAME"),
        ("policies: [{name: p, scope: team}]", r"policies\[0\].scope_id: is required"),
        ("routing: {objective: luck}", "routing.objective: must be one of"),
        ("routing: {objective: {weights: {cost: -1}}}", "routing.objective.weights.cost: must be"),
        ("routing: {objective: [cost]}", "routing.objective: must be a RoutingObjective or a mapping"),
        ("routing: {quality: {gpt-4o: 2}}", "routing.quality.gpt-4o: must be at most 1"),
        ("routing: {attempts_max: 0}", "routing.attempts_max: must be at least 1"),
        ("routing: {translate: maybe}", "routing.translate: must be true or false"),
        ("routing: {lease_ms: 10}", "routing.lease_ms: must be at least 1000"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_the_path(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse_config(text)


def test_all_complaints_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config("keys: [{provider: openai}]\nrouting: {lease_ms: 1}\nzork: 1")
    assert [error.partition(":")[0] for error in caught.value.errors] == ["keys[0].key", "routing.lease_ms", "zork"]


def test_no_complaint_shows_a_secret() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config("keys: [{provider: '', key: sk-hush}]\nclients: [{name: 7, token: hush-hush}]")
    assert "hush" not in str(caught.value) + repr(caught.value.__cause__) + str(caught.value.__cause__)


def test_secrets_are_not_printed() -> None:
    assert "sk-hush" not in repr(parse_config("keys: [{provider: openai, key: sk-hush}]"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: cannot be read"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_file_is_named_in_its_complaints(tmp_path: Path) -> None:
    (tmp_path / "akr.yaml").write_text("keys: 3")
    with pytest.raises(ConfigurationError, match=r"akr\.yaml is not valid"):
        load_config(tmp_path / "akr.yaml")
    (tmp_path / "akr.yaml").write_bytes(b"keys: \xff\xfe")
    with pytest.raises(ConfigurationError, match=r"akr\.yaml"):
        load_config(tmp_path / "akr.yaml")
