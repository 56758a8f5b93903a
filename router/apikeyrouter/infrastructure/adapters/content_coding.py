"""Content codings of answers: we ask for `identity`, some providers and the boxes before them compress all the same."""

import zlib
from collections.abc import Iterator

from apikeyrouter.infrastructure.adapters.transport import ResponseLost

__all__ = ["Decoder"]

PIECE_BYTES_MAX = 256 * 1024
"""Most bytes that come out at once: a small answer that unpacks to a huge one is stopped by whoever counts."""
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


class Decoder:
    """Unpacks one body. Raises ResponseLost for bytes of a coding that it does not know, or that are not of theirs."""

    def __init__(self, coding: str) -> None:
        self._coding = coding.strip().lower()
        self._packed = zlib.decompressobj(_WINDOWS.get(self._coding, _GZIP))
        self._begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the bytes unpack to, in pieces of at most PIECE_BYTES_MAX."""
        if self._coding not in _WINDOWS:
            raise ResponseLost("the answer's content encoding cannot be decoded")
        while data:
            if self._packed.eof:
                self._next_member()
            piece = self._unpack(data)
            if piece:
                yield piece
            data = self._packed.unused_data if self._packed.eof else self._packed.unconsumed_tail

    def finish(self) -> None:
        """The body is over. Raises ResponseLost when it is cut."""
        if self._begun and not self._packed.eof:
            raise ResponseLost("the compressed answer is cut")

    def _next_member(self) -> None:
        if self._coding == "deflate":
            raise ResponseLost("the compressed answer has bytes after its end")
        self._packed = zlib.decompressobj(_GZIP)

    def _unpack(self, data: bytes) -> bytes:
        first, self._begun = not self._begun, True
        try:
            return self._packed.decompress(data, PIECE_BYTES_MAX)
        except zlib.error as exc:
            if not first or self._coding != "deflate":
                raise ResponseLost("the compressed answer cannot be unpacked") from exc
        self._packed = zlib.decompressobj(_RAW)  # what some servers mean by deflate
        return self._unpack(data)
