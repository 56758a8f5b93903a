"""Forms with files (`multipart/form-data`, RFC 7578): small fields are read and can be changed, files stay."""

import re

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Form", "read_form", "with_value"]

PARTS_MAX = 256
HEAD_BYTES_MAX = 8 * 1024
VALUE_BYTES_MAX = 1024 * 1024
_BOUNDARY = re.compile(rb"--([0-9A-Za-z'()+_,./:=?-]{1,70})\r\n")
_NAME = re.compile(rb'[; ]name="([^"]*)"')
_FILE = re.compile(rb"[; ]filename\*?=")


class Form:
    """One form. `values`: its fields that are no files, by name, and where they stand (of several alike the last)."""

    __slots__ = ("boundary", "files", "values")

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self.values: dict[str, tuple[int, int]] = {}
        self.files = 0

    @property
    def content_type(self) -> str:
        """The header that goes with it."""
        return f'multipart/form-data; boundary="{self.boundary.decode("ascii")}"'


def read_form(body: bytes) -> Form:
    """A form's parts. Raises InvalidRequestError."""
    opened = _BOUNDARY.match(body)
    if opened is None:
        raise _broken()
    form = Form(opened.group(1))
    closes, place = b"\r\n--" + form.boundary, opened.end()
    for _ in range(PARTS_MAX):
        start = body.find(b"\r\n\r\n", place, place + HEAD_BYTES_MAX)
        end = body.find(closes, start + 2) if start >= 0 else -1
        if end < 0:
            raise _broken()
        _add(form, body[place:start], (min(start + 4, end), end))
        place = end + len(closes)
        if body[place : place + 2] == b"--":
            return form
        if body[place : place + 2] != b"\r\n":
            raise _broken()
        place += 2
    raise InvalidRequestError(f"more than {PARTS_MAX} parts", field="body")


def with_value(body: bytes, name: str, value: str) -> bytes:
    """The form with another value in one field. Raises InvalidRequestError."""
    start, end = read_form(body).values[name]
    return b"".join((body[:start], value.encode(), body[end:]))


def _add(form: Form, head: bytes, place: tuple[int, int]) -> None:
    named = _NAME.search(head)
    if _FILE.search(head):
        form.files += 1
    elif named is not None and place[1] - place[0] <= VALUE_BYTES_MAX:
        form.values[named.group(1).decode("utf-8", "replace")] = place


def _broken() -> InvalidRequestError:
    return InvalidRequestError("is not a complete multipart form", field="body")
