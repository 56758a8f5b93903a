"""One endpoint, all your LLM keys: never over a provider's limit, never over your budget, exactly."""

from apikeyrouter._version import __version__
from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.key_manager import KeyRegistrationError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.api_key import APIKey, KeyProbe, KeyState, StateTransition
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.quota_state import (
    CapacityEstimate,
    CapacityState,
    ExhaustionPrediction,
    Quota,
    QuotaState,
    QuotaUnit,
    TimeWindow,
)
from apikeyrouter.domain.models.request_intent import Message, RequestIntent
from apikeyrouter.domain.models.routing_decision import ObjectiveType, RoutingDecision, RoutingObjective
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    ErrorCategory,
    InvalidRequestError,
    LedgerUnavailableError,
    ModelNotFoundError,
    PolicyDeniedError,
    ProviderError,
    SystemError,
)
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.router import ApiKeyRouter

__all__ = [
    "APIKey",
    "ApiKeyRouter",
    "ApiKeyRouterError",
    "BudgetExceededError",
    "CapacityEstimate",
    "CapacityState",
    "ErrorCategory",
    "ExhaustionPrediction",
    "InvalidRequestError",
    "KeyProbe",
    "KeyRegistrationError",
    "KeyState",
    "LedgerUnavailableError",
    "Message",
    "ModelNotFoundError",
    "NoEligibleKeysError",
    "ObjectiveType",
    "Policy",
    "PolicyDeniedError",
    "ProviderAdapter",
    "ProviderError",
    "Quota",
    "QuotaState",
    "QuotaUnit",
    "RequestIntent",
    "RouterSettings",
    "RoutingDecision",
    "RoutingObjective",
    "StateTransition",
    "SystemError",
    "SystemResponse",
    "TimeWindow",
    "__version__",
]
