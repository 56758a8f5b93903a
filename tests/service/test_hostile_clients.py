"""Clients that send whatever they like: an answer that says what is wrong, nothing held, and the others go on."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import MANAGEMENT_KEY, Running, providers_of, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

CHAT = b"/v1/chat/completions"
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
GOOD = b'{"model":"gpt-4o-mini",' + MESSAGES + b',"max_tokens":5}'
STREAMED = GOOD[:-1] + b',"stream":true}'
ASKED = b'{"contents":[{"parts":[{"text":"hi"}]}]}'
HALF_A_KEY = b'{"key_material":"sk-\\ud800-0123456789","provider_id":"openai"}'
UPGRADE = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
SECONDS_MAX = 20


def told(body: bytes = GOOD, *more: bytes, path: bytes = CHAT, method: bytes = b"POST", length: int = -1) -> bytes:
    """A request of HTTP/1.1."""
    lines = [b"%b %b HTTP/1.1" % (method, path), b"host: x", b"content-length: %d" % max(length, len(body)), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", more: bytes = b"") -> bytes:
    """The same in chunks."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n%b\r\n" % (CHAT, more)
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def saying(text: bytes) -> bytes:
    """A request that has this beside what is good."""
    return told(GOOD[:-1] + b"," + text + b"}")


OK, BAD, NO_HTTP = (200, ""), (400, "invalid_request"), (400, "malformed_http")
CASES: dict[str, tuple[bytes, list[tuple[int, str]]]] = {
    "good": (told(), [OK]),
    "bad-utf8": (told(GOOD.replace(b"hi", b"\xff\xfe")), [BAD]),
    "half-a-surrogate": (told(GOOD.replace(b"hi", b"\\ud800")), [BAD]),
    "a-null-byte": (told(GOOD.replace(b"mini", b"mini\x00")), [BAD]),
    "an-escaped-null-in-a-text": (told(GOOD.replace(b"hi", b"\\u0000")), [OK]),
    "an-escaped-null-in-the-model": (told(GOOD.replace(b"mini", b"mini\\u0000")), [BAD]),
    "an-endless-model": (told(GOOD.replace(b"mini", b"m" * 100_000)), [BAD]),
    "a-model-that-is-a-path": (told(ASKED, path=b"/v1beta/models/..%2f..%2fx:generateContent"), [BAD]),
    "a-model-of-bad-utf8": (told(ASKED, path=b"/v1beta/models/%00%ff:generateContent"), [BAD]),
    "a-mark-of-byte-order": (told(b"\xef\xbb\xbf" + GOOD), [BAD]),
    "lists-in-lists": (saying(b'"metadata":' + b"[" * 50_000 + b"]" * 50_000), [BAD]),
    "objects-in-objects": (told(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), [BAD]),
    "an-endless-number": (told(GOOD.replace(b":5}", b":" + b"9" * 5000 + b"}")), [BAD]),
    "no-number": (saying(b'"temperature":NaN'), [BAD]),
    "something-behind-it": (told(GOOD + b"x"), [BAD]),
    "a-hundred-thousand-members": (saying(b",".join(b'"k%d":1' % n for n in range(100_000))), [BAD]),
    "a-body-shorter-than-said": (told(GOOD[:10]) + b"{", [NO_HTTP]),
    "a-negative-length": (told().replace(b"length: ", b"length: -"), [NO_HTTP]),
    "a-length-with-a-sign": (told().replace(b"length: ", b"length: +"), [NO_HTTP]),
    "a-length-beyond-numbers": (told(length=10**30), [NO_HTTP]),
    "two-lengths": (told(GOOD, b"content-length: 5"), [NO_HTTP]),
    "a-length-and-chunks": (chunked(GOOD, more=b"content-length: 5\r\n"), [NO_HTTP]),
    "an-unknown-transfer": (chunked(GOOD).replace(b": chunked", b": xchunked"), [NO_HTTP]),
    "a-transfer-of-two-codings": (chunked(GOOD).replace(b": chunked", b": gzip, chunked"), [NO_HTTP]),
    "a-transfer-of-chunks-twice": (chunked(GOOD).replace(b": chunked", b": chunked, chunked"), [NO_HTTP]),
    "two-transfers": (chunked(GOOD, more=b"transfer-encoding: chunked\r\n"), [NO_HTTP]),
    "a-transfer-and-another": (chunked(GOOD, more=b"Transfer-Encoding: gzip\r\n"), [NO_HTTP]),
    "a-transfer-in-capitals": (chunked(GOOD).replace(b": chunked", b": Chunked"), [OK]),
    "two-hosts": (told(GOOD, b"Host: y"), [NO_HTTP]),
    "the-same-host-twice": (told(GOOD, b"host: x"), [NO_HTTP]),
    "two-hosts-and-another-protocol": (told(GOOD, b"host: y", *UPGRADE), [NO_HTTP]),
    "a-host-behind-the-body": (chunked(GOOD, end=b"0\r\nhost: y\r\n\r\n"), [OK]),
    "chunks-of-a-byte": (chunked(*[GOOD[n : n + 1] for n in range(len(GOOD))]), [OK]),
    "chunks-with-notes": (chunked(GOOD).replace(b"%x\r\n" % len(GOOD), b'%x;a="b"\r\n' % len(GOOD)), [OK]),
    "a-chunk-of-no-size": (chunked(end=b"zz\r\n"), [NO_HTTP]),
    "a-chunk-of-a-negative-size": (chunked(end=b"-5\r\nhello\r\n"), [NO_HTTP]),
    "a-chunk-beyond-numbers": (chunked(end=b"f" * 18 + b"\r\n"), [NO_HTTP]),
    "headers-behind-the-body": (chunked(GOOD, end=b"0\r\nx-akr-provider: nobody\r\n\r\n"), [OK]),
    "ever-more-of-them": (chunked(GOOD, end=b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"), [OK]),
    "three-in-a-row": (told() + told(b"{") + told(STREAMED) + told(), [OK, BAD, OK, OK]),
    "is-it-welcome": (told(GOOD, b"expect: 100-continue"), [OK]),
    "too-much-to-be-welcome": (told(b"", b"expect: 100-continue", length=10**12), [(413, "request_too_large")]),
    "compressed": (told(gzip.compress(GOOD), b"content-encoding: gzip"), [(415, "unsupported_encoding")]),
    "not-compressed": (told(GOOD, b"content-encoding: Identity"), [OK]),
    "another-protocol": (told(GOOD, *UPGRADE), [OK]),
    "another-protocol-in-the-middle": (told() + told(GOOD, *UPGRADE) + told(), [OK, OK, OK]),
    "a-tunnel": (b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n", [NO_HTTP]),
    "a-folded-header": (told(GOOD, b"x-akr-team: a\r\n b"), [NO_HTTP]),
    "a-null-in-a-header": (told(GOOD, b"x-akr-team: a\x00b"), [NO_HTTP]),
    "a-blank-in-a-name": (told(GOOD, b"x-akr-team : a"), [NO_HTTP]),
    "a-hundred-headers-and-one": (told(GOOD, *[b"x-%d: y" % n for n in range(101)]), [(431, "headers_too_large")]),
    "an-id-with-markup": (told(GOOD, b"x-request-id: <script>"), [OK]),
    "a-null-in-the-path": (told(path=b"/v1/chat\x00"), [NO_HTTP]),
    "a-path-out-of-here": (told(path=b"/v1/models/..%2f..%2fapi%2fv1", method=b"GET"), [(404, "model_not_found")]),
    "an-id-with-a-line-break": (told(b"", path=b"/v1/responses/%0d%0aX:y", method=b"GET"), [(404, "not_found")]),
    "a-key-of-half-a-surrogate": (
        told(HALF_A_KEY, b"content-type: application/json", b"x-api-key: %b" % MANAGEMENT_KEY.encode(), path=b"/keys"),
        [(400, "key_refused")],
    ),
    "another-protocol-altogether": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 200, [NO_HTTP]),
    "lines-that-end-otherwise": (told().replace(b"\r\n", b"\n"), [NO_HTTP]),
}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def running(service_valkey: Server, shared_simulator: SimulatorProcess) -> AsyncIterator[Running]:
    await shared_simulator.reset()
    config = {
        "providers": providers_of(shared_simulator),
        "keys": [{"id": "k", "provider": "openai", "key": "sk-sim-service-1"}],
        "routing": {"translate": True},
    }
    async with running_service(service_valkey.url, config) as started:
        yield started


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One answer, whole: status, headers, body."""
    head = b"HTTP/1.1 100 "
    while head.startswith(b"HTTP/1.1 100 "):
        head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif "transfer-encoding" in headers:
        body = await reader.readuntil(b"\r\n0\r\n\r\n")
    else:
        body = await reader.read()
    return int(first.split()[1]), headers, body


def _code_of(body: bytes) -> str:
    error: dict[str, Any] = json.loads(body)["error"]
    details = error.get("details")
    return str(details[0]["reason"].lower() if details else error["code"])


@pytest.mark.parametrize("case", list(CASES))
async def test_whatever_is_sent_is_answered_and_nothing_stays_held(running: Running, case: str) -> None:
    data, expected = CASES[case]
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(SECONDS_MAX):
        writer.write(data)
        answers = [await answer_of(reader) for _ in expected]
        if NO_HTTP in expected:
            assert await reader.read() == b""
    writer.close()
    assert [(status, "" if status == 200 else _code_of(body)) for status, _, body in answers] == expected
    assert all("x-content-type-options" in headers for _, headers, _ in answers)
    async with running.http() as client:
        assert (await client.post(CHAT.decode(), content=GOOD)).status_code == 200
    router = running.runtime.router
    assert await router.drain(SECONDS_MAX)
    assert router.books.open == {}


@pytest.mark.parametrize("body", [GOOD, STREAMED], ids=["whole", "streamed"])
async def test_a_client_of_http_1_0_gets_what_it_can_read(running: Running, body: bytes) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(SECONDS_MAX):
        writer.write(told(body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers, answer = await answer_of(reader)
        assert await reader.read() == b""
    writer.close()
    assert (status, headers["connection"], "transfer-encoding" in headers) == (200, "close", False)
    assert answer.startswith(b"data: {") == (body is STREAMED)
    assert not body.endswith(b"true}") or answer.endswith(b"data: [DONE]\n\n")


async def test_what_is_read_twice_is_sent_once(running: Running, simulator: SimulatorProcess) -> None:
    """Of a name that comes twice, the last counts here: a provider for which the first does must not see that."""
    twice = b'{"model":"claude-haiku-4-5","max_tokens":1,"model":"gpt-4o-mini",' + MESSAGES + b',"max_tokens":5}'
    async with running.http() as client:
        answer = await client.post(CHAT.decode(), content=twice)
    assert (answer.status_code, answer.json()["model"]) == (200, "gpt-4o-mini")
    assert answer.json()["usage"]["completion_tokens"] == 5


async def test_rubbish_behind_a_stream_that_is_under_way_does_not_end_up_in_it(
    service_valkey: Server, shared_simulator: SimulatorProcess
) -> None:
    config = {
        "providers": providers_of(shared_simulator),
        "keys": [{"id": "k", "provider": "openai", "key": "sk-sim-slow"}],
    }
    async with running_service(service_valkey.url, config) as running:
        host, port = running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(SECONDS_MAX):
            writer.write(told(STREAMED.replace(b":5,", b":2000,")))
            got = await reader.readuntil(b"data: ")
            writer.write(b"rubbish\r\n\r\n")
            got += await reader.read()
        writer.close()
        assert got.count(b"HTTP/1.1") == 1
        assert b"[DONE]" not in got
        router = running.runtime.router
        assert await router.drain(SECONDS_MAX)
        assert router.books.open == {}
