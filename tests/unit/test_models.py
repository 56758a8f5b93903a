"""The public models: what they take, what they refuse, and what they never show."""

import copy
import json
import pickle
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest

from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.key_manager import KeyRegistrationError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models import budget as budget_module
from apikeyrouter.domain.models import quota_state as quota_module
from apikeyrouter.domain.models.api_key import APIKey, KeyMaterial, KeyRouting, KeyState
from apikeyrouter.domain.models.budget import Budget, BudgetScope, BudgetStatus, EnforcementMode
from apikeyrouter.domain.models.cost_estimate import CostEstimate, dollars, nanousd
from apikeyrouter.domain.models.policy import Policy, PolicyScope, PolicyType
from apikeyrouter.domain.models.quota_state import CapacityState, QuotaState
from apikeyrouter.domain.models.request_intent import Message, RequestIntent
from apikeyrouter.domain.models.routing_decision import ObjectiveType, RoutingObjective
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    ErrorCategory,
    InvalidRequestError,
    SystemError,
)
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.domain.models.time_window import TimeWindow
from apikeyrouter.domain.models.usage import Usage

HELLO = {"role": "user", "content": "hello"}
ENUMS: list[type[StrEnum]] = [
    BudgetScope, CapacityState, EnforcementMode, ErrorCategory, KeyState, ObjectiveType, PolicyScope, PolicyType,
    TimeWindow,
]  # fmt: skip


@pytest.mark.parametrize("enum", ENUMS)
def test_enums_take_names_and_values_in_any_case(enum: type[StrEnum]) -> None:
    for name, member in enum.__members__.items():
        for text in (name, name.upper(), name.lower(), member.value, member.value.upper()):
            assert enum(text) is member
            assert member == text
            assert (member != text) is False


@pytest.mark.parametrize("enum", ENUMS)
def test_enums_have_lower_case_values_that_json_and_str_show(enum: type[StrEnum]) -> None:
    for member in enum:
        assert member.value == member.value.lower() == str(member) == json.loads(json.dumps(member))
        assert {member.value: 1}[member] == {member: 1}[member.value] == 1  # type: ignore[index]


@pytest.mark.parametrize("enum", ENUMS)
def test_enums_refuse_what_they_do_not_know(enum: type[StrEnum]) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        enum("nonsense")
    assert all(member not in ("nonsense", 7) for member in enum)


def test_aliases_of_members_are_the_members() -> None:
    assert PolicyScope("per_team") is PolicyScope("PerTeam") is PolicyScope.Team
    assert BudgetScope("PerKey") is BudgetScope.Key
    assert ObjectiveType("speed") is ObjectiveType.Latency
    assert ErrorCategory.RateLimitError == "RateLimitError" == ErrorCategory("rate-limit error")


def test_there_is_one_time_window() -> None:
    assert budget_module.TimeWindow is quota_module.TimeWindow is TimeWindow


def test_the_documented_ways_to_say_the_provider_mean_the_same() -> None:
    as_field = RequestIntent(model="m", messages=[Message(role="user", content="hello")], provider_id="openai")
    inside = RequestIntent.parse({"model": "m", "messages": [HELLO], "parameters": {"provider_id": "openai"}})
    beside = RequestIntent.parse({"model": "m", "messages": [HELLO], "provider_id": "openai"})
    assert as_field == inside == beside
    assert inside.parameters == {}
    assert RequestIntent.parse(as_field) is as_field


def test_a_request_may_leave_the_provider_open() -> None:
    assert RequestIntent.parse({"model": "m", "messages": [HELLO]}).provider_id is None


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "", "messages": [HELLO]}, "model"),
        ({"model": "  ", "messages": [HELLO]}, "model"),
        ({"model": "m" * 300, "messages": [HELLO]}, "model"),
        ({"model": 5, "messages": [HELLO]}, "model"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": "hello"}, "messages"),
        ({"model": "m", "messages": [HELLO, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"model": "m", "messages": [{"role": "user"}]}, "messages[0].content"),
        ({"model": "m", "messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role"),
        ({"model": "m", "messages": [HELLO], "temperature": 1}, "temperature"),
        ({"model": "m", "messages": [HELLO], "parameters": {"max_tokens": 0}}, "parameters.max_tokens"),
        ({"model": "m", "messages": [HELLO], "parameters": {"max_tokens": True}}, "parameters.max_tokens"),
        ({"model": "m", "messages": [HELLO], "parameters": {"n": 1.5}}, "parameters.n"),
        ({"model": "m", "messages": [HELLO], "parameters": {"temperature": float("nan")}}, "parameters.temperature"),
        ({"model": "m", "messages": [HELLO], "parameters": {"a": [{"b": float("inf")}]}}, "parameters.a[0].b"),
        ({"model": "m", "messages": [HELLO], "provider_id": "a", "parameters": {"provider_id": "b"}}, "provider_id"),
        ({"model": "m", "messages": [HELLO], "provider_id": ""}, "provider_id"),
        ({"model": "m", "operation": "dance"}, "operation"),
        ({"model": "m", "operation": "embedding"}, "payload"),
    ],
)
def test_a_bad_request_is_refused_by_field_and_never_shown(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RequestIntent.parse(fields)
    assert caught.value.field == path
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ApiKeyRouterError)
    assert "hello" not in str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize("value", [None, 5, "text", [HELLO], {5: 6}])
def test_what_is_no_request_at_all_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="RequestIntent"):
        RequestIntent.parse(value)


def test_parameters_that_nest_without_end_are_refused() -> None:
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(100):
        inner["a"] = {}
        inner = inner["a"]
    with pytest.raises(InvalidRequestError, match="nest"):
        RequestIntent.parse({"model": "m", "messages": [HELLO], "parameters": deep})


def test_messages_have_the_documented_shapes() -> None:
    call = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    asked = Message(role="assistant", tool_calls=call)
    assert asked.to_wire() == {"role": "assistant", "tool_calls": call, "content": None}
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:"}},
    ]
    intent = RequestIntent(model="m", messages=[Message(role="developer", content=parts), asked])
    assert list(intent.text_parts()) == ["see"]


def test_what_is_not_chat_needs_no_messages() -> None:
    intent = RequestIntent.parse({"model": "m", "operation": "Embedding", "payload": {"input": "x"}})
    assert (intent.operation, intent.messages) == ("embedding", [])


def test_token_usage_has_its_total_under_both_names() -> None:
    usage = TokenUsage.parse({"input_tokens": 3, "output_tokens": 4, "total_tokens": 99})
    assert usage.total == usage.total_tokens == 7
    assert TokenUsage.parse(usage.model_dump()) == usage


def test_what_an_adapter_read_becomes_public_usage() -> None:
    read = Usage(input_tokens=9, output_tokens=5, cache_write_tokens=1, cache_write_long_tokens=2, estimated=True)
    public = TokenUsage.from_usage(read)
    assert (public.total, public.cache_write_tokens, public.estimated) == (14, 3, True)


def test_a_response_has_the_documented_fields() -> None:
    metadata = ResponseMetadata(model_used="m", tokens_used=TokenUsage(input_tokens=1), cost_actual=Decimal("0.1"))
    response = SystemResponse(content="", metadata=metadata, cost=CostEstimate(amount=Decimal("0.1")), key_used="k1")
    assert response.metadata.token_usage is response.metadata.tokens_used
    assert response.metadata.timestamp.tzinfo is not None
    assert response.cost is not None
    assert f"${response.cost.amount}" == "$0.1"


def test_an_unknown_price_is_none() -> None:
    assert SystemResponse(content="x", metadata=ResponseMetadata(model_used="m")).cost is None
    assert ResponseMetadata(model_used="m").cost_actual is None


def test_printing_a_chunk_prints_its_text() -> None:
    assert f"{StreamChunk(text='he')}{StreamChunk(text='llo', last=True)}" == "hello"


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity"])
def test_an_estimate_is_a_finite_amount(amount: str) -> None:
    with pytest.raises(InvalidRequestError, match="amount"):
        CostEstimate(amount=Decimal(amount))


@pytest.mark.parametrize(
    ("nano", "shown"), [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (-5, "-0.000000005")]
)
def test_nanodollars_are_dollars_exactly(nano: int, shown: str) -> None:
    assert dollars(nano) == Decimal(shown)
    assert nanousd(dollars(nano)) == nano


def test_fractions_of_a_nanodollar_are_rounded_up() -> None:
    assert nanousd(Decimal("0.0000000001")) == 1
    assert dollars(2**53) == Decimal(2**53) / 10**9
    with pytest.raises(ValueError, match="finite"):
        nanousd(Decimal("NaN"))


def material() -> KeyMaterial:
    return KeyMaterial("sk-hush", key_id="k1", metadata={"tier": "pro"})


def test_key_material_works_where_it_is_sent() -> None:
    key = material()
    assert f"Bearer {key}" == "Bearer " + key == "Bearer {}".format(key) == "Bearer sk-hush"  # noqa: UP032
    assert (key == "sk-hush", key.encode(), key.startswith("sk-"), len(key)) == (True, b"sk-hush", True, 7)
    assert json.loads(json.dumps({"key": key})) == {"key": "sk-hush"}
    assert (key.id, key.metadata) == ("k1", {"tier": "pro"})


def test_key_material_prints_redacted() -> None:
    key = material()
    shown = [str(key), repr(key), "%s" % key, f"{key!s}", f"{key!r}", repr([key]), str({"key": key})]  # noqa: UP031
    assert not any("hush" in text for text in shown)
    assert all("k1" in text for text in shown)


def test_the_redacted_form_cannot_be_sent_by_mistake() -> None:
    with pytest.raises(UnicodeEncodeError):
        str(material()).encode("latin-1")


def test_key_material_is_copied_but_never_pickled() -> None:
    key = material()
    assert copy.copy(key) is key
    assert copy.deepcopy(key) is key
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(key)


def test_a_key_shows_no_ciphertext() -> None:
    key = APIKey(id="k1", provider_id="p", encrypted_material="v1:hush")
    assert "hush" not in repr(key) + str(key) + json.dumps(key.public())


def test_metadata_that_routes_is_read_and_the_rest_left_alone() -> None:
    routing = KeyRouting.parse(
        {"account_tier": "pro", "region": "eu", "cost_per_1k": "0.01", "index": 3, "rotation_group": "a", "tier": "x"}
    )
    assert (routing.tier, routing.region, routing.cost_per_1k, routing.weight) == ("pro", "eu", Decimal("0.01"), 1.0)
    assert KeyRouting.parse({"tier": "free", "limits": {"rpm": 5}}).limits == ({"rpm": 5},)


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"cost_per_1k": "-1"}, "cost_per_1k"), ({"cost_per_1k": "NaN"}, "cost_per_1k"), ({"weight": 0}, "weight"),
        ({"weight": float("inf")}, "weight"), ({"quality": 2}, "quality"), ({"models": "gpt"}, "models"),
        ({"quota_group": ""}, "quota_group"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_route_is_refused_by_field(metadata: Mapping[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError, match=path):
        KeyRouting.parse(metadata)


def test_an_objective_is_read_from_everything_that_route_takes() -> None:
    assert RoutingObjective.read(None).primary is ObjectiveType.Fairness
    assert RoutingObjective.read("Speed").primary is ObjectiveType.Latency
    assert RoutingObjective.read(ObjectiveType.Cost).primary is ObjectiveType.Cost
    assert RoutingObjective.read({"primary": "cost", "secondary": "reliability"}).secondary == ["reliability"]
    objective = RoutingObjective(
        primary="cost", secondary=["reliability", "fairness"], weights={"cost": 0.5, "speed": 1}
    )
    assert RoutingObjective.read(objective) is objective
    assert objective.weights == {"cost": 0.5, "latency": 1}


def test_constraints_are_numbers_of_the_right_kind() -> None:
    objective = RoutingObjective("cost", constraints={"min_reliability": 0.95, "max_cost_per_request": 0.01})
    assert objective.constraints == {"min_reliability": 0.95, "max_cost_per_request": Decimal("0.01")}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"primary": "luck"}, "primary"), ({"primary": 5}, "primary"), ({"secondary": ["luck"]}, "secondary"),
        ({"secondary": 5}, "secondary"), ({"weights": {"luck": 1}}, "weights.luck"),
        ({"weights": {"cost": -1}}, "weights.cost"), ({"weights": {"cost": float("nan")}}, "weights.cost"),
        ({"constraints": {"luck": 1}}, "constraints.luck"),
        ({"constraints": {"min_reliability": 1.5}}, "constraints.min_reliability"),
        ({"constraints": {"max_cost_per_request": "lots"}}, "constraints.max_cost_per_request"),
        ({"constraints": {"max_cost_per_request": float("nan")}}, "constraints.max_cost_per_request"),
        ({"luck": 1}, "luck"),
    ],
)  # fmt: skip
def test_an_objective_that_makes_no_sense_is_refused_by_field(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RoutingObjective(**fields)
    assert caught.value.field == path


def test_assigning_a_budgets_mode_or_limit_is_told_and_nothing_else_can_be_assigned() -> None:
    told: list[Budget] = []
    budget = Budget(id="b", limit=Decimal(100), period=TimeWindow.Daily)
    budget.watch(told.append)
    budget.enforcement_mode = EnforcementMode.Soft
    budget.limit = Decimal(50)
    assert told == [budget, budget]
    for name, value in (("scope", "team"), ("limit", -1), ("limit", float("nan")), ("current_spending", 0)):
        with pytest.raises(InvalidRequestError, match=name):
            setattr(budget, name, value)
    assert (budget.limit, len(told)) == (Decimal(50), 2)


@pytest.mark.parametrize("limit", ["0", "-1", "NaN", "Infinity", "9007200"])
def test_a_budget_that_cannot_be_counted_is_refused(limit: str) -> None:
    with pytest.raises(InvalidRequestError, match="limit"):
        Budget(id="b", limit=Decimal(limit))


def test_what_is_left_of_a_budget_is_never_negative() -> None:
    status = BudgetStatus(
        budget_id="b", scope=BudgetScope.Global, limit=Decimal(10), settled=Decimal(8), held=Decimal(3),
        enforcement_mode=EnforcementMode.Hard, period=TimeWindow.Daily,
    )  # fmt: skip
    assert (status.remaining, status.exceeded, status.current_spending) == (Decimal(0), True, Decimal(8))


def test_a_quota_compares_with_the_documents_spelling() -> None:
    state = QuotaState(key_id="k1", capacity_state=CapacityState.Critical, total_capacity=10, used_capacity=11)
    assert state.capacity_state == "Critical"
    assert (state.remaining_capacity, QuotaState(key_id="k1").remaining_capacity) == (0, None)


def test_the_documented_policies_are_policies() -> None:
    by_value = Policy(
        name="development_cost_optimization", type=PolicyType.Cost, scope=PolicyScope.Team, scope_value="development",
        rules=[{"action": "prefer_lowest_cost", "max_cost_per_request": 0.10, "fallback_to_reliable": True}],
    )  # fmt: skip
    assert (by_value.id, by_value.scope_id, by_value.scope_value) == (
        "development-cost-optimization", "development", "development",
    )  # fmt: skip
    by_id = Policy(
        id="team-engineering", name="E", scope=PolicyScope.PerTeam, scope_id="eng", rules={"denied_keys": []}
    )
    assert by_id.rule_list == [{"denied_keys": []}]
    assert Policy(name="budget", type=PolicyType.Cost, rules=[{"budget_limit": 5}]).scope is PolicyScope.Global


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": "p", "scope": "team"}, {"name": "p", "scope": "team", "scope_id": "a", "scope_value": "b"},
     {"name": "p", "type": "magic"}, {"name": "p", "rules": 5}],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        Policy(**fields)


def test_a_budget_error_has_the_numbers() -> None:
    resets_at = datetime(2026, 3, 2, tzinfo=UTC)
    error = BudgetExceededError(
        scope="global:all", limit=Decimal(100), settled=Decimal(90), held=Decimal(8), needed=Decimal(5),
        resets_at=resets_at, retry_after=60,
    )  # fmt: skip
    assert isinstance(error, SystemError)
    assert error.category is ErrorCategory.BudgetExceededError
    assert error.details == {
        "scope": "global:all", "limit": 100, "settled": 90, "held": 8, "needed": 5, "resets_at": resets_at,
    }  # fmt: skip
    assert "global:all" in str(error)


@pytest.mark.parametrize("told", ["rate_limit_error", "RateLimitError", "RATE-LIMIT ERROR"])
def test_an_errors_category_is_the_member_that_it_names(told: str) -> None:
    assert SystemError("slow down", category=told).category is ErrorCategory.RateLimitError


def test_an_errors_category_is_one_that_there_is() -> None:
    with pytest.raises(InvalidRequestError, match=r"category: must be one of .*rate_limit_error") as caught:
        SystemError("slow down", category="nonsense")
    assert caught.value.field == "category"


def test_a_budget_error_writes_small_amounts_out() -> None:
    error = BudgetExceededError(
        scope="team:t:day", limit=Decimal("1E-7"), settled=Decimal(0), held=Decimal("4E-8"), needed=Decimal("2.5E-7")
    )
    assert "0.00000025 more dollars: 0 settled + 0.00000004 held of 0.0000001" in str(error)


def test_no_eligible_keys_tells_why_and_when() -> None:
    back = datetime(2026, 3, 2, tzinfo=UTC)
    error = NoEligibleKeysError(reasons={f"k{n}": "throttled" for n in range(7)}, first_back_at=back, retry_after=5)
    assert error.reasons["k6"] == "throttled"
    assert "k0: throttled" in str(error)
    assert "and 2 more" in str(error)
    assert back.isoformat() in str(error)
    assert isinstance(error, ApiKeyRouterError)
    assert issubclass(KeyRegistrationError, ApiKeyRouterError)


@pytest.mark.parametrize(
    "filters",
    [{"entity_type": "Nothing"}, {"entity_type": "APIKey", "limit": 0},
     {"entity_type": "APIKey", "since": datetime(2026, 1, 1)}],  # noqa: DTZ001
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        StateQuery(**filters)


def test_times_without_a_zone_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="state_until"):
        APIKey(id="k", provider_id="p", state_until=datetime(2026, 1, 1) + timedelta(days=1))  # noqa: DTZ001


# --- models that are made without being checked ----------------------------------------------------------------------


def test_a_model_that_is_made_of_checked_values_is_the_one_that_checking_gives() -> None:
    now = datetime.now(UTC)
    usage = TokenUsage.made(output_tokens=4, input_tokens=3)
    made = ResponseMetadata.made(tokens_used=usage, model_used="m", timestamp=now)
    checked = ResponseMetadata(model_used="m", tokens_used=TokenUsage(input_tokens=3, output_tokens=4), timestamp=now)
    assert made == checked
    assert repr(made) == repr(checked)
    assert made.model_dump_json() == checked.model_dump_json()
    assert made.model_fields_set == checked.model_fields_set
    assert pickle.loads(pickle.dumps(made)) == checked
    assert made.model_copy(update={"model_used": "n"}) == checked.but(model_used="n") != checked


def test_what_each_model_makes_for_itself_is_its_own() -> None:
    first, second = ResponseMetadata.made(model_used="m"), ResponseMetadata.made(model_used="m")
    first.additional_metadata["mark"] = True
    assert second.additional_metadata == {}
    assert second.timestamp.tzinfo is not None


def test_what_belongs_into_parameters_is_told_so() -> None:
    with pytest.raises(InvalidRequestError, match=r"^temperature: is not a known field; .* goes into parameters$"):
        RequestIntent.parse({"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 1})
    with pytest.raises(InvalidRequestError, match=r"^messages\[0\]\.txt: is not a known field$"):
        RequestIntent.parse({"model": "m", "messages": [{"role": "user", "content": "a", "txt": 1}]})
