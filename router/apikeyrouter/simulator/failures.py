"""Which requests fail, and how: rules, per-request markers, and the ways a connection can misbehave.

Names of errors that a provider answers with live with its dialect (``openai_errors``, ``anthropic_errors``); here are
the misbehaviours that any provider may show on the wire.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from apikeyrouter.simulator.calls import Call
from apikeyrouter.simulator.config import FailureRule
from apikeyrouter.simulator.organisations import Key

__all__ = ["ALIASES", "WIRE_FAILURES", "Failure", "FailureRules"]

FAIL_ONCE_IDS_MAX = 10_000
RULES_MAX = 1_000

WIRE_FAILURES: dict[str, str] = {
    "disconnect": "close the connection before any byte of the answer",
    "stall_before_first_byte": "accept, then send nothing",
    "stall_mid_stream": "send some deltas (or half of the body), then nothing more",
    "truncate": "end the stream cleanly after some deltas: no finish reason, no terminator",
    "truncate_terminator": "end the stream cleanly after all deltas, without its last event",
    "cut_mid_stream": "reset the socket after some deltas, or half of the body",
    "cut_mid_body": "close the socket after half of the promised body",
    "end_at_byte": "end the stream cleanly after so many bytes (the number of chunks is one of bytes here)",
    "cut_at_byte": "reset the socket after so many bytes of the stream",
    "error_first_event": "200, then an error as the first event (or as the whole body)",
    "error_mid_stream": "200, some deltas, then an error event",
    "slow_first_token": "wait long before the first byte (seconds, default 5)",
    "malformed_json": "an event (or body) that is not JSON",
    "split_utf8": "cut chunks inside multi-byte characters",
    "unnamed": "events without their names",
    "comments": "SSE comments between the events (blank lines before a body)",
    "crlf": "events end in CRLF",
    "empty_body": "200 and nothing",
    "retry_after_on_200": "a good answer with a retry-after header",
    "content_filter_stop": "a good answer that ends because of a content filter or refusal",
}
"""Misbehaviours on the wire by name; each works for streams and, where that makes sense, for whole bodies."""

ALIASES: dict[str, dict[str, str]] = {
    "rate_limit": dict.fromkeys(("openai", "anthropic", "gemini"), "rate_limit_requests"),
    "auth": {"openai": "invalid_api_key", "anthropic": "authentication_error", "gemini": "api_key_invalid"},
    "permission": {"openai": "missing_scope", "anthropic": "permission_error", "gemini": "permission_denied"},
    "billing": {
        "openai": "insufficient_quota",
        "anthropic": "credit_balance_too_low",
        "gemini": "prepayment_depleted",
        "mistral": "payment_required",
        "deepseek": "insufficient_balance",
        "openrouter": "insufficient_credits",
    },
    "spend_limit": {
        "openai": "organization_spend_limit_exceeded",
        "anthropic": "enforced_spend_limit_reached",
        "gemini": "quota_per_day",
        "openrouter": "key_limit",
    },
    "model_not_found": {"openai": "model_not_found", "anthropic": "not_found_error", "gemini": "gemini_not_found"},
    "context_length": {
        "openai": "context_length_exceeded",
        "anthropic": "prompt_too_long",
        "gemini": "input_too_long",
        "mistral": "context_length",
    },
    "content_filter": {
        "openai": "content_filter",
        "anthropic": "content_policy",
        "gemini": "prompt_blocked",
        "openrouter": "moderation",
    },
    "overloaded": {
        "openai": "server_is_overloaded",
        "anthropic": "overloaded_error",
        "gemini": "unavailable",
        **dict.fromkeys(("groq", "mistral", "deepseek", "openrouter"), "overloaded"),
    },
    "server_error": {"openai": "server_error", "anthropic": "api_error", "gemini": "internal"},
    "timeout": {
        "openai": "gateway_timeout",
        "anthropic": "timeout_error",
        "gemini": "deadline_exceeded",
        "openrouter": "request_timeout",
    },
}
"""Names that mean the same in every dialect. What a dialect does not name here, it calls as OpenAI does."""


class Failure(NamedTuple):
    """A failure chosen for one request. ``seconds``: None means the failure's own default."""

    name: str
    seconds: float | None = None
    after_chunks: int = 2


class FailureRules:
    """Chooses failures: the request's own wish first, then the first rule that matches and draws."""

    def __init__(self, rules: Iterable[FailureRule], *, seed: int) -> None:
        self._rules: list[_Live] = []
        self._seed = seed
        self._made = 0
        self._spent_ids: OrderedDict[str, None] = OrderedDict()
        for rule in rules:
            self.add(rule)

    def add(self, rule: FailureRule) -> None:
        """Append ``rule``; ``ValueError`` when there are too many."""
        if len(self._rules) >= RULES_MAX:
            raise ValueError(f"more than {RULES_MAX} failure rules")
        self._made += 1
        self._rules.append(_Live(rule, random.Random(f"{self._seed}/{self._made}")))  # noqa: S311

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def choose(self, call: Call, key: Key, header: str | None) -> Failure | None:
        """The failure of this request, or None. Counts and draws are used up by it."""
        if header is not None:
            return _parse(header)
        markers = call.markers
        if markers.fail is not None:
            return _parse(markers.fail)
        if markers.fail_once is not None and self._first_time(markers.fail_once):
            return _parse(markers.fail_once.split(":", 1)[0])
        for live in self._rules:
            if live.strikes(key, call.model):
                return Failure(live.rule.name, live.rule.seconds, live.rule.after_chunks)
        return None

    def _first_time(self, token: str) -> bool:
        if token in self._spent_ids:
            return False
        self._spent_ids[token] = None
        if len(self._spent_ids) > FAIL_ONCE_IDS_MAX:
            self._spent_ids.popitem(last=False)
        return True


class _Live:
    """A rule with its counts."""

    def __init__(self, rule: FailureRule, draw: random.Random) -> None:
        self.rule = rule
        self._left = rule.count
        self._skip = rule.skip
        self._draw = draw

    def strikes(self, key: Key, model: str) -> bool:
        rule = self.rule
        if rule.organisation not in (None, key.organisation.id) or rule.key not in (None, key.id, key.material):
            return False
        if rule.model not in (None, model) or self._left == 0:
            return False
        if self._skip > 0:
            self._skip -= 1
            return False
        if rule.probability < 1 and self._draw.random() >= rule.probability:
            return False
        if self._left is not None:
            self._left -= 1
        return True


def _parse(text: str) -> Failure:
    """``NAME``, ``NAME:SECONDS`` or ``NAME:SECONDS:AFTER_CHUNKS``."""
    name, _, rest = text.strip().partition(":")
    seconds, _, chunks = rest.partition(":")
    try:
        return Failure(name, float(seconds) if seconds else None, int(chunks) if chunks else 2)
    except ValueError:
        return Failure(name)
