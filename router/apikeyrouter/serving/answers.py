"""What a Python caller gets: an exchange as a response, as chunks, as an error."""

import asyncio
from dataclasses import replace
from typing import Any

from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.domain.interfaces.wire import DeltaReader
from apikeyrouter.domain.models.call import Call, Exchange, Facts
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.system_error import (
    ErrorCategory,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
    NoEligibleKeysError,
    PolicyDeniedError,
    ProviderError,
    StaleConfigError,
    StateStoreError,
)
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse, TokenUsage


def response_of(call: Call, exchange: Exchange) -> SystemResponse:
    """The whole answer, with how it came about filled in. Raises ProviderError when the body is no answer."""
    facts = exchange.facts
    answer = exchange.response or _as_response(call, exchange)
    cost = cost_of(facts)
    amount, key_id = cost.amount if cost else None, facts.key_id
    metadata = answer.metadata.but(
        provider_id=facts.provider_id, response_time_ms=facts.total_us // 1000, request_id=call.request_id,
        correlation_id=call.request_id, key_used=key_id, model_used=answer.metadata.model_used or facts.model_used,
        cost=amount, cost_actual=amount,
        tokens_used=TokenUsage.from_usage(facts.usage) if facts.usage else answer.metadata.tokens_used,
    )  # fmt: skip
    if facts.soft_exceeded:
        marks = {**metadata.additional_metadata, "soft_budgets_exceeded": list(facts.soft_exceeded)}
        metadata = metadata.but(additional_metadata=marks)
    if facts.standby:
        metadata = metadata.but(additional_metadata={**metadata.additional_metadata, "store_away": True})
    return answer.but(metadata=metadata, cost=cost, key_used=key_id, request_id=call.request_id)


def _as_response(call: Call, exchange: Exchange) -> SystemResponse:
    read = exchange.read
    if read is None or read.raw is None:
        raise ProviderError("the provider's answer is not JSON", category=ErrorCategory.ProviderError)
    answer: SystemResponse = exchange.provider.adapter.as_response(read.answer, read.raw, call.intent)
    return answer


def deltas_of(provider: Provider, call: Call) -> DeltaReader | None:
    """What reads the bytes of one stream; None for an adapter that yields chunks itself."""
    wire = provider.wire
    if wire is None:
        return None
    deltas: DeltaReader = wire.deltas(operation=call.operation if call.operation in wire.operations else "chat")
    return deltas


def pieces_of(provider: Provider, piece: bytes | StreamChunk, deltas: DeltaReader | None) -> list[StreamChunk]:
    """The chunks in one piece of a stream. What an adapter calls its last chunk is not: the router's own is."""
    if not isinstance(piece, StreamChunk):
        assert deltas is not None
        return [provider.adapter.decode_delta(delta) for delta in deltas.read(piece)]
    if not piece.last:
        return [piece]
    if not (piece.text or piece.tool_calls or piece.refusal or piece.reasoning):
        return []
    return [replace(piece, last=False, usage=None, cost=None, key_used="", request_id="", finish_reason=None)]


def last_chunk(facts: Facts) -> StreamChunk:
    """What ends a stream: usage, cost, key."""
    return StreamChunk(
        last=True, usage=TokenUsage.from_usage(facts.usage) if facts.usage else None, cost=cost_of(facts),
        key_used=facts.key_id, request_id=facts.request_id, finish_reason=facts.finish_reason,
    )  # fmt: skip


def cost_of(facts: Facts) -> CostEstimate | None:
    """What the answer cost; None where the price is unknown."""
    if facts.cost_nanousd is None:
        return None
    usage = facts.usage
    return CostEstimate.from_nanousd(
        facts.cost_nanousd, input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
    )  # fmt: skip


def provider_error(failure: Failure, facts: Facts) -> ProviderError:
    """The error when the last attempt failed."""
    seconds = -(-failure.retry_after_us // 1_000_000)
    details: dict[str, Any] = {
        "failure": failure, "status": failure.status, "code": failure.code, "request_id": facts.request_id,
        "attempts": len(facts.attempts), "provider_id": facts.provider_id,
    }  # fmt: skip
    return ProviderError(
        failure.message, category=failure.category, retryable=failure.retryable, retry_after=seconds or None,
        details=details,
    )  # fmt: skip


def outcome_of(error: BaseException) -> str:
    """An error in one word, for facts and metrics: a category, or one of six more."""
    category = getattr(error, "category", None)
    if category is not None:
        return str(category.value)
    if isinstance(error, InvalidRequestError):
        return "invalid_request"
    if isinstance(error, NoEligibleKeysError):
        return "policy_denied" if isinstance(error, PolicyDeniedError) else "no_eligible_keys"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, (LedgerUnavailableError, StaleConfigError, StateStoreError)):
        return "store_error"
    return "accounting_error" if isinstance(error, LedgerError) else "internal_error"
