"""What cannot be served here, and why: names that no model can have, and models that no key of this process serves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from apikeyrouter.domain.models.system_error import MODELS_SHOWN_MAX, REGISTER_FIRST, ModelNotFoundError

__all__ = ["Unread", "not_found"]


class Unread(NamedTuple):
    """A stored key that this process does not route with. `why`: it cannot be read; "": nobody serves its provider."""

    provider_id: str
    why: str


def not_found(
    model: str, provider_id: str | None, known: Sequence[str], unread: Mapping[str, Unread]
) -> ModelNotFoundError:
    """That no key serves a model, with what is stored and cannot be routed with where that may be why."""
    concerned = {id_: one for id_, one in unread.items() if provider_id in (None, one.provider_id)}
    return ModelNotFoundError(model, provider_id, tuple(known), hint=_hint(concerned))


def _hint(unread: Mapping[str, Unread]) -> str:
    closed = [id_ for id_, one in unread.items() if one.why]
    if closed:
        return (
            f"cannot be read here: {_few('key', closed)}; {unread[closed[0]].why}; what no master key opens any more,"
            " rotating gives new material, and revoking forgets"
        )
    if unread:
        providers = sorted({one.provider_id for one in unread.values()})
        return f"{_few('key', list(unread))} of {_few('provider', providers)}, not registered here; {REGISTER_FIRST}"
    return ""


def _few(what: str, ids: Sequence[str]) -> str:
    shown = ", ".join(map(repr, ids[:MODELS_SHOWN_MAX]))
    rest = len(ids) - MODELS_SHOWN_MAX
    return f"{what}{'s' if len(ids) > 1 else ''} {shown}{f' and {rest} more' if rest > 0 else ''}"
