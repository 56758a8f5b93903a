"""The time that charts show: one choice for all of them, on every page of a session."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from nicegui import ui

from apikeyrouter_dashboard.sessions import Session

__all__ = ["RANGES", "days_of", "is_live", "range_toggle"]

RANGES = {0: "now", 1: "today", 7: "7 days", 30: "30 days", 90: "90 days"}
"""Days that charts show; 0: as it happens, where something is told of that, else today."""


DAYS = 0
"""What is shown until somebody chooses."""


def range_toggle(session: Session, changed: Callable[[], Any]) -> Any:
    """The choice, as it was made last, wherever. `changed` is called when it is made anew."""

    def choose(event: Any) -> Any:
        session.chosen["days"] = int(event.value)
        return changed()

    made = ui.toggle(RANGES, value=session.chosen.get("days", DAYS), on_change=choose)
    return made.props('no-caps dense unelevated toggle-color=primary aria-label="Range of all charts"')


def is_live(session: Session) -> bool:
    """Whether it is shown as it happens."""
    return session.chosen.get("days", DAYS) == 0


def days_of(session: Session, today: date | None = None) -> list[date]:
    """The days (UTC) that are shown, the first one first."""
    today = today or datetime.now(UTC).date()
    number = max(1, session.chosen.get("days", DAYS))
    return [today - timedelta(days=number - 1 - n) for n in range(number)]
