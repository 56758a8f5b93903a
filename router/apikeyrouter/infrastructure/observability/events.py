"""The library's event log: structlog, configured by the application and never by us."""

from typing import Any

__all__ = ["EventLog"]


class EventLog:
    """A structlog logger by name, imported with the first event: structlog brings a console renderer that few need.

    `log.warning("noun.verb_past", key=value)`, as structlog has it.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog

        return getattr(structlog.get_logger(self._name), method)
