"""Entities as JSON text. What another version added is left out when read, so that versions can be mixed."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from apikeyrouter.domain.models.api_key import APIKey, KeyChange
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.quota_state import TimeWindow
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError, StateStoreError

DOCUMENT_BYTES_MAX = 4 * 2**20
"""Largest document; what is larger is no small entity."""
KIND_LENGTH_MAX = 64
NAMESPACE_LENGTH_MAX = 64

M = TypeVar("M", bound=EdgeModel)


def encode(entity: EdgeModel) -> str:
    """One line of JSON."""
    return entity.model_dump_json()


def decode(model: type[M], text: str | bytes, *, where: str) -> M:
    """The entity. Errors: StateStoreError naming `where` when the text is not one of ours."""
    fields = decode_document(text, where=where)
    try:
        return model.parse({name: value for name, value in fields.items() if name in model.model_fields})
    except InvalidRequestError as exc:
        raise StateStoreError(f"{where} is not a {model.__name__} of ours: {exc}") from exc


def decode_key(text: str | bytes, key_id: str) -> APIKey:
    """A stored key; what stands for it where it cannot be read: it must not hide the others."""
    try:
        key = decode(APIKey, text, where=f"key {key_id}")
    except StateStoreError as exc:
        return APIKey.cannot_be_read(key_id, str(exc))
    return key if key.id == key_id else APIKey.cannot_be_read(key_id, f"key {key_id} says that it is another")


def still_readable(change: KeyChange) -> KeyChange:
    """The change, unless it would write over a key that could not be read. Errors: StateStoreError."""
    if change.key is not None and change.key.unreadable:
        raise StateStoreError(f"{change.key.unreadable}; register it again, or revoke it")
    return change


def encode_document(document: Mapping[str, Any]) -> str:
    """A document as JSON. Errors: InvalidRequestError when it is no JSON object, or larger than DOCUMENT_BYTES_MAX."""
    try:
        text = msgspec.json.encode(dict(document))
    except (TypeError, ValueError) as exc:
        raise InvalidRequestError(f"is not JSON: {exc}", field="document") from exc
    if len(text) > DOCUMENT_BYTES_MAX:
        raise InvalidRequestError(f"is larger than {DOCUMENT_BYTES_MAX} bytes", field="document")
    return text.decode()


def decode_document(text: str | bytes, *, where: str) -> dict[str, Any]:
    """The document. Errors: StateStoreError naming `where`."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise StateStoreError(f"{where} holds something that is not ours") from exc


write_facts = msgspec.json.Encoder().encode
"""What happened to a request, as JSON."""
_facts: msgspec.json.Decoder[Facts] = msgspec.json.Decoder(Facts)


def read_facts(text: str | bytes, *, where: str) -> Facts:
    """What happened to a request. Errors: StateStoreError naming `where`."""
    try:
        return _facts.decode(text)
    except msgspec.DecodeError as exc:
        raise StateStoreError(f"{where} holds something that is not ours") from exc


def check_kind(kind: str) -> str:
    """A document's kind: lower-case letters, digits, `_`, `-`, 1 … 64 of them. Errors: InvalidRequestError."""
    plain = kind.replace("_", "").replace("-", "")
    if not (plain.isascii() and plain.isalnum() and plain == plain.lower() and len(kind) <= KIND_LENGTH_MAX):
        raise InvalidRequestError("must be 1 to 64 lower-case letters, digits, _ or -", field="kind")
    return kind


def check_namespace(namespace: str) -> str:
    """What separates deployments. Errors: ConfigurationError."""
    plain = namespace.replace("-", "").replace("_", "").replace(".", "").replace(":", "")
    if not (plain.isascii() and plain.isalnum() and len(namespace) <= NAMESPACE_LENGTH_MAX):
        raise ConfigurationError("a namespace has 1 to 64 ASCII letters, digits, '-', '_', '.' or ':'")
    return namespace


def quota_name(key_id: str, window: TimeWindow | None) -> str:
    """What a key's quota state for a window is kept under."""
    return f"{'minute' if window is None else window.value}:{key_id}"
