"""Every event: its name, the level of its log line, its fields. `docs/observability.md` shows this table."""

from dataclasses import dataclass
from logging import DEBUG, INFO, WARNING

__all__ = ["ALL", "COMMON", "EVENTS", "EventName"]

ALL = "*"
"""What subscribes to every event."""
COMMON = ("event", "at_us", "request_id")
"""Fields of every event. `at_us`: Unix microseconds; `request_id`: "" where it belongs to no request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventName:
    """One kind of event. `fields` come on top of the common ones, all of them always."""

    name: str
    help: str
    fields: tuple[str, ...]
    level: int = INFO


_REQUEST = (
    "outcome", "operation", "model", "stream", "objective", "key_id", "provider_id", "team", "client", "attempts",
    "input_tokens", "output_tokens", "cached_input_tokens", "cost_nanousd", "estimated", "denied_by", "total_us",
    "upstream_us", "overhead_us", "first_token_us", "finish_reason",
)  # fmt: skip

_KEY = ("key_id", "from_state", "to_state", "reason", "actor", "until_us")

_TABLE = (
    EventName(
        name="request.completed", level=DEBUG, fields=_REQUEST,
        help="A request was answered, to its end. Costs are None where the price is unknown.",
    ),
    EventName(
        name="request.failed", level=DEBUG, fields=_REQUEST,
        help="A request ended otherwise; `outcome` says how, `denied_by` which lane or budget had no room.",
    ),
    EventName(
        name="routing.decided", level=DEBUG,
        fields=("key_id", "provider_id", "model", "objective", "attempts", "candidates", "explanation"),
        help="Which key a request went to, of how many candidates. Told when the request has ended.",
    ),
    EventName(
        name="attempt.failed",
        fields=("key_id", "provider_id", "model", "category", "scope", "action", "status", "reason", "retry_after_us"),
        help="A provider failed a request; another key may still serve it.",
    ),
    EventName(
        name="lane.cooled", fields=("lane", "seconds", "reason"),
        help="A lane is left alone for a while, because its provider said so.",
    ),
    EventName(
        name="circuit.opened", level=WARNING, fields=("lane", "until_us"),
        help="A breaker opened: the lane gets no requests until `until_us`, then one probe.",
    ),
    EventName(name="circuit.closed", fields=("lane",), help="A breaker closed: the lane serves again."),
    EventName(
        name="store.away", level=WARNING, fields=("error",),
        help="The accounting's store does not answer this process, which looks for it from now on.",
    ),
    EventName(
        name="store.back", level=WARNING, fields=("away_seconds", "waiting"),
        help="The store answers again, after so long; so many ends of reservations wait for it.",
    ),
    EventName(
        name="key.registered", level=DEBUG, fields=_KEY,
        help="A key is new. The process that did it tells what happens to keys.",
    ),
    EventName(name="key.state_changed", fields=_KEY, help="A key went from one state to another."),
    EventName(
        name="key.changed", level=DEBUG, fields=_KEY,
        help="Something else about a key is new, e.g. its material.",
    ),
    EventName(name="key.revoked", level=DEBUG, fields=_KEY, help="A key was revoked."),
    EventName(
        name="provider.registered", level=DEBUG, fields=("provider_id",),
        help="A provider was registered in this process.",
    ),
    EventName(
        name="quota.state_changed", level=DEBUG, fields=("lane", "from_state", "to_state"),
        help="What is left in a lane became abundant, constrained, critical or exhausted.",
    ),
    EventName(
        name="quota_group.suspected", level=WARNING, fields=("key_id", "other_key_id"),
        help="Two keys of different quota groups seem to have one counter at their provider; declare one group.",
    ),
    EventName(
        name="quota_group.conflict", level=WARNING, fields=("key_ids", "groups", "key_count", "group_count"),
        help="Keys of one organisation were declared to be in several quota groups, so that each is counted alone. "
        "Ten at most are named.",
    ),
    EventName(
        name="budget.soft_exceeded", level=DEBUG, fields=("scope",),
        help="A request was served although a soft budget had no room for it.",
    ),
    EventName(
        name="budget.threshold", level=WARNING,
        fields=("scope", "percent", "limit_nanousd", "spent_nanousd", "resets_at_us"),
        help="A budget passed 50, 80, 90 or 100 % of its limit, with what is held and in suspense.",
    ),
    EventName(name="config.changed", level=DEBUG, fields=("version",), help="Other limits or budgets are in force."),
    EventName(
        name="metric.emitted", level=DEBUG, fields=("name", "value", "tags"),
        help="A measurement; names and tags are those of docs/metrics.md.",
    ),
)  # fmt: skip
EVENTS: dict[str, EventName] = {event.name: event for event in _TABLE}
