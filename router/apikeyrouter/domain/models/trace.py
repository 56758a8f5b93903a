"""The story of one request, as it was observed."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["Trace", "TraceEvent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """One thing that happened. `at` is aware UTC."""

    name: str
    at: datetime
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Everything known about a request, oldest first."""

    request_id: str
    events: tuple[TraceEvent, ...] = ()
