"""Who a key is: an id that its material and provider determine, and what may be a key at all."""

import hashlib
import re

from apikeyrouter.domain.models.system_error import KeyRegistrationError

__all__ = ["MATERIAL_LENGTH_MAX", "check_material", "derive_key_id"]

MATERIAL_LENGTH_MAX = 16_384
"""Longest key material in characters; service-account tokens are the longest in use."""
_PERSONALISATION = b"apikeyrouter.key"
_ID_BYTES = 8
_SENDABLE = re.compile("[!-~]+").fullmatch


def derive_key_id(material: str, *, provider_id: str) -> str:
    """The same id for the same material and provider: in every process, after every restart, under any master key.

    `key_` and 16 hex digits of a personalised BLAKE2b digest (ADR "Key ids"). Length-prefixed, so that no pair of
    provider and material can be read as another.
    """
    provider = provider_id.encode()
    digest = hashlib.blake2b(digest_size=_ID_BYTES, person=_PERSONALISATION)
    digest.update(len(provider).to_bytes(4, "big") + provider + str.encode(material))
    return f"key_{digest.hexdigest()}"


def check_material(material: object) -> str:
    """The material as it will be sent: surrounding blanks removed, printable ASCII, 1 … 16,384 characters.

    Errors: KeyRegistrationError, which never shows the material.
    """
    if not isinstance(material, str):
        raise KeyRegistrationError(f"key material must be a str, not {type(material).__name__}")
    stripped = str.strip(material)
    if not stripped:
        raise KeyRegistrationError("key material is empty; check the variable or file it comes from")
    if len(stripped) > MATERIAL_LENGTH_MAX:
        raise KeyRegistrationError(f"key material is longer than {MATERIAL_LENGTH_MAX} characters")
    if _SENDABLE(stripped) is None:
        raise KeyRegistrationError("key material must be printable ASCII without blanks; it goes into an HTTP header")
    return stripped
