"""What a caller gets back, in one shape for every provider."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, computed_field, model_validator

from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.money import Money
from apikeyrouter.domain.models.usage import Usage

__all__ = ["ResponseMetadata", "StreamChunk", "SystemResponse", "TokenUsage"]


class TokenUsage(EdgeModel):
    """Token counts, inclusive: input contains cache reads and writes, output contains reasoning."""

    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)
    estimated: bool = False

    @model_validator(mode="before")
    @classmethod
    def _totals_are_computed(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if name not in ("total", "total_tokens")}
        return data

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    @property
    def total(self) -> int:
        """The same as `total_tokens`."""
        return self.total_tokens

    @classmethod
    def from_usage(cls, usage: Usage) -> "TokenUsage":
        """The public face of what an adapter read."""
        return cls.made(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens + usage.cache_write_long_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            estimated=usage.estimated,
        )


def _now() -> datetime:
    return datetime.now(UTC)


class ResponseMetadata(EdgeModel):
    """How an answer came about. The router fills in what the adapter leaves out.

    `cost` is the best known amount in dollars, `cost_actual` the one from real usage; None where the price is unknown.
    """

    model_used: str
    tokens_used: TokenUsage = Field(default_factory=TokenUsage)
    response_time_ms: int = Field(default=0, ge=0)
    provider_id: str = ""
    timestamp: datetime = Field(default_factory=_now)
    finish_reason: str | None = None
    request_id: str | None = None
    correlation_id: str | None = None
    additional_metadata: dict[str, Any] = Field(default_factory=dict)
    key_used: str | None = None
    cost: Money | None = None
    cost_actual: Money | None = None

    @property
    def token_usage(self) -> TokenUsage:
        """The same as `tokens_used`."""
        return self.tokens_used


class SystemResponse(EdgeModel):
    """One complete answer.

    `content` is its text, "" if it has none. `key_used` is a key's id, never its material. `reasoning` is what the
    model told of its thoughts, `embeddings` one vector for each input of an embedding. `raw` is the provider's decoded
    body. A custom adapter may leave `key_used`, `request_id` and `cost` out; a `cost` that it gives is what is booked.
    """

    content: str
    metadata: ResponseMetadata
    cost: CostEstimate | None = None
    key_used: str = ""
    request_id: str = ""
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    embeddings: list[list[float]] | None = Field(default=None, repr=False)
    raw: Any = Field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChunk:
    """One piece of a streamed answer; `str()` is its text, so that printing it prints the answer.

    The last chunk (`last`) carries `usage`, `cost` (None: unknown), `key_used`, `request_id` and `finish_reason`.
    """

    text: str = ""
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    last: bool = False
    usage: TokenUsage | None = None
    cost: CostEstimate | None = None
    key_used: str = ""
    request_id: str = ""
    raw: Any = None

    def __str__(self) -> str:
        return self.text
