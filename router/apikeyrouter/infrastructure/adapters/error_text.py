"""One reader for every shape an error body has: whatever the bytes, facts come out and nothing is raised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

BODY_BYTES_MAX = 256 * 1024
"""Bytes of an error body that are looked at."""

_WORD_MAX = 120
_LISTS_MAX = 16
_DEPTH_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFacts:
    """What an error body says. `words`: every code, type, reason and status in it, lower case; `message` not scrubbed.

    `retry_delay` is RetryInfo's text (`"34s"`), `period` of a quota violation lower case, empty when absent.
    """

    message: str = ""
    code: str = ""
    type: str = ""
    words: frozenset[str] = frozenset()
    retry_delay: str = ""
    quota_ids: tuple[str, ...] = ()


def read_error(body: bytes) -> ErrorFacts:
    """Read an error body: `error` object or string, `detail`, `message`, HTML, nothing, bad UTF-8. Never raises."""
    try:
        value: Any = msgspec.json.decode(body[:BODY_BYTES_MAX])
    except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError):
        return _plain(body)
    if isinstance(value, list) and value:
        value = value[0]
    return _from_json(value)


def _plain(body: bytes) -> ErrorFacts:
    text = body[:4096].decode("utf-8", "replace").strip()
    if text[:1] == "<":
        return ErrorFacts(message="the provider answered with an HTML page", words=frozenset({"html"}))
    return ErrorFacts(message=text[:500])


def _from_json(value: Any) -> ErrorFacts:
    if isinstance(value, str):
        return ErrorFacts(message=value)
    if not isinstance(value, dict):
        return ErrorFacts()
    inner = value.get("error")
    source = inner if isinstance(inner, dict) else value
    details = _details(source)
    return ErrorFacts(
        message=_message(inner, source, value),
        code=_word(source.get("code")) or _word(source.get("status")),
        type=_word(source.get("type")) or _word(source.get("__type")),
        words=_words(source, details),
        retry_delay=_retry_delay(details),
        quota_ids=_quota_ids(details),
    )


def _message(inner: Any, source: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    if isinstance(inner, str):
        return inner
    for holder in (source, value):
        for name in ("message", "Message", "detail", "error_description", "msg"):
            found = _said(holder.get(name))
            if found:
                return found
    return ""


def _said(value: Any) -> str:
    """A message as text; FastAPI and pydantic put a list of {"msg"} into `detail`, Mistral that into `message`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and "detail" in value:
        value = value["detail"]
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        inner = value.get("msg", value.get("message"))
        return inner if isinstance(inner, str) else ""
    return ""


def _word(value: Any) -> str:
    """A code as a short text: int or str."""
    if isinstance(value, bool) or value is None:
        return ""
    return str(value)[:_WORD_MAX] if isinstance(value, (str, int)) else ""


def _details(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for name in ("details", "metadata", "innererror", "inner_error"):
        value = source.get(name)
        items = value if isinstance(value, list) else [value]
        found += [item for item in items[:_LISTS_MAX] if isinstance(item, dict)]
    return found


def _words(source: Mapping[str, Any], details: list[Mapping[str, Any]]) -> frozenset[str]:
    names = ("code", "type", "status", "__type", "error_code", "reason", "limit_source", "param", "error_type")
    words = {_word(source.get(name)).lower() for name in names if name != "param"}
    for detail in details:
        words |= {_word(detail.get(name)).lower() for name in names}
    words.discard("")
    return frozenset(words)


def _retry_delay(details: list[Mapping[str, Any]]) -> str:
    return next((d["retryDelay"][:40] for d in details if isinstance(d.get("retryDelay"), str)), "")


def _quota_ids(details: list[Mapping[str, Any]]) -> tuple[str, ...]:
    ids: list[str] = []
    for detail in details:
        violations = detail.get("violations")
        for violation in violations[:_LISTS_MAX] if isinstance(violations, list) else ():
            if isinstance(violation, dict) and isinstance(violation.get("quotaId"), str):
                ids.append(violation["quotaId"][:_WORD_MAX])
    return tuple(ids)
