"""Usage members of every shape (`providers.md` §2.1), as one: cache counts within input, reasoning within output."""

import msgspec

from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.usage import Usage


class CacheCreation(msgspec.Struct, gc=False):
    """Anthropic's split of cache writes by time to live."""

    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class WriteDetails(msgspec.Struct, gc=False):
    """OpenAI's split of cache writes by time to live."""

    ttl_12h_tokens: int | None = None


class InputDetails(msgspec.Struct, gc=False):
    """OpenAI: parts of the input."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_tokens_details: WriteDetails | None = None


class OutputDetails(msgspec.Struct, gc=False):
    """OpenAI and Anthropic: parts of the output."""

    reasoning_tokens: int | None = None
    thinking_tokens: int | None = None


class OpenAIUsage(msgspec.Struct, gc=False):
    """Chat, completions and embeddings (`prompt_tokens`), responses (`input_tokens`), DeepSeek's cache counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None

    def read(self, service_tier: str | None = None) -> Usage | None:
        """As one Usage; None when the counts are absent or nonsense (negative, beyond 2^53)."""
        read = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        written = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        if read is None and written is None:
            return None
        details = self.prompt_tokens_details or self.input_tokens_details
        parts = self.completion_tokens_details or self.output_tokens_details
        cached = (details.cached_tokens if details else None) or self.prompt_cache_hit_tokens or 0
        stored = (details.cache_write_tokens if details else None) or 0
        reasoning = (parts.reasoning_tokens if parts else None) or 0
        return checked(read or 0, written or 0, cached, stored, 0, reasoning, service_tier)


class AnthropicUsage(msgspec.Struct, gc=False):
    """Anthropic's counts; its `input_tokens` excludes cache reads and writes."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None
    service_tier: str | None = None
    speed: str | None = None

    def merged(self, later: "AnthropicUsage") -> "AnthropicUsage":
        """Cumulative counts: what `later` says wins, member by member."""
        for name in self.__struct_fields__:
            value = getattr(later, name)
            if value is not None:
                setattr(self, name, value)
        return self

    def read(self) -> Usage | None:
        """As one Usage; None when the counts are absent or nonsense."""
        if self.input_tokens is None and self.output_tokens is None:
            return None
        cached = self.cache_read_input_tokens or 0
        stored = self.cache_creation_input_tokens or 0
        split = self.cache_creation
        long = min(stored, (split.ephemeral_1h_input_tokens or 0) if split else 0)
        reasoning = (self.output_tokens_details.thinking_tokens if self.output_tokens_details else None) or 0
        total = (self.input_tokens or 0) + cached + stored
        return checked(total, self.output_tokens or 0, cached, stored - long, long, reasoning, self._tier())

    def _tier(self) -> str | None:
        """Fast mode has a price of its own, so it counts as a tier."""
        return self.speed if self.speed == "fast" else self.service_tier


def checked(
    read: int, written: int, cached: int, stored: int, stored_long: int, reasoning: int, tier: str | None
) -> Usage | None:
    """A Usage whose parts fit their totals; None for negative or absurd totals."""
    if read < 0 or written < 0 or read > AMOUNT_MAX or written > AMOUNT_MAX:
        return None
    cached = min(max(cached, 0), read)
    stored_long = min(max(stored_long, 0), read - cached)
    return Usage(
        input_tokens=read,
        output_tokens=written,
        cache_read_tokens=cached,
        cache_write_tokens=min(max(stored, 0), read - cached - stored_long),
        cache_write_long_tokens=stored_long,
        reasoning_tokens=min(max(reasoning, 0), written),
        service_tier=tier,
    )
