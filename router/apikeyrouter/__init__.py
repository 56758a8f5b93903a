"""One endpoint, all your LLM keys: never over a provider's limit, never over your budget, exactly."""

from apikeyrouter._version import __version__
from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.key_manager import KeyRegistrationError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.provider_adapter import HealthState, ProviderAdapter, ProviderCapabilities
from apikeyrouter.domain.models.api_key import APIKey, KeyProbe, KeyState, StateTransition
from apikeyrouter.domain.models.budget import BudgetCheckResult, BudgetStatus
from apikeyrouter.domain.models.failure import CircuitState, FailureInterpretation
from apikeyrouter.domain.models.policy import Policy, PolicyImpact, PolicyResult, ValidationResult
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
from apikeyrouter.domain.models.routing_decision import (
    ObjectiveType,
    RoutingDecision,
    RoutingObjective,
    RoutingStrategy,
)
from apikeyrouter.domain.models.state_summary import StateSummary
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    ClockSuspectError,
    ErrorCategory,
    InvalidRequestError,
    LedgerUnavailableError,
    ModelNotFoundError,
    PolicyDeniedError,
    ProviderError,
    SystemError,
)
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.domain.models.trace import Trace
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.serving.leases import Lease

__all__ = [
    "APIKey",
    "ApiKeyRouter",
    "ApiKeyRouterError",
    "BudgetCheckResult",
    "BudgetExceededError",
    "BudgetStatus",
    "CapacityEstimate",
    "CapacityState",
    "CircuitState",
    "ClockSuspectError",
    "ErrorCategory",
    "ExhaustionPrediction",
    "FailureInterpretation",
    "HealthState",
    "InvalidRequestError",
    "KeyProbe",
    "KeyRegistrationError",
    "KeyState",
    "Lease",
    "LedgerUnavailableError",
    "Message",
    "ModelNotFoundError",
    "NoEligibleKeysError",
    "ObjectiveType",
    "Policy",
    "PolicyDeniedError",
    "PolicyImpact",
    "PolicyResult",
    "ProviderAdapter",
    "ProviderCapabilities",
    "ProviderError",
    "Quota",
    "QuotaState",
    "QuotaUnit",
    "RequestIntent",
    "RouterSettings",
    "RoutingDecision",
    "RoutingObjective",
    "RoutingStrategy",
    "StateSummary",
    "StateTransition",
    "SystemError",
    "SystemResponse",
    "TimeWindow",
    "Trace",
    "ValidationResult",
    "__version__",
]
