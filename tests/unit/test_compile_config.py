"""What a configuration file means."""

from decimal import Decimal
from hashlib import sha256
from pathlib import Path

import pytest

from apikeyrouter.domain.components.key_identity import derive_key_id
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.models.accounting import LimitKind, Metric, Period, SuspenseRule, UnpricedRule
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig, Target
from apikeyrouter.infrastructure.config.config_file import parse_config
from apikeyrouter.infrastructure.ledger.encoding import lane_entry, scope_entry
from tests.unit.test_config_file import DOCUMENTED

SECRETS = {"OPENAI_KEY_1": "sk-1", "APP1_TOKEN": "token-of-sixteen-or-more"}


def compiled(text: str, base: str | Path = ".") -> CompiledConfig:
    return compile_config(parse_config(text), environ=SECRETS, base=base)


def errors(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        compiled(text)
    return caught.value.errors


def test_the_documented_file_compiles_to_lanes_and_scopes_that_the_ledger_takes() -> None:
    config = compiled(DOCUMENTED)
    assert [lane.id for lane in config.lanes] == [
        "p:openai", "p:anthropic", "k:k1", "c:app-1", "g:org-a:gpt-4o-mini", "g:org-g:*", "g:org-x:*",
    ]  # fmt: skip
    assert [scope.id for scope in config.scopes] == ["global:all", "team:engineering:eng"]
    for lane in config.lanes:
        lane_entry(lane)
    for scope in config.scopes:
        scope_entry(scope)


def test_limits_of_a_group_take_its_providers_kind() -> None:
    config = compiled(DOCUMENTED)
    lane = next(lane for lane in config.lanes if lane.id == "g:org-a:gpt-4o-mini")
    assert [(limit.name, limit.kind, limit.amount) for limit in lane.limits] == [
        ("rpm", LimitKind.BUCKET, 500),
        ("tpm", LimitKind.BUCKET, 200_000),
        ("rpd", LimitKind.BUCKET, 10_000),
        ("concurrency", LimitKind.CONCURRENCY, 50),
    ]
    assert lane.fair


def test_a_key_has_a_breaker_and_its_own_caps() -> None:
    lane = next(lane for lane in compiled(DOCUMENTED).lanes if lane.id == "k:k1")
    assert lane.breaker is not None
    assert [(limit.metric, limit.amount) for limit in lane.limits] == [(Metric.CONCURRENCY, 10)]


def test_caps_in_a_keys_metadata_go_to_its_own_lane() -> None:
    config = compiled(
        "keys: [{id: k1, provider: openai, key: sk-1, metadata: {limits: {rpm: 5}, weight: 3, models: [m]}}]"
    )
    lane = next(lane for lane in config.lanes if lane.id == "k:k1")
    assert [(limit.name, limit.amount) for limit in lane.limits] == [("rpm", 5)]
    assert (config.keys[0].weight, config.keys[0].models) == (3.0, frozenset({"m"}))


def test_budgets_become_scopes_in_nanodollars() -> None:
    every, team = compiled(DOCUMENTED).scopes
    assert (every.limit_nanousd, every.hard, every.period) == (100 * 10**9, True, Period.DAILY)
    assert (every.suspense, every.suspense_after_us) == (SuspenseRule.CHARGE, 3_600_000_000)
    assert (team.hard, team.unpriced, team.period) == (False, UnpricedRule.METER, Period.MONTHLY)


def test_the_lanes_of_a_candidate_are_key_group_provider_and_client() -> None:
    config = compiled(DOCUMENTED)
    (key,), (client,) = config.keys, config.clients
    assert config.lanes_of(key, "gpt-4o-mini", client) == ("k:k1", "g:org-a:gpt-4o-mini", "p:openai", "c:app-1")
    assert config.lanes_of(key, "gpt-4o-mini") == ("k:k1", "g:org-a:gpt-4o-mini", "p:openai")


def test_a_model_without_a_declared_limit_has_an_unlearned_lane_of_its_own() -> None:
    assert compiled(DOCUMENTED).group_lanes("org-a", "o1") == ("g:org-a:o1",)


def test_a_model_may_be_in_a_pool_and_under_a_limit_for_all() -> None:
    config = compiled(
        "keys: [{id: k1, provider: openai, key: sk-1, quota_group: g}]\n"
        "limits: [{quota_group: g, models: [b, a], rpm: 5}, {quota_group: g, rpd: 9}]"
    )
    assert config.group_lanes("g", "a") == ("g:g:a+b", "g:g:*")
    assert config.group_lanes("g", "c") == ("g:g:*",)


def test_two_rows_about_one_pool_are_one_lane() -> None:
    config = compiled(
        "keys: [{id: k1, provider: openai, key: sk-1}]\n"
        "limits: [{quota_group: k1, models: [a, b], rpm: 5}, {quota_group: k1, models: [b, a], rpd: 9, kind: fixed}]"
    )
    lane = next(lane for lane in config.lanes if lane.id == "g:k1:a+b")
    assert [limit.name for limit in lane.limits] == ["rpm", "rpd"]


def test_a_pool_of_many_models_has_a_short_name_that_depends_on_all_of_them() -> None:
    def name(models: list[str]) -> str:
        text = f"keys: [{{id: k, provider: openai, key: x}}]\nlimits: [{{quota_group: k, models: {models}, rpm: 5}}]"
        return compiled(text).lanes[-1].id

    many = [f"model-{n:03}" for n in range(100)]
    assert len(name(many)) < 100
    assert name(many) != name(many[:-1])
    assert name(many) == name(many[::-1])


def test_a_key_without_an_id_gets_the_one_its_material_determines() -> None:
    (key,) = compiled("keys: [{provider: openai, key: 'env:OPENAI_KEY_1'}]").keys
    assert key.id == derive_key_id("sk-1", provider_id="openai")
    assert key.quota_group == key.id
    assert "sk-1" not in repr(key)


def test_a_client_is_known_by_the_hash_of_its_token() -> None:
    (client,) = compiled(DOCUMENTED).clients
    assert client.token_sha256 == sha256(SECRETS["APP1_TOKEN"].encode()).hexdigest()
    assert client.token_sha256 not in repr(client)


def test_a_secret_in_a_file_is_read_relative_to_the_configuration_and_remembered(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" sk-from-file\n")
    config = compiled("keys: [{provider: openai, key: 'file:key'}]", base=tmp_path)
    assert config.keys[0].material == "sk-from-file"
    assert config.files == {tmp_path / "key"}


def test_requests_hold_in_the_budgets_of_everybody_their_team_and_their_client() -> None:
    config = compiled(DOCUMENTED)
    assert config.shared_scopes(team="engineering", client="app-1") == ("global:all", "team:engineering:eng")
    assert config.shared_scopes(team=None, client=None) == ("global:all",)


def test_the_budgets_of_a_provider_and_a_key_belong_to_the_candidate() -> None:
    config = compiled(
        "keys: [{id: k1, provider: openai, key: sk-1}, {id: k2, provider: anthropic, key: sk-2}]\n"
        "budgets: [{name: a, scope: provider, scope_id: openai, limit_usd: 1, period: daily},"
        " {name: b, scope: per_key, scope_id: k1, limit_usd: 1, period: total}]"
    )
    assert [key.scopes for key in config.keys] == [("provider:openai:a", "key:k1:b"), ()]


def test_aliases_keep_their_order() -> None:
    assert compiled(DOCUMENTED).aliases["fast"] == (
        Target(provider_id="openai", model="gpt-4o-mini"),
        Target(provider_id="anthropic", model="claude-haiku-5"),
    )


def test_a_limit_for_a_group_without_keys_is_a_warning() -> None:
    assert any("limits[1].quota_group: no key is in group org-g" in line for line in compiled(DOCUMENTED).warnings)


def test_a_token_that_can_be_guessed_is_a_warning_that_does_not_show_it() -> None:
    (warning,) = compiled("clients: [{name: a, token: hush}]").warnings
    assert warning.startswith("clients[0].token")
    assert "hush" not in warning


@pytest.mark.parametrize(
    ("base_url", "doubt"),
    [
        ("http://169.254.169.254/v1", "credentials"), ("https://169.254.1.1/v1", "credentials"),
        ("http://[fe80::1]/v1", "credentials"), ("https://[fd00:ec2::254]/", "credentials"),
        ("http://10.0.0.7:8000/v1", "unencrypted"), ("http://api.example.com", "unencrypted"),
        ("https://10.0.0.7/v1", ""), ("https://api.example.com", ""), ("http://127.0.0.1:9901/v1", ""),
        ("http://localhost:11434/v1", ""), ("http://[::1]:8000/v1", ""),
    ],
)  # fmt: skip
def test_a_doubtful_address_of_a_provider_is_taken_with_a_warning(base_url: str, doubt: str) -> None:
    told = compiled(f"providers: {{p: {{adapter: openai, base_url: '{base_url}'}}}}")
    assert told.providers["p"].base_url == base_url.rstrip("/")
    assert [line.startswith("providers.p.base_url: ") and doubt in line for line in told.warnings] == [True] * bool(
        doubt
    )


ONE_KEY = "keys: [{id: k1, provider: openai, key: sk-1, quota_group: g}]\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("keys: [{provider: nope, key: x}]", "keys[0].provider: no provider 'nope'"),
        ("keys: [{provider: openai, key: 'env:NOT_SET'}]", "keys[0].key: environment variable NOT_SET is not set"),
        ("keys: [{provider: openai, key: 'file:/nowhere'}]", "keys[0].key: file /nowhere cannot be read"),
        ("keys: [{provider: openai, key: 'a b'}]", "keys[0].key: key material must be printable"),
        ("keys: [{id: a, provider: openai, key: x}, {id: a, provider: openai, key: y}]", "keys[1].id: a is taken"),
        ("keys: [{id: a, provider: openai, key: x}, {id: b, provider: openai, key: x}]", "keys[1].key: is the same"),
        ("keys: [{provider: openai, key: x, metadata: {weight: -1}}]", "keys[0].metadata.weight: must be above 0"),
        ("keys: [{provider: openai, key: x, quota_group: g}, {provider: anthropic, key: y, quota_group: g}]",
         "quota_group g has keys of several providers"),
        ("providers: {a: {adapter: opnai}}", "providers.a.adapter: must be one of"),
        ("models: {fast: []}", "models.fast: must have at least one"),
        ("models: {fast: [{provider: nope, model: m}]}", "models.fast[0].provider: no provider 'nope'"),
        ("limits: [{key: k9, rpm: 1}]", "limits[0].key: no key 'k9'"),
        (ONE_KEY + "limits: [{quota_group: g, rpm: 1}, {quota_group: g, rpm: 2}]",
         "limits[1]: rpm of lane g:g:* is declared in another row"),
        (ONE_KEY + "limits: [{quota_group: g, tpd: 9007199254740991}]", "limits[0]: lane g:g:*: limit tpd"),
        (ONE_KEY + "limits: [{quota_group: g, models: [a], rpm: 1}, {quota_group: g, models: [a, b], rpm: 1},"
         " {quota_group: g, models: [a, c], rpm: 1}, {quota_group: g, models: [a, d], rpm: 1},"
         " {quota_group: g, rpm: 1}]",
         "limits: model a of quota_group g is in more than 4 pool(s)"),
        (ONE_KEY + "limits: [{quota_group: g, models: [a], rpm: 1}, {quota_group: g, models: [a, b], rpm: 1},"
         " {quota_group: g, models: [a, c], rpm: 1}, {quota_group: g, rpm: 1}]\n"
         "clients: [{name: c, token: 0123456789abcdef, rpm: 1}]", "beside the limits of a client"),
        ("budgets: [{name: b, scope: client, scope_id: x, limit_usd: 1, period: daily}]", "no client 'x'"),
        ("budgets: [{name: b, scope: key, scope_id: x, limit_usd: 1, period: daily}]", "no key 'x'"),
        ("budgets: [{name: b, scope: global, limit_usd: 1, period: daily},"
         " {name: b, scope: global, limit_usd: 2, period: daily}]", "budgets[1].name: b is taken"),
        ("budgets: [" + ",".join(f"{{name: b{n}, scope: global, limit_usd: 1, period: daily}}" for n in range(9)) + "]",
         "budgets: a request could be in 9 budgets"),
        (ONE_KEY + "budgets: ["
         + ",".join(f"{{name: b{n}, scope: key, scope_id: k1, limit_usd: 1, period: daily}}" for n in range(5)) + "]",
         "budgets: a key is in 5 budgets"),
        ("clients: [{name: a, token: 0123456789abcdef}, {name: a, token: 0123456789abcdeg}]", "clients[1].name: a is"),
        ("clients: [{name: a, token: 0123456789abcdef}, {name: b, token: 0123456789abcdef}]", "clients[1].token: is"),
        ("prices: [{model: m, input: 1, output: 1}, {model: m, input: 2, output: 1}]", "prices[1]: says again"),
        ("policies: [{name: p}, {name: P}]", "policies[1]: says again"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_with_the_path(text: str, complaint: str) -> None:
    assert any(complaint in error for error in errors(text)), errors(text)


def test_a_price_has_tiers_of_context_and_of_service() -> None:
    text = """
    prices:
      - {model: m, provider: own, input: 1, output: 10, input_audio: 4, tiers: [{above: 200000, input: 2, output: 15}],
         service_tiers: {batch: {input: 0.5, output: 5}}}
    """
    (price,) = compiled(text).prices
    assert price.rates == {"input": Decimal(1), "output": Decimal(10), "input_audio": Decimal(4)}
    assert price.tiers == ((200_000, {"input": Decimal(2), "output": Decimal(15)}),)
    assert price.service_tiers == {"batch": {"input": Decimal("0.5"), "output": Decimal(5)}}
    book = PriceBook()
    book.add("own", "m", tiers=price.tiers, service_tiers=price.service_tiers, **price.rates)
    found = book.price("own", "m")
    assert found is not None
    assert found.expected(200_001, 0) == 2 * found.expected(200_000, 0) + 2000


def test_all_contradictions_are_told_at_once_and_none_shows_a_secret() -> None:
    told = errors("keys: [{provider: nope, key: 'hush hush'}]\nlimits: [{key: k9, rpm: 1}]")
    assert len(told) == 3
    assert not any("hush" in error for error in told)


def test_thousands_of_keys_compile() -> None:
    keys = ",".join(f"{{id: k{n}, provider: openai, key: sk-{n}, quota_group: g{n % 100}}}" for n in range(2_000))
    assert len(compiled(f"keys: [{keys}]").keys) == 2_000
