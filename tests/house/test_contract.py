"""The public surface, line by line: every documented method with its parameters, and where each decision is tested."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import apikeyrouter
from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore

TESTS = Path(__file__).parents[1]
METHODS: dict[str, dict[str, str]] = {
    "": {
        "route": "request_intent objective policy",
        "route_stream": "request_intent objective policy",
        "register_provider": "provider_id adapter overwrite",
        "register_key": "key_material provider_id metadata",
        "configure_policy": "policy",
        "configure_quota": "key_id time_window total_capacity reset_at unit",
        "get_state_summary": "",
        "lease": "model provider_id estimated_tokens",
        "explain": "decision_or_request_id",
        "dry_run": "request_intent objective policy",
        "subscribe_to_events": "event_type callback",
        "get_trace": "request_id",
        "close": "",
    },
    "key_manager": {
        "register_key": "key_material provider_id metadata",
        "get_key": "key_id",
        "update_key_state": "key_id new_state reason for_seconds",
        "get_eligible_keys": "provider_id policy",
        "revoke_key": "key_id",
        "rotate_key": "old_key_id new_key_material",
    },
    "quota_awareness_engine": {
        "update_capacity": "key_id consumed cost_estimate used_tokens time_window",
        "get_quota_state": "key_id time_window",
        "predict_exhaustion": "key_id",
        "calculate_capacity_estimate": "key_id",
        "handle_quota_response": "key_id response",
        "reset_quota": "key_id time_window",
    },
    "routing_engine": {
        "route_request": "request objective",
        "evaluate_keys": "eligible_keys objective",
        "explain_decision": "decision",
        "update_routing_feedback": "decision_id success metrics",
        "get_routing_strategies": "",
        "register_strategy": "name",
    },
    "failure_handler": {
        "interpret_failure": "error context",
        "update_key_health": "key_id failure",
        "should_retry": "failure attempt",
        "get_circuit_state": "key_id",
        "reduce_load_on_failure": "key_id provider_id",
        "monitor_recovery": "key_id",
    },
    "cost_controller": {
        "estimate_request_cost": "request provider_id key_id",
        "check_budget": "request estimated_cost",
        "record_actual_cost": "request_id actual_cost",
        "reconcile_estimate": "request_id estimated actual",
        "create_budget": "scope limit period enforcement_mode scope_id",
        "get_budget": "budget_id",
        "update_budget": "budget_id",
        "get_budget_status": "scope",
        "enforce_budget": "scope mode",
        "update_spending": "budget_id amount",
    },
    "policy_engine": {
        "evaluate_policy": "policy context",
        "get_applicable_policies": "scope type",
        "resolve_policy_conflicts": "policies",
        "validate_policy": "policy",
        "dry_run_policy": "policy context",
    },
    "configuration_manager": {
        "load_configuration": "",
        "get_setting": "key default",
        "validate_configuration": "config",
        "reload_configuration": "",
        "get_defaults": "",
    },
    "observability_manager": {
        "log_request": "context",
        "log_routing_decision": "decision",
        "log_state_transition": "transition",
        "emit_metric": "name value tags",
        "get_trace": "request_id",
        "subscribe_to_events": "event_type callback",
    },
}
STORE = {
    "save_key": "key",
    "get_key": "key_id",
    "save_quota_state": "state",
    "get_quota_state": "key_id",
    "save_routing_decision": "decision",
    "save_state_transition": "transition",
    "query_state": "query",
    "health_check": "",
}
ADAPTER = {
    "execute_request": "intent key",
    "execute_stream": "intent key",
    "normalize_response": "provider_response",
    "map_error": "provider_error",
    "get_capabilities": "",
    "estimate_cost": "request_intent",
    "get_health": "",
    "check_health": "key",
    "get_provider_id": "",
}
RESULTS = {
    "api_key": "StateTransition",
    "quota_state": "ExhaustionPrediction CapacityEstimate",
    "routing_decision": "RoutingStrategy",
    "failure": "FailureInterpretation CircuitState",
    "budget": "BudgetCheckResult BudgetStatus",
    "policy": "PolicyResult ValidationResult PolicyImpact",
    "trace": "Trace",
    "state_summary": "StateSummary",
}
DECISIONS: dict[str, tuple[str, ...]] = {
    "RequestIntent": (
        "unit/test_models.py::test_the_documented_ways_to_say_the_provider_mean_the_same",
        "unit/test_models.py::test_a_request_may_leave_the_provider_open",
        "unit/test_models.py::test_what_is_not_chat_needs_no_messages",
    ),
    "serves the model": (
        "snippets/test_decisions.py::test_a_provider_that_was_not_pinned_is_any_that_serves_the_model",
        "router/test_model_names.py",
        "adapters/test_adapters.py::test_catalogues_tell_families_apart",
    ),
    "Message": ("unit/test_models.py::test_messages_have_the_documented_shapes",),
    "bad request": (
        "unit/test_models.py::test_a_bad_request_is_refused_by_field_and_never_shown",
        "snippets/test_api_reference.py::test_a_request_without_messages_is_a_value_error",
    ),
    "SystemResponse": (
        "unit/test_models.py::test_a_response_has_the_documented_fields",
        "snippets/test_decisions.py::test_an_answer_has_the_providers_body_and_its_tool_calls",
    ),
    "ResponseMetadata": (
        "unit/test_models.py::test_token_usage_has_its_total_under_both_names",
        "snippets/test_decisions.py::test_an_unknown_price_is_none_and_never_nought",
    ),
    "APIKey": ("router/test_key_lifecycle.py::test_the_counts_of_a_key_are_the_fleets",),
    "objective": (
        "unit/test_models.py::test_an_objective_is_read_from_everything_that_route_takes",
        "routing/test_objectives.py::test_a_constraint_excludes_with_its_numbers",
    ),
    "enums": (
        "unit/test_models.py::test_enums_take_names_and_values_in_any_case",
        "unit/test_models.py::test_enums_have_lower_case_values_that_json_and_str_show",
    ),
    "await": (
        "router/test_keys.py::test_registrations_that_nobody_awaited_are_finished_before_the_first_request",
        "snippets/test_components.py",
        "snippets/test_decisions.py::test_calls_that_were_not_awaited_raise_their_error_at_the_first_request",
    ),
    "register_provider": (
        "snippets/test_decisions.py::test_a_provider_may_be_a_model_with_an_id_and_adapters_serve_several",
        "snippets/test_api_reference.py::test_providers_are_registered_once_and_replaced_on_request",
    ),
    "register_key": (
        "router/test_keys.py::test_registering_is_idempotent_and_updates_metadata",
        "router/test_key_metadata.py",
    ),
    "key states": (
        "unit/test_key_states.py::test_exactly_the_documented_transitions_are_possible",
        "unit/test_key_states.py::test_the_documentation_has_the_same_table",
        "router/test_key_lifecycle.py::test_an_operators_throttle_lasts_the_default_cooldown_or_as_told",
    ),
    "ProviderAdapter": (
        "unit/test_provider_adapter.py::test_everything_else_has_a_default",
        "unit/test_models.py::test_key_material_prints_redacted",
        "router/test_key_lifecycle.py::test_a_deleted_key_is_never_probed",
    ),
    "base URLs": (
        "snippets/test_user_guide.py::test_the_quick_start_prints_an_answer_and_its_key",
        "snippets/test_decisions.py::test_a_base_url_in_code_wins_over_the_sdks_variable",
    ),
    "route_stream": ("snippets/test_user_guide.py::test_a_stream_is_printed_as_it_comes",),
    "route policy": ("snippets/test_user_guide.py::test_a_policy_comes_along_with_a_request",),
    "Policy": (
        "unit/test_models.py::test_the_documented_policies_are_policies",
        "router/test_policies.py::test_what_is_allowed_and_denied_decides_which_keys_serve",
    ),
    "budgets": (
        "snippets/test_user_guide.py::test_a_hard_budget_refuses_what_would_exceed_it",
        "snippets/test_user_guide.py::test_a_budget_is_read_and_made_soft",
    ),
    "quota": (
        "snippets/test_user_guide.py::test_use_that_the_router_did_not_see_is_told_and_exhausts_a_key",
        "snippets/test_examples_readme.py::test_a_monthly_quota_of_a_key",
    ),
    "other components": (
        "usage/test_configuration_manager.py::test_reloaded_settings_take_effect",
        "usage/test_observability.py::test_the_documented_methods_of_the_default_manager_have_effects",
        "router/test_failure_handler.py",
    ),
    "StateStore": ("state_store/test_contract.py::test_queries_filter_by_everything_they_promise",),
    "state": ("router/test_state_summary.py",),
    "errors": (
        "unit/test_models.py::test_a_budget_error_has_the_numbers",
        "unit/test_models.py::test_no_eligible_keys_tells_why_and_when",
        "snippets/test_decisions.py::test_errors_have_one_root_and_nine_categories",
        "snippets/test_decisions.py::test_at_most_three_attempts_are_made",
        "snippets/test_decisions.py::test_a_broken_stream_leaves_what_was_received_in_the_error",
        "snippets/test_api_reference.py::test_what_a_caller_handles_is_an_answer_or_one_of_two_errors",
    ),
    "encryption": (
        "unit/test_key_vault.py::test_a_key_that_fernet_generates_is_accepted",
        "unit/test_key_vault.py::test_several_master_keys_are_separated_by_commas",
    ),
    "construction": (
        "snippets/test_decisions.py::test_a_store_of_ones_own_keeps_entities",
        "unit/test_settings.py::test_the_constructor_wins_over_the_environment_and_that_over_the_default",
        "unit/test_settings.py::test_an_unknown_variable_is_refused_with_the_nearest_name",
        "unit/test_settings.py::test_the_library_reads_no_dotenv_file",
        "usage/test_sync.py::test_one_loop_after_another_works_and_two_at_once_are_refused",
        "usage/test_forks.py",
    ),
    "explain, dry run, trace": (
        "router/test_routing.py",
        "snippets/test_decisions.py::test_a_trace_and_an_explanation_tell_the_same_request",
    ),
    "lease and transports": ("usage/test_leases.py", "usage/test_transports.py"),
}
"""Each row of the decision table, and tests that see its effect: `file`, or `file::test`."""


def parameters(method: Any) -> set[str]:
    """The names of a method's parameters."""
    return set(inspect.signature(method).parameters)


@pytest.mark.parametrize("component", METHODS)
async def test_a_component_has_every_documented_method_with_its_parameters(component: str) -> None:
    router = ApiKeyRouter()
    owner = getattr(router, component) if component else router
    missing = {
        f"{name}({wanted})": sorted(set(wanted.split()) - parameters(getattr(owner, name)))
        for name, wanted in METHODS[component].items()
        if not set(wanted.split()) <= parameters(getattr(owner, name))
    }
    assert missing == {}


@pytest.mark.parametrize(
    ("owner", "methods"),
    [(StateStore, STORE), (InMemoryStateStore, STORE), (RedisStateStore, STORE), (ProviderAdapter, ADAPTER)],
)
def test_a_port_has_every_documented_method_with_its_parameters(owner: type, methods: dict[str, str]) -> None:
    assert [
        name for name, wanted in methods.items() if not set(wanted.split()) <= parameters(getattr(owner, name))
    ] == []


def test_a_router_is_made_with_the_documented_arguments() -> None:
    assert list(inspect.signature(ApiKeyRouter).parameters) == ["state_store", "observability_manager", "config"]
    assert hasattr(ApiKeyRouter(), "sync")
    assert hasattr(ApiKeyRouter, "__aenter__")


@pytest.mark.parametrize("module", RESULTS)
def test_result_types_live_beside_their_models_and_are_exported(module: str) -> None:
    found = importlib.import_module(f"apikeyrouter.domain.models.{module}")
    for name in RESULTS[module].split():
        assert name in found.__all__
        assert getattr(apikeyrouter, name) is getattr(found, name)


def test_what_adapters_return_is_exported_too() -> None:
    assert {"ProviderCapabilities", "HealthState"} <= set(apikeyrouter.__all__)


@pytest.mark.parametrize("row", DECISIONS)
def test_a_decision_is_tested_where_this_table_says(row: str) -> None:
    for place in DECISIONS[row]:
        name, _, test = place.partition("::")
        text = (TESTS / name).read_text("utf-8")
        assert re.search(rf"def {test}\(" if test else r"def test_", text), place
