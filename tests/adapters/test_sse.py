"""The event parser: the same events, however the bytes are cut and whichever line ends they use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.infrastructure.adapters.sse import Event, EventTooLongError, SSEParser

STREAM = (
    b": hello\n\nevent: a\ndata: one\n\ndata: two\ndata:three\nid: 7\n\nretry: 10\n\ndata\n\n"
    b"data: x\nevent: late\n\n\n\n" + "data: Grüße 世界\n\n".encode()
)
EXPECTED = [
    (None, b""),
    (b"one", b"a"),
    (b"two\nthree", b""),
    (None, b""),
    (b"", b""),
    (b"x", b"late"),
    ("Grüße 世界".encode(), b""),
]


def facts(events: list[Event]) -> list[tuple[bytes | None, bytes]]:
    return [(event.data, event.name) for event in events if event.raw.strip(b"\r\n")]


def read(pieces: list[bytes]) -> tuple[list[Event], bytes]:
    parser = SSEParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    last = parser.end()
    if last is not None:
        events.append(last)
    return events, b"".join(event.raw for event in events)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_when_the_stream_is_cut_at_any_byte(ending: bytes) -> None:
    stream = STREAM.replace(b"\n", ending)
    for cut in range(len(stream) + 1):
        events, raw = read([stream[:cut], stream[cut:]])
        assert facts(events) == EXPECTED, cut
        assert stream.startswith(raw)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_byte_by_byte(ending: bytes) -> None:
    stream = STREAM.replace(b"\n", ending)
    events, _ = read([stream[i : i + 1] for i in range(len(stream))])
    assert facts(events) == EXPECTED


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: x", b"event: y", b": c", b"data:", b"z"]), max_size=40),
       st.data())  # fmt: skip
def test_any_cuts_of_any_mixture_of_line_ends_give_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert facts(read(pieces)[0]) == facts(read([stream])[0])


def test_a_byte_order_mark_is_dropped_even_when_it_is_split() -> None:
    for cut in range(4):
        stream = b"\xef\xbb\xbfdata: x\n\n"
        assert facts(read([stream[:cut], stream[cut:]])[0]) == [(b"x", b"")]


def test_an_event_without_end_is_refused_beyond_the_limit() -> None:
    parser = SSEParser(limit=100)
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLongError):
        parser.feed(b"x" * 10)


def test_a_last_event_without_blank_line_is_read_at_the_end() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: [DONE]\n") == []
    last = parser.end()
    assert last is not None
    assert last.data == b"[DONE]"
