"""What is public: import paths, types, and what an import does not bring along."""

import importlib
import json
import subprocess
import sys
import tomllib
from importlib.resources import files

import pytest

import apikeyrouter
from tests.house.tree import read

PATHS = {
    "domain.models.request_intent": ["RequestIntent", "Message"],
    "domain.models.routing_decision": ["RoutingObjective", "ObjectiveType", "RoutingDecision"],
    "domain.models.system_error": ["SystemError", "ErrorCategory"],
    "domain.models.system_response": ["SystemResponse", "ResponseMetadata", "TokenUsage"],
    "domain.models.api_key": ["APIKey", "KeyState"],
    "domain.models.cost_estimate": ["CostEstimate"],
    "domain.models.budget": ["Budget", "BudgetScope", "EnforcementMode", "TimeWindow"],
    "domain.models.quota_state": ["QuotaState", "CapacityState", "TimeWindow"],
    "domain.models.policy": ["Policy", "PolicyScope", "PolicyType"],
    "domain.interfaces.provider_adapter": ["ProviderAdapter"],
    "domain.interfaces.state_store": ["StateStore", "StateQuery"],
    "domain.components.routing_engine": ["NoEligibleKeysError"],
    "domain.components.key_manager": ["KeyRegistrationError"],
    "domain.components.cost_controller": ["BudgetExceededError"],
    "infrastructure.adapters.openai_adapter": ["OpenAIAdapter"],
    "infrastructure.adapters.anthropic_adapter": ["AnthropicAdapter"],
    "infrastructure.adapters.generic_http_adapter": ["GenericHTTPAdapter"],
    "infrastructure.config.settings": ["RouterSettings"],
    "infrastructure.state_store.redis_store": ["RedisStateStore"],
    "infrastructure.state_store.memory_store": ["InMemoryStateStore"],
    "infrastructure.state_store.mongo_store": ["MongoStateStore"],
}
NOT_AT_IMPORT = [
    "aiohttp",
    "cryptography",
    "fastapi",
    "httpx",
    "redis",
    "rich",
    "structlog",
    "typer",
    "uvicorn",
    "yaml",
]
"""What takes long to import and is not needed before it is used; `make bench` measures the whole import."""


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_documented_import_path_works(path: str) -> None:
    module = importlib.import_module(f"apikeyrouter.{path}")
    assert [name for name in PATHS[path] if not hasattr(module, name)] == []
    assert [name for name in PATHS[path] if name not in getattr(module, "__all__", PATHS[path])] == []


def test_the_version_is_the_projects() -> None:
    assert apikeyrouter.__version__ == tomllib.loads(read("pyproject.toml"))["project"]["version"]


def test_every_public_name_of_the_package_is_there_and_listed_in_order() -> None:
    assert [name for name in apikeyrouter.__all__ if not hasattr(apikeyrouter, name)] == []
    assert sorted(apikeyrouter.__all__) == list(apikeyrouter.__all__)


@pytest.mark.parametrize("package", ["apikeyrouter", "apikeyrouter_proxy", "apikeyrouter_dashboard"])
def test_the_packages_say_that_they_are_typed(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


def test_importing_the_library_leaves_heavy_packages_alone() -> None:
    code = "import json, sys, apikeyrouter; print(json.dumps([*sys.modules]))"
    modules = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert [name for name in NOT_AT_IMPORT if name in modules] == []
