"""The library's event log: structlog, configured by the application and never by us.

Lines carry the id of the request that they belong to, and no secrets: what a provider or an adapter said is redacted.
Where the application has not configured structlog, they go to standard error.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from apikeyrouter.infrastructure.security.redaction import redact

__all__ = ["REQUEST_ID", "EventLog", "ask_for_level", "level_of", "working_for"]

REQUEST_ID: ContextVar[str] = ContextVar("structlog_request_id", default="")
"""The request that this task works for. By its name structlog puts it into the application's own lines as well."""
_LEVELS: WeakKeyDictionary[object, int] = WeakKeyDictionary()
_FREE_TEXT = ("error", "reason", "message")
"""Fields that may repeat what others said."""


class EventLog:
    """A structlog logger by name, imported with the first event: structlog brings a console renderer that few need.

    `log.warning("noun.verb_past", key=value)`, as structlog has it. What is below `level` is dropped before anything is
    done: the lowest `log_level` of the routers in this process, for lines that are no events of one router.
    """

    __slots__ = ("_name",)
    level = logging.INFO

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """What happens at every request."""
        self._write_from(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What changed."""
        self._write_from(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What an operator should look at."""
        self._write_from(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What went wrong."""
        self._write_from(logging.ERROR, event, fields)

    def _write_from(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if level >= EventLog.level:
            self.write(level, event, fields)

    def write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        """One line, with the request's id and without secrets, whatever the level."""
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


@contextlib.contextmanager
def working_for(request_id: str) -> Iterator[None]:
    """Until its end, what this task does is done for that request."""
    speaking = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(speaking)


def ask_for_level(owner: object, level: int) -> None:
    """Lines that belong to no router in particular have the lowest level that one which is alive asks for."""
    _LEVELS[owner] = level
    EventLog.level = min(_LEVELS.values())


def level_of(name: str) -> int:
    """A level's number by its name."""
    return logging.getLevelNamesMapping()[name]
