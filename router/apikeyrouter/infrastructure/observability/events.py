"""The library's event log: structlog, configured by the application and never by us.

Lines carry the id of the request that they belong to, and no secrets: what a provider or an adapter said is redacted.
Where the application has not configured structlog, they go to standard error.
"""

import logging
import sys
from contextvars import ContextVar
from typing import Any

from apikeyrouter.infrastructure.security.redaction import redact

__all__ = ["REQUEST_ID", "EventLog", "level_of"]

REQUEST_ID: ContextVar[str] = ContextVar("structlog_request_id", default="")
"""The request that this task works for. By its name structlog puts it into the application's own lines as well."""
_FREE_TEXT = ("error", "reason", "message")
"""Fields that may repeat what others said."""


class EventLog:
    """A structlog logger by name, imported with the first event: structlog brings a console renderer that few need.

    `log.warning("noun.verb_past", key=value)`, as structlog has it. What is below `level` (the whole process's, set by
    the router's `log_level`) is dropped before anything is done.
    """

    __slots__ = ("_name",)
    level = logging.INFO

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """What happens at every request."""
        self.write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What changed."""
        self.write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What an operator should look at."""
        self.write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What went wrong."""
        self.write(logging.ERROR, event, fields)

    def write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        """One line, with the request's id and without secrets."""
        if level < EventLog.level:
            return
        import structlog

        request_id = REQUEST_ID.get()
        if request_id:
            fields.setdefault("request_id", request_id)
        for name in _FREE_TEXT:
            told = fields.get(name)
            if isinstance(told, str):
                fields[name] = redact(told)
        logger = structlog.get_logger(self._name) if structlog.is_configured() else _plain(structlog)
        getattr(logger, _METHODS[level])(event, **fields)


_METHODS = {
    logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error",
}  # fmt: skip


def _plain(structlog: Any) -> Any:
    """Where nobody configured anything: standard error, so that a program's own output stays its own."""
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr))


def level_of(name: str) -> int:
    """A level's number by its name."""
    return logging.getLevelNamesMapping()[name]
