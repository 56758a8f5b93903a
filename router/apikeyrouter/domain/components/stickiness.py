"""Which quota group holds the cache of a prompt: providers bill cached input at a fraction, to the keys of one group.

A session is what begins alike: what a client calls one (`x-akr-session`, a tag, `prompt_cache_key`), or, where cost
decides, the first kilobytes of a long prompt. Sessions of different tenants are different. What is remembered is a
hint: usage says whether there was a cache, and what was not confirmed twice is no longer believed.
"""

import hashlib
import zlib
from collections import OrderedDict
from typing import NamedTuple

from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.usage import Usage

SESSIONS_MAX = 20_000
"""Sessions remembered; the one asked for longest ago goes first."""
GROUPS_MAX = 4
"""Quota groups remembered of one session: a hot prompt may be cached in several."""
WARM_SECONDS, WARM_LONG_SECONDS = 300.0, 3600.0
"""How long a cache is believed to live after its last use (`providers.md` §2.3: 5 minutes, an hour where asked for)."""
CACHED_TOKENS_LEAST = 1024
"""Least prompt that providers cache by themselves (`providers.md` §2.3)."""
PREFIX_BYTES = 4096
"""The beginning of a prompt that makes a session of its own, and the least prompt that does."""
MISSES_MAX = 2
NAMED_BY = "prompt_cache_key"
"""The field of a request that names its session."""
_PREFIX_MEMBERS = ("system", "systemInstruction", "instructions", "tools", "messages", "input", "contents")

SessionKey = tuple[str, str, str | bytes]
"""Model as asked for, tenant, and what names the session among the tenant's."""


class _Warm(NamedTuple):
    until: float
    tokens: int
    misses: int


class Sessions:
    """What is known of caches. Times are readings of one steady clock, in seconds. One event loop owns it."""

    def __init__(self, *, kept_max: int = SESSIONS_MAX) -> None:
        self._kept_max = kept_max
        self._known: OrderedDict[SessionKey, dict[str, _Warm]] = OrderedDict()

    def warm(self, session: SessionKey, now: float) -> dict[str, int]:
        """Quota groups that hold the session's cache, with the input tokens that it should save there."""
        groups = self._known.get(session)
        if groups is None:
            return {}
        self._known.move_to_end(session)
        return {
            group: known.tokens
            for group, known in groups.items()
            if known.until > now and known.misses < MISSES_MAX and known.tokens
        }

    def served(
        self, session: SessionKey, group: str, usage: Usage, *, unasked: bool, expected: int, now: float
    ) -> None:
        """A request of the session was answered by a key of this group.

        `unasked`: the provider caches without being asked to. `expected`: cached tokens that were expected of it.
        """
        written = usage.cache_write_tokens + usage.cache_write_long_tokens
        tokens = usage.cache_read_tokens + written
        if unasked and usage.input_tokens >= CACHED_TOKENS_LEAST:
            tokens = max(tokens, usage.input_tokens)
        groups = self._known.get(session)
        before = None if groups is None else groups.get(group)
        if not tokens and before is None:
            return
        if groups is None:
            groups = self._known[session] = {}
            if len(self._known) > self._kept_max:
                self._known.popitem(last=False)
        misses = 0 if before is None or usage.cache_read_tokens else before.misses + (expected > 0)
        long = usage.cache_write_long_tokens > 0
        groups.pop(group, None)
        groups[group] = _Warm(now + (WARM_LONG_SECONDS if long else WARM_SECONDS), tokens, misses)
        if len(groups) > GROUPS_MAX:
            del groups[next(iter(groups))]


def session_key(
    model: str, tenant: str, told: str | None, parsed: ParsedRequest | None, *, implicit: bool
) -> SessionKey | None:
    """The session of a request, None where it has none. `implicit`: a long prompt makes one by itself."""
    if told:
        return model, tenant, told
    if parsed is None:
        return None
    key = parsed.fields.get(NAMED_BY)
    if key is not None:
        return model, tenant, bytes(key)
    if not implicit or parsed.text_bytes < PREFIX_BYTES:
        return None
    digest = hashlib.blake2b(digest_size=12)
    left = PREFIX_BYTES
    for name in _PREFIX_MEMBERS:
        raw = parsed.fields.get(name)
        if raw is not None and left > 0:
            part = memoryview(raw)[:left]
            digest.update(part)
            left -= len(part)
    if left == PREFIX_BYTES:
        digest.update(memoryview(parsed.body)[:left])
    return model, tenant, digest.digest()


def turn_of(session: SessionKey) -> int:
    """Where a session that nobody knows yet begins among equals: the same place in every process."""
    named = session[2]
    return zlib.crc32(named if isinstance(named, bytes) else named.encode("utf-8", "surrogatepass"))
