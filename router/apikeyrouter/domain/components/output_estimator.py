"""Output that nobody counted: what a stream that broke, or was left, had probably cost until then. Pure.

A token is four bytes of text until complete streams of the model have taught better (`providers.md` §2.2). Reasoning
is not seen: what the model usually thinks is added, because it thinks before it speaks.
"""

BYTES_PER_TOKEN = 4
BYTES_MIN = 64
"""Shorter answers teach nothing: rounding and framing outweigh their text."""
SHARE = 0.2
"""Weight of the newest answer."""
RATIO_MAX = 2.0
"""Most tokens that a byte is believed to be."""
MODELS_MAX = 10_000
Place = tuple[str, str]
"""A provider and one of its models."""


class OutputEstimator:
    """Learns from complete streams, per provider and model; remembers at most MODELS_MAX of them."""

    def __init__(self) -> None:
        self._known: dict[Place, tuple[float, float]] = {}
        """Tokens per byte of text, and tokens of reasoning per answer."""

    def learn(self, place: Place, *, output_tokens: int, reasoning_tokens: int, produced: int) -> None:
        """A stream of `produced` bytes of text was counted by the provider."""
        spoken = output_tokens - reasoning_tokens
        if produced < BYTES_MIN or spoken <= 0:
            return
        ratio = min(spoken / produced, RATIO_MAX)
        known = self._known.get(place)
        if known is None:
            if len(self._known) >= MODELS_MAX:
                self._known.clear()
            self._known[place] = (ratio, float(reasoning_tokens))
        else:
            self._known[place] = (
                known[0] + SHARE * (ratio - known[0]), known[1] + SHARE * (reasoning_tokens - known[1]),
            )  # fmt: skip

    def tokens(self, place: Place, produced: int) -> int:
        """The output tokens behind `produced` bytes of text, rounded up; 0 where nothing was said."""
        if produced <= 0:
            return 0
        ratio, reasoning = self._known.get(place, (1 / BYTES_PER_TOKEN, 0.0))
        return -int(-produced * ratio // 1) + round(reasoning)
