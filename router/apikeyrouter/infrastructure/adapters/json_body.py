"""A client's JSON body, read once and edited by splicing: members stay encoded, only what changes is written anew."""

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.system_error import InvalidRequestError

JsonError = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""Everything that malformed JSON can raise, deep nesting and bad UTF-8 included."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_WORD = msgspec.json.Decoder(str | None)
_FLAG = msgspec.json.Decoder(bool | None)
_WHOLE = msgspec.json.Decoder(int | None)
_KEYS: dict[str, bytes] = {}
_KEYS_MAX = 512
MEMBERS_MAX = 1_000
"""Top-level members of a body: each is looked at, and a body of 32 MB has room for two million."""


def decoded_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object, decoded; None for anything else."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except JsonError:
        return None


def read_members(body: bytes) -> dict[str, bytes]:
    """The top-level members of a JSON object, each still encoded. Raises InvalidRequestError for anything else."""
    try:
        if not body.isascii():
            body.decode()
        members: dict[str, bytes] = _MEMBERS.decode(body)  # type: ignore[assignment]  # Raw is bytes-like
    except msgspec.ValidationError as exc:
        raise InvalidRequestError("expected a JSON object", field="body") from exc
    except JsonError as exc:
        raise InvalidRequestError(f"not valid JSON ({type(exc).__name__})", field="body") from exc
    if len(members) > MEMBERS_MAX:
        raise InvalidRequestError(f"must have at most {MEMBERS_MAX} members", field="body")
    return members


def read_text(fields: Mapping[str, bytes], name: str) -> str:
    """A required, non-empty string member."""
    raw = fields.get(name)
    if raw is None:
        raise InvalidRequestError("is required", field=name)
    text: str = decode(_TEXT, raw, name)
    if not text:
        raise InvalidRequestError("must not be empty", field=name)
    return text


def read_flag(fields: Mapping[str, bytes], name: str) -> bool:
    """An optional boolean member; absent and null mean False."""
    raw = fields.get(name)
    return False if raw is None else bool(decode(_FLAG, raw, name))


def read_word(fields: Mapping[str, bytes], name: str) -> str | None:
    """An optional string member; absent and null are None."""
    raw = fields.get(name)
    if raw is None:
        return None
    word: str | None = decode(_WORD, raw, name)
    return word


def read_whole(fields: Mapping[str, bytes], name: str, *, least: int = 0, most: int = AMOUNT_MAX) -> int | None:
    """An optional integer member within `least` … `most`; absent and null are None."""
    raw = fields.get(name)
    if raw is None:
        return None
    value: int | None = decode(_WHOLE, raw, name)
    if value is not None and not least <= value <= most:
        raise InvalidRequestError(f"must be between {least} and {most}", field=name)
    return value


def decode(decoder: "msgspec.json.Decoder[Any]", raw: bytes, name: str) -> Any:
    """Decode one member; a mismatch raises InvalidRequestError with the path below `name`, never with its content."""
    try:
        return decoder.decode(raw)
    except JsonError as exc:
        refuse(name, exc)


def refuse(name: str, exc: Exception) -> NoReturn:
    """Raise InvalidRequestError for a member that does not have its documented shape."""
    what, _, path = str(exc).partition(" - at `$")
    raise InvalidRequestError(what, field=name + path.rstrip("`")) from exc


def splice(body: bytes, fields: Mapping[str, bytes], edits: Mapping[str, bytes | None]) -> bytes:
    """The body with `edits` applied (None removes a member).

    Without edits the same object comes back, unless it has repeated names or unusual spacing: then members are written
    once each, so that the provider cannot read another value than we did.
    """
    if not edits:
        return body if _says_what_was_read(body, fields) else _write(fields)
    merged = dict(fields)
    for name, value in edits.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return _write(merged)


def said_once(raw: bytes) -> bytes:
    """An encoded object with each name once, the last of equals; anything else as it is."""
    try:
        members = _MEMBERS.decode(raw)
    except JsonError:
        return raw
    return raw if _says_what_was_read(raw, members) else _write(members)


def _says_what_was_read(body: bytes, fields: Mapping[str, bytes]) -> bool:
    """Whether the body is these members, once each, with the spaces of one of the usual writers or none."""
    size, spaces = 1, 2 * len(fields) - 1
    for name, raw in fields.items():
        size += len(key_of(name)) + len(raw) + 1
    return size == len(body) or (size + spaces == len(body) and body == _write_spaced(fields))


def _write(fields: Mapping[str, bytes]) -> bytes:
    parts: list[bytes] = []
    for name, raw in fields.items():
        parts += (b",", key_of(name), raw)
    if parts:
        parts[0] = b"{"
    return b"".join(parts) + b"}" if parts else b"{}"


def _write_spaced(fields: Mapping[str, bytes]) -> bytes:
    parts: list[bytes] = []
    for name, raw in fields.items():
        parts += (b", ", key_of(name), b" ", raw)
    parts[0] = b"{"
    return b"".join(parts) + b"}"


def key_of(name: str) -> bytes:
    """`"name":`, encoded; known names are cached, up to `_KEYS_MAX`."""
    key = _KEYS.get(name)
    if key is None:
        key = msgspec.json.encode(name) + b":"
        if len(_KEYS) < _KEYS_MAX:
            _KEYS[name] = key
    return key
