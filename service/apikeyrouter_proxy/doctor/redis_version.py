"""Which server answers, by its `INFO`."""

from collections.abc import Mapping
from typing import Any

__all__ = ["is_too_old", "server_name"]

VERSION_MIN = (7, 0)


def server_name(info: Mapping[str, Any]) -> str:
    """E.g. `Valkey 9.1.2`."""
    return f"{'Valkey' if 'valkey_version' in info else 'Redis'} {_version(info)}"


def is_too_old(info: Mapping[str, Any]) -> bool:
    """Whether the scripts would not run there."""
    return tuple(int(part) for part in _version(info).split(".")[:2] if part.isdigit()) < VERSION_MIN


def _version(info: Mapping[str, Any]) -> str:
    return str(info.get("valkey_version") or info.get("redis_version", "0"))
