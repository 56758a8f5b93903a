"""What an error of a generic HTTP API means: rules that a configuration tells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apikeyrouter.domain.interfaces.provider_adapter import RETRY_AFTER_SECONDS_MAX
from apikeyrouter.domain.models.system_error import ConfigurationError, ErrorCategory, SystemError
from apikeyrouter.infrastructure.adapters.json_path import JsonPath

__all__ = ["ErrorRule", "error_rules"]

_NAMES = frozenset({"status", "path", "equals", "category", "retry_after", "message"})
_RETRYABLE = frozenset(
    {
        ErrorCategory.RateLimitError, ErrorCategory.ProviderError, ErrorCategory.TimeoutError,
        ErrorCategory.NetworkError,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """One rule: `status` (absent: any), `path` with `equals` (absent: there is something that is neither false nor
    empty), and what it means: `category`. `retry_after` and `message` are places in the answer; the header wins.
    """

    status: int | None
    path: JsonPath | None
    equals: Any
    category: ErrorCategory
    retry_after: JsonPath | None
    message: JsonPath | None

    def matches(self, status: int, answer: Any) -> bool:
        """Whether every given condition holds."""
        if self.status is not None and status != self.status:
            return False
        if self.path is None:
            return True
        found = self.path.find(answer)
        return bool(found) if self.equals is None else found == self.equals

    def error(self, status: int, headers: Mapping[str, str], answer: Any) -> SystemError:
        """The error to raise."""
        said = self.message.find(answer) if self.message is not None else None
        told = headers.get("retry-after") or (self.retry_after.find(answer) if self.retry_after is not None else None)
        return SystemError(
            said if isinstance(said, str) else f"the provider answered {status}",
            category=self.category, retryable=self.category in _RETRYABLE, retry_after=_seconds(told),
            details={"status": status},
        )  # fmt: skip


def error_rules(rules: Iterable[Mapping[str, Any]]) -> tuple[ErrorRule, ...]:
    """Rules as a configuration has them. Raises ConfigurationError naming the one that cannot be understood."""
    return tuple(_rule(number, rule) for number, rule in enumerate(rules))


def _rule(number: int, rule: Mapping[str, Any]) -> ErrorRule:
    where = f"errors[{number}]"
    unknown = sorted(rule.keys() - _NAMES)
    if unknown:
        raise ConfigurationError(f"{where}: no {unknown[0]!r}; there are {', '.join(sorted(_NAMES))}")
    if "status" not in rule and "path" not in rule:
        raise ConfigurationError(f"{where}: needs a status or a path")
    category = ErrorCategory.lookup(str(rule.get("category")))
    if category is None:
        raise ConfigurationError(f"{where}.category: must be one of {', '.join(ErrorCategory)}")
    paths = {name: JsonPath(rule[name]) if name in rule else None for name in ("path", "retry_after", "message")}
    return ErrorRule(status=rule.get("status"), equals=rule.get("equals"), category=ErrorCategory(category), **paths)


def _seconds(told: Any) -> int | None:
    try:
        seconds = float(told)
    except (TypeError, ValueError):
        return None
    return min(-int(-seconds // 1), RETRY_AFTER_SECONDS_MAX) if 0 < seconds < float("inf") else None
