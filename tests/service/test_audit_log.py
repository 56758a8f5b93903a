"""What the audit log says of another configuration file: ids of what differs, no values, and not too many."""

from dataclasses import replace

from apikeyrouter.infrastructure.config.compiled import ClientRecord, CompiledConfig, KeyRecord, RoutingRecord
from apikeyrouter_proxy.audit_log import ID_LENGTH_MAX, IDS_MAX, changes_of

SECRET = "sk-of-a-file"


def key(number: int, material: str = SECRET) -> KeyRecord:
    id_ = f"k{number:03}"
    return KeyRecord(id=id_, provider_id="openai", material=material, quota_group="g", lane=f"k:{id_}")


def test_what_differs_is_named_and_its_values_are_not() -> None:
    old = CompiledConfig(keys=(key(1), key(2)), clients=(ClientRecord(name="app", token_sha256="1" * 64),))
    new = replace(old, keys=(key(2, SECRET + "-2"), key(3)), clients=(), routing=RoutingRecord(attempts_max=9))
    told = changes_of(old, new)
    assert told == {
        "keys": {"added": ["k003"], "removed": ["k001"], "changed": ["k002"]},
        "clients": {"removed": ["app"]},
        "routing": {"changed": ["attempts_max"]},
    }
    assert SECRET not in str(told)
    assert changes_of(new, new) == {}


def test_what_is_told_of_ten_thousand_keys_is_short() -> None:
    many = CompiledConfig(keys=tuple(map(key, range(10_000))), clients=(ClientRecord(name="x" * 900, token_sha256=""),))
    told = changes_of(CompiledConfig(), many)
    assert told["keys"]["added"][:2] == ["k000", "k001"]
    assert (len(told["keys"]["added"]), told["keys"]["added"][-1]) == (IDS_MAX + 1, f"and {10_000 - IDS_MAX} more")
    assert len(told["clients"]["added"][0]) == ID_LENGTH_MAX
