"""The headers of an answer: names in any case, nothing decoded before somebody asks.

A provider sends the same names in the same order over and over, so what they are called in lower case is worked out
once per such sequence.
"""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["ResponseHeaders"]

_SEQUENCES_MAX = 512
_sequences: dict[tuple[bytes, ...], dict[str, bytes]] = {}
"""Names as a provider writes them → by name in lower case, how it is written."""


class ResponseHeaders(Mapping[str, str]):
    """A view of raw headers. Of a name that comes several times, the first counts. Iterates names in lower case."""

    __slots__ = ("_raw", "_written")

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        """`raw`: names as they came, in their order."""
        names = tuple(raw)
        self._raw, self._written = raw, _sequences.get(names) or _remember(names)

    def __getitem__(self, name: str) -> str:
        return _text(self._raw[self._written[name.lower()]])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._written

    def get(self, name: str, default: Any = None) -> Any:
        """The header's value, or `default`."""
        written = self._written.get(name.lower())
        return default if written is None else _text(self._raw[written])

    def __iter__(self) -> Iterator[str]:
        return iter(self._written)

    def __len__(self) -> int:
        return len(self._written)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape").strip(" \t")


def _remember(names: tuple[bytes, ...]) -> dict[str, bytes]:
    written: dict[str, bytes] = {}
    for name in names:
        written.setdefault(name.decode("latin-1").lower(), name)
    if len(_sequences) < _SEQUENCES_MAX:
        _sequences[names] = written
    return written
