"""A call's facts as what observers get: an event's fields, measurements, the steps of a trace. Pure."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from apikeyrouter.domain.models.accounting import Loss
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.domain.models.trace import Trace, TraceEvent
from apikeyrouter.infrastructure.observability import metric_names

__all__ = ["measurements_of", "request_fields", "trace_of"]

Measurement = tuple[str, float, Mapping[str, str]]


def request_fields(facts: Facts) -> dict[str, Any]:
    """The fields of request.completed and request.failed. Never a body, a token or a key's material."""
    usage, denial = facts.usage, facts.denial
    return {
        "request_id": facts.request_id, "outcome": facts.outcome, "operation": facts.operation, "model": facts.model,
        "stream": facts.stream, "objective": str(facts.objective), "key_id": facts.key_id,
        "provider_id": facts.provider_id, "team": facts.team, "client": facts.client,
        "attempts": len(facts.attempts), "input_tokens": usage.input_tokens if usage else 0,
        "output_tokens": usage.output_tokens if usage else 0,
        "cached_input_tokens": usage.cache_read_tokens if usage else 0, "cost_nanousd": facts.cost_nanousd,
        "estimated": bool(usage and usage.estimated), "denied_by": denied_by(denial), "total_us": facts.total_us,
        "upstream_us": facts.upstream_us, "overhead_us": facts.overhead_us, "first_token_us": facts.first_token_us,
        "finish_reason": facts.finish_reason,
    }  # fmt: skip


def denied_by(denial: Loss | None) -> str | None:
    """The lane or budget that had no room, and its limit."""
    if denial is None:
        return None
    return f"{denial.where}:{denial.limit}" if denial.limit else denial.where


def measurements_of(facts: Facts) -> Iterator[Measurement]:
    """What one request adds to the metrics of `metric_names.py`. Times in seconds."""
    who = {"provider": facts.provider_id, "model": facts.model}
    route = {"route": facts.operation, **who}
    yield metric_names.REQUESTS.name, 1, {**route, "outcome": facts.outcome}
    if facts.attempts:
        yield metric_names.ATTEMPTS.name, len(facts.attempts), route
    on_route = {"route": facts.operation, "provider": facts.provider_id}
    yield metric_names.DURATION.name, facts.total_us / 1e6, on_route
    yield metric_names.OVERHEAD.name, facts.overhead_us / 1e6, {"route": facts.operation}
    if facts.first_token_us:
        yield metric_names.FIRST_TOKEN.name, facts.first_token_us / 1e6, who
    if facts.usage is not None:
        yield metric_names.TOKENS.name, facts.usage.input_tokens, {**who, "direction": "input"}
        yield metric_names.TOKENS.name, facts.usage.output_tokens, {**who, "direction": "output"}
        yield metric_names.TOKENS.name, facts.usage.cache_read_tokens, {**who, "direction": "cached_input"}
    if facts.cost_nanousd is not None:
        yield metric_names.COST.name, facts.cost_nanousd, who


def trace_of(facts: Facts, beside: tuple[TraceEvent, ...] = ()) -> Trace:
    """The story of a call: what it did itself, and what happened because of it (`beside`), oldest first."""
    started = datetime.fromtimestamp(facts.at_us / 1e6, UTC)
    own = [_event("request.received", started, 0, _received(facts))]
    for number, attempt in enumerate(facts.attempts, 1):
        own.extend(_steps(attempt, number, started))
    if facts.first_token_us:
        own.append(_event("answer.begun", started, facts.first_token_us, {}))
    if facts.outcome != "pending":
        name = "request.completed" if facts.outcome == "ok" else "request.failed"
        own.append(_event(name, started, facts.total_us, request_fields(facts)))
    return Trace(request_id=facts.request_id, events=tuple(sorted((*own, *beside), key=lambda event: event.at)))


def _received(facts: Facts) -> dict[str, Any]:
    return {
        "operation": facts.operation, "model": facts.model, "stream": facts.stream, "objective": str(facts.objective),
        "team": facts.team, "client": facts.client, "snapshot_age_us": facts.snapshot_age_us,
    }  # fmt: skip


def _steps(attempt: AttemptFacts, number: int, started: datetime) -> Iterator[TraceEvent]:
    held_us = attempt.asked_us + attempt.reserve_us
    who = {"attempt": number, "key_id": attempt.key_id, "provider_id": attempt.provider_id, "model": attempt.model}
    candidates = attempt.candidates
    losses = [
        {"candidate": candidate, "reason": loss.reason.name.lower(), "where": loss.where,
         "limit": loss.limit, "retry_at_us": loss.retry_at_us}
        for candidate, loss in zip(candidates, attempt.losses, strict=False)
    ]  # fmt: skip
    yield _event(
        "capacity.held", started, held_us,
        {**who, "reservation": attempt.rid.hex(), "candidates": list(candidates), "losses": losses,
         "probe": attempt.probe, "reserve_us": attempt.reserve_us},
    )  # fmt: skip
    ended = {**who, "status": attempt.status, "upstream_us": attempt.upstream_us}
    if attempt.failure:
        yield _event("attempt.ended", started, held_us + attempt.upstream_us, {**ended, "failure": attempt.failure})
    elif attempt.upstream_us:
        yield _event("attempt.ended", started, held_us + attempt.upstream_us, {**ended, "failure": ""})


def _event(name: str, started: datetime, after_us: int, fields: dict[str, Any]) -> TraceEvent:
    return TraceEvent(name=name, at=started + timedelta(microseconds=after_us), fields=fields)
