"""Key material at rest."""

import base64

import pytest

from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.models.system_error import ConfigurationError, EncryptionError, KeyRegistrationError
from apikeyrouter.infrastructure.security.key_vault import KeyVault, generate_master_key

FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_what_was_sealed_opens_and_is_not_readable() -> None:
    vault = KeyVault([FIRST])
    sealed = vault.encrypt("sk-secret", key_id="k1")
    assert "sk-secret" not in sealed
    assert vault.decrypt(sealed, key_id="k1") == "sk-secret"


def test_sealing_twice_gives_two_ciphertexts() -> None:
    vault = KeyVault([FIRST])
    assert vault.encrypt("sk", key_id="k1") != vault.encrypt("sk", key_id="k1")


def test_a_ciphertext_opens_only_as_the_key_it_was_sealed_for() -> None:
    vault = KeyVault([FIRST])
    with pytest.raises(EncryptionError, match="k2"):
        vault.decrypt(vault.encrypt("sk", key_id="k1"), key_id="k2")


@pytest.mark.parametrize("position", [20, -3])
def test_an_altered_ciphertext_is_refused(position: int) -> None:
    vault = KeyVault([FIRST])
    sealed = list(vault.encrypt("sk-secret-text", key_id="k1"))
    sealed[position] = "A" if sealed[position] != "A" else "B"
    with pytest.raises(EncryptionError):
        vault.decrypt("".join(sealed), key_id="k1")


@pytest.mark.parametrize("ciphertext", ["", "sk-plain", "v1", "v1:", "v2:aa:bb", "v1:aa:***"])
def test_what_is_no_ciphertext_is_refused_with_the_keys_id(ciphertext: str) -> None:
    with pytest.raises(EncryptionError, match="k1"):
        KeyVault([FIRST]).decrypt(ciphertext, key_id="k1")


def test_the_first_master_key_seals_and_all_open() -> None:
    old = KeyVault([FIRST]).encrypt("sk", key_id="k1")
    both = KeyVault([SECOND, FIRST])
    assert both.decrypt(old, key_id="k1") == "sk"
    with pytest.raises(EncryptionError, match="APIKEYROUTER_ENCRYPTION_KEY"):
        KeyVault([FIRST]).decrypt(both.encrypt("sk", key_id="k1"), key_id="k1")


def test_reencrypting_moves_to_the_first_master_key_and_then_does_nothing() -> None:
    old = KeyVault([FIRST]).encrypt("sk", key_id="k1")
    both = KeyVault([SECOND, FIRST])
    assert not both.is_current(old)
    new = both.reencrypt(old, key_id="k1")
    assert KeyVault([SECOND]).decrypt(new, key_id="k1") == "sk"
    assert both.reencrypt(new, key_id="k1") == new


HIGH = b"\xfb" * 32
"""Its base64 has the characters in which the two alphabets differ."""


@pytest.mark.parametrize(
    "form",
    [
        base64.b64encode(HIGH).decode(),
        base64.urlsafe_b64encode(HIGH).decode(),
        base64.urlsafe_b64encode(HIGH).decode().rstrip("="),
        " " + base64.b64encode(HIGH).decode() + "\n",
    ],
)
def test_a_master_key_is_read_from_either_base64(form: str) -> None:
    sealed = KeyVault([HIGH]).encrypt("sk", key_id="k1")
    assert KeyVault.parse(form).decrypt(sealed, key_id="k1") == "sk"


def test_a_key_that_fernet_generates_is_accepted() -> None:
    from cryptography.fernet import Fernet

    assert KeyVault.parse(Fernet.generate_key().decode()).sealing


def test_several_master_keys_are_separated_by_commas() -> None:
    vault = KeyVault.parse(f"{text(SECOND)}, {text(FIRST)}")
    assert vault.decrypt(KeyVault([FIRST]).encrypt("sk", key_id="k1"), key_id="k1") == "sk"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("your-32-byte-base64-encoded-key!", "key 1: is not base64"),
        (text(bytes(range(16))), "key 1: must be 32 bytes, not 16"),
        (f"{text(FIRST)},", "key 2: must be 32 bytes, not 0"),
        (",".join([text(FIRST)] * 17), "at most 16"),
    ],
)
def test_a_wrong_master_key_is_told_by_its_place_and_never_shown(given: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        KeyVault.parse(given)
    assert given not in str(caught.value)


def test_a_private_store_gets_a_key_of_its_own_and_a_shared_one_refuses_to_seal() -> None:
    private = KeyVault.open(None, private_store=True)
    assert private.decrypt(private.encrypt("sk", key_id="k1"), key_id="k1") == "sk"
    shared = KeyVault.open("", private_store=False)
    with pytest.raises(KeyRegistrationError, match="set APIKEYROUTER_ENCRYPTION_KEY"):
        shared.encrypt("sk", key_id="k1")
    assert KeyVault.open(generate_master_key(), private_store=False).sealing


def test_a_vault_prints_no_master_key() -> None:
    assert text(FIRST) not in repr(KeyVault([FIRST]))
    assert FIRST.hex() not in repr(KeyVault([FIRST]))


def test_another_material_or_provider_is_another_id() -> None:
    ids = {derive_key_id(m, provider_id=p) for m, p in [("sk-1", "a"), ("sk-2", "a"), ("sk-1", "b"), ("k-1", "as")]}
    assert len(ids) == 4


def test_the_derivation_of_ids_never_changes() -> None:
    assert derive_key_id("sk-key-1", provider_id="openai") == "key_251c55c959e93f77"


@pytest.mark.parametrize("material", ["", "  ", "\n", "sk 1", "sk-\u2026", "sk\n1", "x" * 20_000, None, 7])
def test_what_cannot_be_sent_in_a_header_is_no_key(material: object) -> None:
    with pytest.raises(KeyRegistrationError) as caught:
        check_material(material)
    assert "sk" not in str(caught.value)


def test_blanks_around_a_key_are_removed() -> None:
    assert check_material(" sk-1\n") == "sk-1"
