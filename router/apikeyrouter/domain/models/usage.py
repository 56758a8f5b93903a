"""What one answer used, in one shape for every provider (`providers.md` §2.1)."""

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. Totals are inclusive: `input_tokens` contains cache reads and writes, `output_tokens` reasoning.

    `estimated` marks counts that the provider did not tell (a broken stream, a silent server).
    """

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_long_tokens: int = 0
    reasoning_tokens: int = 0
    service_tier: str | None = None
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens
