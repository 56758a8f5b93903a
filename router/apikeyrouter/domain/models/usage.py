"""What one answer used, in one shape for every provider (`providers.md` §2.1)."""

import msgspec


class MediaTokens(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens that are no text, within the totals of a Usage; the cached ones also within the inputs here."""

    audio_input: int = 0
    image_input: int = 0
    video_input: int = 0
    audio_cached: int = 0
    image_cached: int = 0
    audio_output: int = 0
    image_output: int = 0
    video_output: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Token counts. Totals are inclusive: `input_tokens` contains cache reads and writes, `output_tokens` reasoning.

    `media`: what of it is sound, pictures or film (None: nothing, or not told); reasoning is text. `service_tier`: the
    tier that served it (`priority`, `flex`, `batch`, …). `estimated` marks counts that the provider did not tell (a
    broken stream, a silent server). `cost_nanousd`: what the provider itself says it charges; None: it says nothing, a
    price list decides.
    """

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_long_tokens: int = 0
    reasoning_tokens: int = 0
    service_tier: str | None = None
    estimated: bool = False
    media: MediaTokens | None = None
    cost_nanousd: int | None = None

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens
