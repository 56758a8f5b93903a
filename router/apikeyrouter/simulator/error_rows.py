"""Errors as data: a status, a body with holes, and whether it names a wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from apikeyrouter.simulator.calls import JSON_HEADER, Context, Reply, encode
from apikeyrouter.simulator.formats import ceil_ms, ceil_seconds, go_duration
from apikeyrouter.simulator.openai_errors import mask_key

__all__ = ["ErrorRow", "render"]

DEFAULT_WAIT_SECONDS = 20.0
NS_PER_SECOND = 1_000_000_000


class ErrorRow(NamedTuple):
    """One error. In its body ``{model}``, ``{org}``, ``{wait}`` (a Go duration), ``{seconds}`` and ``{tail}`` (a masked
    key) are filled in. ``waits``: which headers say how long: ``""``, ``"seconds"`` or ``"ms"`` (both of them).
    """

    status: int
    body: Mapping[str, Any]
    waits: str = ""


def render(row: ErrorRow, context: Context, *, wait_ns: int | None = None) -> Reply:
    """The reply; the wait is 20 s if none is given."""
    wait_ns = int(DEFAULT_WAIT_SECONDS * NS_PER_SECOND) if wait_ns is None else wait_ns
    facts = {
        "model": context.model,
        "org": "org-unknown" if context.organisation is None else context.organisation.id,
        "wait": go_duration(wait_ns),
        "seconds": str(ceil_seconds(wait_ns)),
        "tail": mask_key(context.material),
    }
    headers = JSON_HEADER
    if row.waits:
        headers += f"retry-after: {ceil_seconds(wait_ns)}\r\n"
    if row.waits == "ms":
        headers += f"retry-after-ms: {ceil_ms(wait_ns)}\r\n"
    return Reply(row.status, encode(_filled(row.body, facts)), headers)


def _filled(value: Any, facts: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, fact in facts.items():
            value = value.replace(f"{{{name}}}", fact)
        return value
    if isinstance(value, Mapping):
        return {name: _filled(inner, facts) for name, inner in value.items()}
    return [_filled(inner, facts) for inner in value] if isinstance(value, list) else value
