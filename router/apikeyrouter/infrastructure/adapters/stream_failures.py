"""Failures that only a stream can have. What the provider billed is unknown in all of them."""

from apikeyrouter.domain.components.failure_taxonomy import GARBLED
from apikeyrouter.domain.models.failure import Failure


def truncated() -> Failure:
    """The provider closed a stream without its terminator: SDKs would not notice (`providers.md` §0.5)."""
    return _failure("stream_truncated", "the provider ended the stream before the answer was complete")


def unreadable(why: str) -> Failure:
    """The provider sent something that is no event of its dialect, or one beyond every bound."""
    return _failure("stream_unreadable", why)


def _failure(code: str, message: str) -> Failure:
    return GARBLED.failure(message, code=code, type="stream_error", signature=code)
