"""A server of single bytes: what it answers is what the test says, and it tells what it saw."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import Timeouts

Make = Callable[[], AiohttpTransport | LeanTransport]
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
SHORT = Timeouts(connect=2.0, first_byte=0.2, idle=0.2, total=5.0)


class Seen(list[bytes]):
    """The requests a server saw; how many connections were made, and how many of them have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = self.ended = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def until_ended(self, count: int) -> None:
        """Wait until as many connections have ended."""
        async with asyncio.timeout(10):
            while self.ended < count:
                await asyncio.sleep(0.005)

    async def until_seen(self, count: int) -> None:
        """Wait until as many requests have come."""
        async with asyncio.timeout(10):
            while len(self) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def upstream(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, Seen]]:
    """A server that hands each request to `answer`; yields its URL and the requests it saw."""
    seen = Seen()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.writers.append(writer)
        seen.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(x[16:]) for x in head.lower().split(b"\r\n") if x[:15] == b"content-length:"), 0)
                request = head + await reader.readexactly(length)
                seen.append(request)
                await answer(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            seen.ended += 1
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        server.close()
        for writer in seen.writers:
            writer.close()


def says(data: bytes, *, close: bool = False) -> Answer:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if close:
            await writer.drain()
            writer.close()

    return answer


def post(url: str, body: bytes = b"{}", /, **headers: str) -> UpstreamRequest:
    told = (("accept-encoding", "identity"), ("content-type", "application/json"), *headers.items())
    return UpstreamRequest(method="POST", url=url + "/v1/x", headers=told, body=body)


OK = b"HTTP/1.1 200 OK\r\nX-Request-ID: abc\r\nContent-Length: 5\r\n\r\nhello"


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's TLS context whose certificate nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    names = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "pair.pem").write_bytes(private + certificate.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "pair.pem")
    return context


async def ask(transport: LeanTransport | AiohttpTransport, url: str) -> bytes:
    """The body of the answer to one request."""
    return await (await transport.send(post(url))).read()


def open_connections(transport: LeanTransport | AiohttpTransport) -> int:
    """How many connections a lean transport has."""
    assert isinstance(transport, LeanTransport)
    return 0 if transport._pool is None else len(transport._pool._all)


async def silent_server(said: list[asyncio.StreamWriter]) -> tuple[asyncio.Server, int]:
    """Accepts, and says nothing: TLS never comes about."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(writer)
        await reader.read()
        writer.close()
        said.remove(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that has no event."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
