"""The headers of an answer: names in any case, nothing decoded before somebody asks."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["ResponseHeaders"]

_NAMES_MAX = 512
_names: dict[bytes, str] = {}
"""Names as providers write them → in lower case."""


class ResponseHeaders(Mapping[str, str]):
    """A view of raw headers. Of a name that comes several times, the first counts. Iterates names in lower case."""

    __slots__ = ("_raw", "_table")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._table: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return (self._table or self._decoded())[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in (self._table or self._decoded())

    def get(self, name: str, default: Any = None) -> Any:
        """The header's value, or `default`. Who asks for one does not pay for all."""
        if self._table is not None:
            return self._table.get(name.lower(), default)
        wanted, size = name.lower(), len(name)
        for raw, value in self._raw:
            if len(raw) == size and (_names.get(raw) or _lower(raw)) == wanted:
                return _text(value)
        return default

    def __iter__(self) -> Iterator[str]:
        return iter(self._table or self._decoded())

    def __len__(self) -> int:
        return len(self._table or self._decoded())

    def _decoded(self) -> dict[str, str]:
        table = self._table = {}
        for name, value in reversed(self._raw):
            table[_names.get(name) or _lower(name)] = _text(value)
        return table


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape").strip(" \t")


def _lower(name: bytes) -> str:
    text = name.decode("latin-1").lower()
    if len(_names) < _NAMES_MAX:
        _names[name] = text
    return text
