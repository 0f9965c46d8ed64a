"""Receivers in the test's own event loop, which answer with any bytes at all, and clients for them."""

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from postrider.domain.model import AttemptResult, ErrorKind, Failure, Reply
from postrider.edges.addresses import AddressPolicy
from postrider.edges.dialing import BlockedAddressError
from postrider.edges.network import NetworkOptions, WebhookClient

LOOPBACK = AddressPolicy(allow=["127.0.0.0/8", "::1/128"])
NOTHING_ALLOWED = AddressPolicy()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEADERS = {"content-type": "application/json", "webhook-id": "msg_1"}

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


class Receiver:
    """A real listener on loopback whose behaviour is one function of a request and its writer."""

    def __init__(self, behaviour: Callable[[bytes, Writer], Awaitable[None]]) -> None:
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []
        self.hung_up = asyncio.Event()
        self._behaviour = behaviour
        self._handling: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def handle(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)
        try:
            while request := await read_request(reader):
                self.requests.append(request)
                await self._behaviour(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.hung_up.set()
            writer.close()

    async def hang_up(self) -> None:
        """End what its connections still do: the server does not wait for it."""
        for task in self._handling:
            task.cancel()
        await asyncio.gather(*self._handling, return_exceptions=True)


async def read_request(reader: Reader) -> bytes:
    """One request, head and body; nothing at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next(
        int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def receiver(
    answer: bytes | Callable[[bytes, Writer], Awaitable[None]] = OK, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    async def write_answer(request: bytes, writer: Writer) -> None:
        assert isinstance(answer, bytes)
        writer.write(answer)
        await writer.drain()

    made = Receiver(write_answer if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()
        await made.hang_up()


def client(
    policy: AddressPolicy = LOOPBACK,
    *,
    timeout: float = 10,
    connect_timeout: float = 5,
    max_response_bytes: int = 1000,
    proxy: str | None = None,
    ca_file: str | None = None,
    source_addresses: tuple[str, ...] = (),
    on_blocked: Callable[[BlockedAddressError], None] | None = None,
) -> WebhookClient:
    options = NetworkOptions(
        policy, timeout, connect_timeout, max_response_bytes, proxy, ca_file, source_addresses
    )
    return WebhookClient(options, on_blocked)


async def post(
    sender: WebhookClient,
    url: str,
    body: bytes = b"{}",
    https_only: bool = False,
    endpoint_id: int = 1,
) -> AttemptResult:
    return await sender.post(url, HEADERS, body, endpoint_id=endpoint_id, https_only=https_only)


def reply(result: AttemptResult) -> Reply:
    assert isinstance(result, Reply), result
    return result


def failure(result: AttemptResult, kind: ErrorKind) -> str:
    assert isinstance(result, Failure), result
    assert result.kind is kind, result
    return result.reason


async def answer_ok(request: bytes, writer: Writer) -> None:
    writer.write(OK)


async def silence(request: bytes, writer: Writer) -> None:
    """Never answer."""


def self_signed(directory: Path) -> tuple[ssl.SSLContext, str]:
    """A server context for 127.0.0.1, and the file with its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "receiver")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return context, str(certificate_file)
