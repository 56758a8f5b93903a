"""Forms with files: fields are found whatever the files hold; one is changed, all other bytes stay."""

import contextlib
from email import message_from_bytes
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.form import read_form, with_value

NAME = st.from_regex(r"[a-z_\[\]]{1,9}", fullmatch=True)
VALUE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def form_of(values: dict[str, str], file: bytes) -> bytes:
    """A form as clients write it."""
    request = httpx.Request("POST", "http://x/", data=values, files={"the file": ("a.bin", file)})
    return request.read()


def parts_of(body: bytes, content_type: str) -> dict[str, bytes]:
    """The same parts, read by the standard library."""
    message = message_from_bytes(f"content-type: {content_type}\r\n\r\n".encode() + body)
    parts: Any = message.get_payload()
    return {str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True) for part in parts}


@given(st.dictionaries(NAME, VALUE, max_size=4), st.binary(max_size=200), VALUE)
def test_fields_are_found_and_changed_and_files_stay(values: dict[str, str], file: bytes, new: str) -> None:
    body = form_of({**values, "model": "alias"}, file)
    form = read_form(body)
    assert {name: body[start:end].decode() for name, (start, end) in form.values.items()} == {
        **values,
        "model": "alias",
    }
    assert form.files == 1
    changed = with_value(body, "model", new)
    start, end = form.values["model"]
    assert changed == body[:start] + new.encode() + body[end:]
    assert read_form(changed).content_type == form.content_type


def test_the_standard_library_reads_the_same() -> None:
    body = form_of({"model": "m", "language": "de"}, b"\x00\r\n--\xff")
    found = parts_of(with_value(body, "model", "other"), read_form(body).content_type)
    assert found == {"model": b"other", "language": b"de", "the file": b"\x00\r\n--\xff"}


@given(st.binary(max_size=60), st.integers(0, 400))
def test_nothing_makes_it_crash(noise: bytes, cut: int) -> None:
    whole = form_of({"model": "m"}, noise)
    for body in (noise, b"--x\r\n" + noise, whole[:cut]):
        with contextlib.suppress(InvalidRequestError):
            read_form(body)


@pytest.mark.parametrize("body", [b"", b"--", b"--x", b"--x\r\n", b"--x\r\na: b\r\n\r\nc", b"--x--\r\n"])
def test_half_a_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="form"):
        read_form(body)
