"""Usage members of every shape (`providers.md` §2.1), as one: cache counts within input, reasoning within output."""

from decimal import ROUND_CEILING, Decimal

import msgspec

from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.usage import MediaTokens, Usage


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
    audio_tokens: int | None = None
    image_tokens: int | None = None


class OutputDetails(msgspec.Struct, gc=False):
    """OpenAI and Anthropic: parts of the output."""

    reasoning_tokens: int | None = None
    thinking_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


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
    input_token_details: InputDetails | None = None
    """As transcriptions spell it."""
    output_tokens_details: OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cost: object = None

    def read(self, service_tier: str | None = None, *, tells_cost: bool = False) -> Usage | None:
        """As one Usage; None when the counts are absent or nonsense (negative, beyond 2^53).

        `tells_cost`: whether `cost` is what the provider charges, in dollars.
        """
        read = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        written = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        if read is None and written is None:
            return None
        details = self.prompt_tokens_details or self.input_tokens_details or self.input_token_details
        parts = self.completion_tokens_details or self.output_tokens_details
        cached = (details.cached_tokens if details else None) or self.prompt_cache_hit_tokens or 0
        stored = (details.cache_write_tokens if details else None) or 0
        reasoning = (parts.reasoning_tokens if parts else None) or 0
        media = None
        if (details and (details.audio_tokens or details.image_tokens)) or (
            parts and (parts.audio_tokens or parts.image_tokens)
        ):
            media = MediaTokens(
                audio_input=(details.audio_tokens if details else None) or 0,
                image_input=(details.image_tokens if details else None) or 0,
                audio_output=(parts.audio_tokens if parts else None) or 0,
                image_output=(parts.image_tokens if parts else None) or 0,
            )
        cost = _nanousd(self.cost) if tells_cost else None
        return checked(read or 0, written or 0, cached, stored, 0, reasoning, service_tier, media, cost)


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
    read: int,
    written: int,
    cached: int,
    stored: int,
    stored_long: int,
    reasoning: int,
    tier: str | None,
    media: MediaTokens | None = None,
    cost_nanousd: int | None = None,
) -> Usage | None:
    """A Usage whose parts fit their totals; None for negative or absurd totals."""
    if read < 0 or written < 0 or read > AMOUNT_MAX or written > AMOUNT_MAX:
        return None
    if cached or stored or stored_long or reasoning:
        cached = min(max(cached, 0), read)
        stored_long = min(max(stored_long, 0), read - cached)
        stored = min(max(stored, 0), read - cached - stored_long)
        reasoning = min(max(reasoning, 0), written)
    return Usage(
        input_tokens=read,
        output_tokens=written,
        cache_read_tokens=cached,
        cache_write_tokens=stored,
        cache_write_long_tokens=stored_long,
        reasoning_tokens=reasoning,
        service_tier=tier,
        media=None if media is None else fitted(media, read - stored - stored_long, cached, written - reasoning),
        cost_nanousd=cost_nanousd,
    )


def fitted(media: MediaTokens, read: int, cached: int, written: int) -> MediaTokens:
    """The parts within what was read (new and cached, but not written to a cache) and what was written.

    Of cached tokens whose kind is not told, as many are text as can be.
    """
    audio = min(max(media.audio_input, 0), read)
    image = min(max(media.image_input, 0), read - audio)
    video = min(max(media.video_input, 0), read - audio - image)
    audio_cached = min(max(media.audio_cached, 0), audio, cached)
    image_cached = min(max(media.image_cached, 0), image, cached - audio_cached)
    no_text = max(0, cached - audio_cached - image_cached - (read - audio - image - video))
    more = min(no_text, audio - audio_cached)
    also = min(no_text - more, image - image_cached)
    sound = min(max(media.audio_output, 0), written)
    pictures = min(max(media.image_output, 0), written - sound)
    return MediaTokens(
        audio_input=audio, image_input=image, video_input=video - (no_text - more - also),
        audio_cached=audio_cached + more, image_cached=image_cached + also, audio_output=sound, image_output=pictures,
        video_output=min(max(media.video_output, 0), written - sound - pictures),
    )  # fmt: skip


def _nanousd(told: object) -> int | None:
    """A number of dollars as nano-dollars, rounded up; None for anything else (OpenRouter's is a JSON number)."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    nanousd = (Decimal(repr(told)) * 10**9).to_integral_value(ROUND_CEILING)
    return int(nanousd) if 0 <= nanousd <= AMOUNT_MAX else None
