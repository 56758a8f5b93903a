"""The service's own log: JSON lines on standard error, redacted. The library itself never configures logging."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from apikeyrouter.infrastructure.security.redaction import redact

__all__ = ["configure_logs"]


def configure_logs(level: str) -> None:
    """Send structlog's events at `level` and above to standard error. What is configured already stays."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redacted,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _redacted(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and name not in ("event", "timestamp", "level"):
            event[name] = "\n".join([redact(line) for line in value.splitlines()])
    return event
