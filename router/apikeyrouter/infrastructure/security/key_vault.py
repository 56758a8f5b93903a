"""Key material at rest: AES-256-GCM under one of several master keys, bound to the key's id.

A ciphertext is `v1:<master fingerprint>:<base64url of nonce and sealed text>`. The fingerprint says which master key
opens it, so that rotation needs no trial and error; the key's id is authenticated with it, so that a ciphertext
cannot be moved to another key's record.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apikeyrouter.domain.models.system_error import ConfigurationError, EncryptionError, KeyRegistrationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["MASTER_KEY_VARIABLE", "KeyVault", "generate_master_key"]

MASTER_KEY_VARIABLE = "APIKEYROUTER_ENCRYPTION_KEY"
MASTER_KEY_BYTES = 32
MASTER_KEYS_MAX = 16
"""Most master keys at once; a rotation needs two."""
_NONCE_BYTES = 12
_VERSION = "v1"
_REMEDY = (
    f"set {MASTER_KEY_VARIABLE} to 32 bytes in base64, the same for every process; one is made by "
    'python -c "import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())"'
)


def generate_master_key() -> str:
    """A new master key as settings take it: 32 random bytes in url-safe base64."""
    return base64.urlsafe_b64encode(os.urandom(MASTER_KEY_BYTES)).decode()


class KeyVault:
    """Seals and opens key material. The first master key seals, every one opens.

    Without a master key it seals nothing: `encrypt` raises KeyRegistrationError with the remedy.
    """

    def __init__(self, master_keys: Sequence[bytes] = ()) -> None:
        if any(len(key) != MASTER_KEY_BYTES for key in master_keys):
            raise ConfigurationError(f"a master key must have {MASTER_KEY_BYTES} bytes")
        if len(master_keys) > MASTER_KEYS_MAX:
            raise ConfigurationError(f"at most {MASTER_KEYS_MAX} master keys; drop those that no ciphertext needs")
        self._keys = {_fingerprint(key): key for key in master_keys}
        self._first = next(iter(self._keys), "")

    @classmethod
    def parse(cls, text: str, *, name: str = MASTER_KEY_VARIABLE) -> "KeyVault":
        """A vault of one or more comma-separated master keys: 32 bytes each in base64, standard or url-safe.

        Errors: ConfigurationError that says which one is wrong (counted from 1), never what it is.
        """
        parts = [part.strip() for part in text.split(",")]
        head = f"{name}, key" if name else "key"
        return cls([_decode(part, f"{head} {n}") for n, part in enumerate(parts, start=1)])

    @classmethod
    def open(cls, encryption_key: str | None, *, private_store: bool) -> "KeyVault":
        """The vault for a store: the configured master keys; else a new one where the store is private to us.

        `private_store`: the store ends with this process, or its owner keeps the master key beside it. On anybody
        else's store without a configured key, the vault refuses to seal.
        """
        if encryption_key:
            return cls.parse(encryption_key)
        return cls([os.urandom(MASTER_KEY_BYTES)] if private_store else [])

    @property
    def sealing(self) -> bool:
        """Whether there is a master key."""
        return bool(self._keys)

    def encrypt(self, material: str, *, key_id: str) -> str:
        """Seal the material for that key. Errors: KeyRegistrationError without a master key."""
        if not self._keys:
            raise KeyRegistrationError(f"key {key_id} is not stored unencrypted in a shared store; {_REMEDY}")
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher(self._first).encrypt(nonce, str.encode(material), _bound_to(key_id))
        return f"{_VERSION}:{self._first}:{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def decrypt(self, ciphertext: str, *, key_id: str) -> str:
        """The material. Errors: EncryptionError when the master key is missing, or the ciphertext is not this key's."""
        fingerprint, blob = _split(ciphertext, key_id)
        if fingerprint not in self._keys:
            raise EncryptionError(
                f"key {key_id} was encrypted under master key {fingerprint}, which is not among the configured ones; "
                f"add it to {MASTER_KEY_VARIABLE} (comma-separated, after the one that encrypts)"
            )
        return self._unseal(fingerprint, blob, key_id)

    def is_current(self, ciphertext: str) -> bool:
        """Whether it is sealed under the first master key, in the current format."""
        return ciphertext.startswith(f"{_VERSION}:{self._first}:")

    def reencrypt(self, ciphertext: str, *, key_id: str) -> str:
        """The same material under the first master key; the ciphertext itself when it is current already.

        Errors: as `decrypt`.
        """
        if self.is_current(ciphertext):
            return ciphertext
        return self.encrypt(self.decrypt(ciphertext, key_id=key_id), key_id=key_id)

    def __repr__(self) -> str:
        return f"<KeyVault {', '.join(self._keys) or 'without a master key'}>"

    def _unseal(self, fingerprint: str, blob: bytes, key_id: str) -> str:
        from cryptography.exceptions import InvalidTag

        nonce, sealed = blob[:_NONCE_BYTES], blob[_NONCE_BYTES:]
        try:
            return self._cipher(fingerprint).decrypt(nonce, sealed, _bound_to(key_id)).decode()
        except (InvalidTag, ValueError) as exc:
            raise EncryptionError(
                f"the ciphertext of key {key_id} was altered, or belongs to another key; rotate or register it again"
            ) from exc

    def _cipher(self, fingerprint: str) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers import aead

        return aead.AESGCM(self._keys[fingerprint])


def _fingerprint(master_key: bytes) -> str:
    return hashlib.blake2b(master_key, digest_size=4, person=b"apikeyrouter.mk").hexdigest()


def _bound_to(key_id: str) -> bytes:
    return f"apikeyrouter:{_VERSION}:{key_id}".encode()


def _split(ciphertext: str, key_id: str) -> tuple[str, bytes]:
    version, _, rest = ciphertext.partition(":")
    fingerprint, _, encoded = rest.partition(":")
    if version != _VERSION or not fingerprint:
        raise EncryptionError(f"the ciphertext of key {key_id} has a format that this version does not know")
    try:
        return fingerprint, base64.b64decode(encoded.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise EncryptionError(f"the ciphertext of key {key_id} is damaged") from exc


def _decode(text: str, name: str) -> bytes:
    standard = text.translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        decoded = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{name}: is not base64; {_REMEDY}") from None
    if len(decoded) != MASTER_KEY_BYTES:
        raise ConfigurationError(f"{name}: must be {MASTER_KEY_BYTES} bytes, not {len(decoded)}; {_REMEDY}")
    return decoded
