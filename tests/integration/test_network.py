import asyncio
import contextlib
import datetime
import gzip
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, TypeAlias

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from postrider.domain.errors import UsageError
from postrider.domain.model import AttemptResult, ErrorKind, Failure, Reply
from postrider.edges.addresses import AddressPolicy, check_url, explain
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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def handle(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        try:
            while request := await read_request(reader):
                self.requests.append(request)
                await self._behaviour(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.hung_up.set()
            writer.close()


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


def client(
    policy: AddressPolicy = LOOPBACK,
    *,
    timeout: float = 10,
    connect_timeout: float = 5,
    max_response_bytes: int = 1000,
    proxy: str | None = None,
    ca_file: str | None = None,
    on_blocked: Callable[[BlockedAddressError], None] | None = None,
) -> WebhookClient:
    options = NetworkOptions(policy, timeout, connect_timeout, max_response_bytes, proxy, ca_file)
    return WebhookClient(options, on_blocked)


async def post(
    sender: WebhookClient, url: str, body: bytes = b"{}", https_only: bool = False
) -> AttemptResult:
    return await sender.post(url, HEADERS, body, https_only=https_only)


def reply(result: AttemptResult) -> Reply:
    assert isinstance(result, Reply), result
    return result


def failure(result: AttemptResult, kind: ErrorKind) -> str:
    assert isinstance(result, Failure), result
    assert result.kind is kind, result
    return result.reason


def test_sends_the_given_headers_and_body_and_no_others() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            result = reply(await post(sender, server.url, b'{"a":1}'))
            assert (result.status, result.body, result.retry_after) == (200, "ok", None)
            assert result.headers == "Content-Length: 2"
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            assert lines[0] == b"post /hook http/1.1"
            assert {line.split(b":")[0] for line in lines[1:]} == {
                b"host",
                b"content-type",
                b"webhook-id",
                b"content-length",
            }
            assert body == b'{"a":1}'

    run(main())


def test_body_larger_than_a_mebibyte_arrives_whole() -> None:
    async def main() -> None:
        body = b"x" * (2**20 + 4096)
        async with receiver() as server, client() as sender:
            assert reply(await post(sender, server.url, body)).status == 200
            assert server.requests[0].endswith(b"\r\n\r\n" + body)

    run(main())


def test_connection_is_kept_and_only_its_first_request_has_a_connect_time() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            times = [reply(await post(sender, server.url)).connect_ms for _ in range(3)]
            assert server.connections == 1
            assert times[0] is not None
            assert 0 < times[0] < 5000
            assert times[1:] == [None, None]

    run(main())


def test_no_request_fails_on_a_server_that_closes_idle_connections() -> None:
    async def main() -> None:
        async def handle(reader: Reader, writer: Writer) -> None:
            with contextlib.suppress(TimeoutError, ConnectionError):
                while await asyncio.wait_for(read_request(reader), idle_seconds):
                    writer.write(OK)
            writer.close()

        idle_seconds = 0.02
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        results = []
        async with server, client() as sender:
            for number in range(300):
                results.append(await post(sender, url))
                # Around the very instant at which the server hangs up: the race is the subject.
                await asyncio.sleep(idle_seconds + (number % 21 - 10) * 0.0001)
        # On a machine so busy that connecting takes long, the server gives up on a fresh connection too.
        failed = [result for result in results if not isinstance(result, Reply)]
        assert [result for result in failed if (result.connect_ms or 0) < idle_seconds * 500] == []
        connected = sum(1 for result in results if result.connect_ms is not None)
        assert 1 < connected < 300  # some connections were kept, some had gone

    run(main())


@pytest.mark.parametrize("reset", [False, True])
def test_request_whose_kept_connection_is_closed_is_sent_again_once_on_a_fresh_one(reset: bool) -> None:
    async def main() -> None:
        async def hang_up_on_second(request: bytes, writer: Writer) -> None:
            if len(server.requests) == 1:
                writer.write(OK)
                return
            if reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

        async with receiver(hang_up_on_second) as server, client() as sender:
            assert reply(await post(sender, server.url)).status == 200
            failure(await post(sender, server.url, b"again"), ErrorKind.PROTOCOL)
            assert [request[-5:] for request in server.requests[1:]] == [b"again", b"again"]
            assert server.connections == 2

    run(main())


def test_answer_that_had_begun_on_a_kept_connection_is_not_asked_for_again() -> None:
    async def main() -> None:
        async def break_off_second(request: bytes, writer: Writer) -> None:
            if len(server.requests) == 1:
                writer.write(OK)
            else:
                writer.write(OK[:20])
                writer.close()

        async with receiver(break_off_second) as server, client() as sender:
            await post(sender, server.url)
            failure(await post(sender, server.url), ErrorKind.PROTOCOL)
            assert len(server.requests) == 2

    run(main())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not usable HTTP"),
        (b"\x00\xff\xfe" * 100, "not usable HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 50_000 + b"\r\n\r\n", "not usable HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n", "not usable HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not usable HTTP"),
    ],
)
def test_answer_that_is_not_http_is_a_protocol_failure(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with receiver(answer) as server, client() as sender:
            assert words in failure(await post(sender, server.url), ErrorKind.PROTOCOL)

    run(main())


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nha",
        b"stray",
    ],
)
def test_what_follows_an_answer_changes_neither_it_nor_the_next(more: bytes) -> None:
    async def main() -> None:
        async def answer(request: bytes, writer: Writer) -> None:
            writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno" + more)
            await writer.drain()

        async with receiver(answer) as server, client() as sender:
            for _ in range(3):
                result = reply(await post(sender, server.url))
                assert (result.status, result.body) == (500, "no")
            assert server.connections == 3

    run(main())


def test_body_of_an_answer_that_must_have_none_spoils_only_its_connection() -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"
        async with receiver(answer) as server, client() as sender:
            for _ in range(3):
                assert reply(await post(sender, server.url)).status == 204

    run(main())


@pytest.mark.parametrize("endless", [b"a" * 4096, b"X: a\r\n" * 500])
def test_endless_trailer_is_a_protocol_failure(endless: bytes) -> None:
    async def main() -> None:
        async def answer(request: bytes, writer: Writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ")
            while not writer.is_closing():
                writer.write(endless)
                await writer.drain()

        async with receiver(answer) as server, client() as sender:
            assert "not usable HTTP" in failure(await post(sender, server.url), ErrorKind.PROTOCOL)
            await asyncio.wait_for(server.hung_up.wait(), 5)

    run(main())


def test_closing_the_client_ends_the_requests_under_way() -> None:
    async def main() -> None:
        async with receiver(_silence) as server:
            sender = client()
            async with sender:
                under_way = asyncio.ensure_future(post(sender, server.url))
                while not server.requests:
                    await asyncio.sleep(0.01)
            failure(await asyncio.wait_for(under_way, 5), ErrorKind.PROTOCOL)

    run(main())


def test_request_after_an_idle_while_ends_at_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def answer_first(request: bytes, writer: Writer) -> None:
            if len(server.requests) == 1:
                writer.write(OK)

        monkeypatch.setattr("postrider.edges.network._IDLE_TICK_S", 60.0)
        async with receiver(answer_first) as server, client(timeout=0.3) as sender:
            assert reply(await post(sender, server.url)).status == 200
            await asyncio.sleep(0.2)  # by now the client looks at the clock only for idle connections
            failure(await asyncio.wait_for(post(sender, server.url), 20), ErrorKind.TIMEOUT)

    run(main())


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"])
def test_connection_closed_before_the_answer_is_complete_is_a_protocol_failure(sent: bytes) -> None:
    async def main() -> None:
        async def hang_up(request: bytes, writer: Writer) -> None:
            writer.write(sent)
            writer.close()

        async with receiver(hang_up) as server, client() as sender:
            assert "connection ended" in failure(await post(sender, server.url), ErrorKind.PROTOCOL)

    run(main())


async def _silence(request: bytes, writer: Writer) -> None:
    """Never answer."""


async def _header_drip(request: bytes, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await _drip(writer, b"X: a\r\n")


async def _interim_drip(request: bytes, writer: Writer) -> None:
    await _drip(writer, b"HTTP/1.1 100 Continue\r\n\r\n")


async def _body_drip(request: bytes, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    await _drip(writer, b"x")


async def _drip(writer: Writer, piece: bytes) -> None:
    while not writer.is_closing():
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02)  # the drip itself


@pytest.mark.parametrize("behaviour", [_silence, _header_drip, _interim_drip, _body_drip])
def test_slow_answer_ends_at_the_total_timeout(behaviour: Callable[[bytes, Writer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with receiver(behaviour) as server, client(timeout=0.3) as sender:
            result = await post(sender, server.url)
            assert "within 0.3 s" in failure(result, ErrorKind.TIMEOUT)
            assert 290 <= result.duration_ms < 2000
            assert result.connect_ms is not None
            await asyncio.wait_for(server.hung_up.wait(), 5)

    run(main())


def test_handshake_that_never_ends_stops_at_the_connect_timeout() -> None:
    async def main() -> None:
        async with receiver(_silence) as server, client(connect_timeout=0.3) as sender:
            result = await post(sender, f"https://127.0.0.1:{server.port}/")
            assert failure(result, ErrorKind.TIMEOUT) == "no connection within 0.3 s"

    run(main())


def test_cancelled_request_hangs_up_and_says_nothing() -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def arrive(request: bytes, writer: Writer) -> None:
            arrived.set()

        async with receiver(arrive) as server, client() as sender:
            sending = asyncio.ensure_future(post(sender, server.url))
            await arrived.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await asyncio.wait_for(server.hung_up.wait(), 5)

    run(main())


def test_huge_body_is_cut_and_its_connection_closed() -> None:
    async def main() -> None:
        async def flood(request: bytes, writer: Writer) -> None:
            writer.write(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await writer.drain()

        async with receiver(flood) as server, client(max_response_bytes=5000) as sender:
            result = reply(await post(sender, server.url))
            assert (result.status, result.body) == (500, "x" * 5000)
            await asyncio.wait_for(server.hung_up.wait(), 5)

    run(main())


def test_compressed_body_is_kept_as_it_came() -> None:
    async def main() -> None:
        body = gzip.compress(b"secretly large" * 1000)
        answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
        async with receiver(answer) as server, client() as sender:
            text = reply(await post(sender, server.url)).body
            assert text == body.decode("utf-8", "replace").replace("\0", "\ufffd")

    run(main())


def test_answer_is_kept_as_text_that_postgresql_can_hold() -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9\r\nContent-Length: 4\r\n\r\na\0\xffz"
        async with receiver(answer) as server, client() as sender:
            result = reply(await post(sender, server.url))
            assert result.body == "a\ufffd\ufffdz"
            assert "X-Name: caf\ufffd" in result.headers.splitlines()

    run(main())


def test_answer_headers_are_bounded_and_hide_secrets() -> None:
    async def main() -> None:
        answer = (
            b"HTTP/1.1 503 Busy\r\nSet-Cookie: sid=hunter2\r\nX-Auth-Token: hunter2\r\n"
            b"Authorization: hunter2\r\nRetry-After: 120\r\nContent-Length: 0\r\nX-Long: "
            + b"a" * 6000
            + b"\r\n\r\n"
        )
        async with receiver(answer) as server, client() as sender:
            result = reply(await post(sender, server.url))
            assert result.retry_after == "120"
            assert "hunter2" not in result.headers
            assert "Set-Cookie: (hidden)" in result.headers.splitlines()
            assert "Retry-After: 120" in result.headers.splitlines()
            assert len(result.headers) == 4096

    run(main())


def test_cookies_are_never_sent_back() -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=1; Path=/\r\nContent-Length: 0\r\n\r\n"
        async with receiver(answer) as server, client() as sender:
            for _ in range(2):
                await post(sender, server.url)
            assert b"cookie" not in server.requests[1].lower()

    run(main())


def test_redirect_is_an_answer_and_its_target_gets_no_connection() -> None:
    async def main() -> None:
        async with receiver() as target, client() as sender:
            answer = b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % target.url.encode()
            async with receiver(answer) as server:
                assert reply(await post(sender, server.url)).status == 302
            assert target.connections == 0

    run(main())


@pytest.mark.parametrize(
    ("host", "address", "verdict"),
    [
        ("127.0.0.1", "127.0.0.1", "loopback"),
        ("localhost", None, "loopback"),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1", "loopback"),
        ("[::ffff:7f00:1]", "::ffff:127.0.0.1", "loopback"),
        ("[::127.0.0.1]", "::127.0.0.1", "reserved"),
        ("[64:ff9b::7f00:1]", "64:ff9b::7f00:1", "loopback"),
        ("2130706433", "127.0.0.1", "loopback"),
        ("0x7f000001", "127.0.0.1", "loopback"),
        ("0x7f.1", "127.0.0.1", "loopback"),
        ("127.1", "127.0.0.1", "loopback"),
        ("127.0.0.1.", "127.0.0.1", "loopback"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1", "loopback"),
        ("0", "0.0.0.0", "unspecified"),
        ("[::]", "::", "unspecified"),
    ],
)
def test_forbidden_address_is_blocked_however_it_is_spelt_and_gets_no_connection(
    host: str, address: str | None, verdict: str
) -> None:
    async def main() -> None:
        seen: list[BlockedAddressError] = []
        async with receiver() as server, client(NOTHING_ALLOWED, on_blocked=seen.append) as sender:
            reason = failure(await post(sender, f"http://{host}:{server.port}/hook"), ErrorKind.BLOCKED)
            # The endpoint's owner reads this: it names no address.
            assert reason == f"the host leads to an address that the network policy forbids ({verdict})"
            assert server.connections == 0
            (blocked,) = seen
            assert blocked.verdict == verdict
            assert address is None or ip_address(blocked.address) == ip_address(address)

    run(main())


def test_port_of_another_protocol_is_blocked_unless_it_is_allowed() -> None:
    async def main() -> None:
        seen: list[BlockedAddressError] = []
        async with client(on_blocked=seen.append) as sender:
            reason = failure(await post(sender, "http://127.0.0.1:6379/"), ErrorKind.BLOCKED)
            assert reason == "the port belongs to another protocol, and the network policy forbids it"
            assert [(blocked.host, blocked.address) for blocked in seen] == [("127.0.0.1", "6379")]
        allowed = AddressPolicy(allow=["127.0.0.0/8"], allow_ports=[1])
        async with client(allowed) as sender:
            failure(await post(sender, "http://127.0.0.1:1/"), ErrorKind.CONNECT)

    run(main())


def test_allowed_name_is_looked_up_and_reached() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            assert reply(await post(sender, f"http://localhost:{server.port}/")).status == 200

    run(main())


def test_http_is_blocked_where_https_is_required() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            reason = failure(await post(sender, server.url, https_only=True), ErrorKind.BLOCKED)
            assert "not https://" in reason
            assert server.connections == 0

    run(main())


def test_unknown_host_is_a_dns_failure() -> None:
    async def main() -> None:
        async with client() as sender:
            reason = failure(await post(sender, "http://nonexistent.invalid/"), ErrorKind.DNS)
            assert reason.startswith("the name lookup failed: ")

    run(main())


def test_refused_port_is_a_connect_failure() -> None:
    async def main() -> None:
        async with receiver() as server:
            url = server.url
        async with client() as sender:
            reason = failure(await post(sender, url), ErrorKind.CONNECT)
            assert reason == "the connection failed: Connection refused"

    run(main())


BAD_URLS = [
    "",
    "example.com/hook",
    "ftp://example.com/",
    "http:///hook",
    "http://:80/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:x/",
    "http://[::1/",
    "http://[]]/",
    "http://user:hunter2@example.com/",
    "http://hunter2@example.com/",
    "http://example.com/#hunter2",
    "http://example.com/a b",
    "http://example.com/\r\nX: y",
    "http://example.com\\@evil.example/",
    "http://example.com/" + "a" * 2048,
    "http://0177.0.0.1/",
    "http://00000127.0.0.1/",
    "http://10.0.0.08/",
    "http://256.1.1.1/",
    "http://1.2.3.4.5/",
    "http://example.1/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_unusable_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_url(url, https_only=False, policy=LOOPBACK)
    assert refused.value.hint
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", [*BAD_URLS, f"http://{'a' * 64}.example/", "http://a..example/"])
def test_unusable_url_fails_its_own_attempt(url: str) -> None:
    async def main() -> None:
        async with client() as sender:
            result = await post(sender, url)
            assert isinstance(result, Failure)
            assert result.kind in (ErrorKind.PROTOCOL, ErrorKind.DNS)
            assert "hunter2" not in result.reason

    run(main())


def test_usable_urls_pass() -> None:
    check_url("https://example.com", https_only=True, policy=NOTHING_ALLOWED)
    check_url("https://bücher.example:8443/a%20b?x=1&y=%2F", https_only=True, policy=NOTHING_ALLOWED)
    check_url("http://[2606:4700::1111]/hook", https_only=False, policy=NOTHING_ALLOWED)
    check_url("http://0x1010101/hook", https_only=False, policy=NOTHING_ALLOWED)
    check_url("http://localhost:8900/hook", https_only=False, policy=LOOPBACK)
    with pytest.raises(UsageError, match="not https://"):
        check_url("http://example.com/", https_only=True, policy=NOTHING_ALLOWED)


@pytest.mark.parametrize(
    ("url", "reason", "hint"),
    [
        ("http://127.0.0.1/", "127.0.0.1 is loopback", "add 127.0.0.1/32 to network.allow"),
        ("http://2130706433/", "127.0.0.1 is loopback", "add 127.0.0.1/32 to network.allow"),
        ("http://localhost:8900/", "127.0.0.1 is loopback", "add 127.0.0.1/32 to network.allow"),
        ("http://[::1]/", "::1 is loopback", "add ::1/128 to network.allow"),
        ("http://[::ffff:10.0.0.1]/", "is private", "add 10.0.0.1/32 to network.allow"),
        ("http://8.8.8.8/", "8.8.8.8 is denied by network.deny", "public internet"),
        ("http://169.254.169.254/", "169.254.169.254 is cloud-metadata", "public internet"),
        ("http://example.com:25/", "port 25 belongs to another protocol", "add 25 to network.allow_ports"),
    ],
)
def test_url_that_will_never_be_sent_to_is_refused_with_the_way_to_permit(
    url: str, reason: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        check_url(url, https_only=False, policy=AddressPolicy(deny=["8.8.8.8"]))
    assert reason in refused.value.message
    assert hint in refused.value.hint


def test_nobody_is_advised_to_permit_a_metadata_address() -> None:
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"):
        url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
        with pytest.raises(UsageError) as refused:
            check_url(url, https_only=False, policy=NOTHING_ALLOWED)
        assert "allow" not in str(refused.value)
        assert "allow" not in explain(address, NOTHING_ALLOWED.verdict(address))


def test_header_that_would_split_the_request_fails_its_own_attempt() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            result = await sender.post(server.url, {"x-a": "hunter2\r\nx-b: 1"}, b"{}", https_only=False)
            assert "hunter2" not in failure(result, ErrorKind.PROTOCOL)
            assert server.requests == []

    run(main())


def test_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with receiver() as proxy, receiver() as server:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            async with client() as sender:
                assert reply(await post(sender, server.url)).status == 200
            assert (proxy.connections, server.connections) == (0, 1)

    run(main())


def test_configured_proxy_carries_the_request_and_needs_no_permission() -> None:
    async def main() -> None:
        policy = AddressPolicy(allow=["192.0.2.7"])
        async with receiver() as proxy, client(policy, proxy=f"http://127.0.0.1:{proxy.port}") as sender:
            assert reply(await post(sender, "http://192.0.2.7/hook")).status == 200
            assert proxy.requests[0].startswith(b"POST http://192.0.2.7/hook HTTP/1.1\r\n")

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:a00:1]"])
def test_forbidden_target_is_not_asked_of_the_proxy(host: str) -> None:
    async def main() -> None:
        async with receiver() as proxy:
            sender = client(NOTHING_ALLOWED, proxy=f"http://127.0.0.1:{proxy.port}")
            async with sender:
                failure(await post(sender, f"http://{host}/"), ErrorKind.BLOCKED)
            assert proxy.connections == 0

    run(main())


def test_proxy_that_refuses_the_tunnel_is_a_connect_failure() -> None:
    async def main() -> None:
        async def handle(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        policy = AddressPolicy(allow=["192.0.2.7"])
        async with server, client(policy, proxy=f"http://127.0.0.1:{port}") as sender:
            reason = failure(await post(sender, "https://192.0.2.7/"), ErrorKind.CONNECT)
            assert reason == "the proxy refused the connection with status 407"

    run(main())


@pytest.mark.parametrize("proxy", ["proxy.example:3128", "socks5://proxy.example", "http://[::1"])
def test_unusable_proxy_is_refused(proxy: str) -> None:
    with pytest.raises(UsageError, match=r"network\.proxy"):
        client(proxy=proxy)


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
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
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


def test_untrusted_certificate_is_a_tls_failure(tmp_path: Path) -> None:
    async def main() -> None:
        tls, _ = self_signed(tmp_path)
        async with receiver(tls=tls) as server, client() as sender:
            reason = failure(await post(sender, f"https://127.0.0.1:{server.port}/"), ErrorKind.TLS)
            assert reason == "the certificate is not trusted: self-signed certificate"
            assert server.requests == []

    run(main())


def test_certificate_of_the_ca_file_is_trusted_and_its_connection_kept(tmp_path: Path) -> None:
    async def main() -> None:
        tls, ca_file = self_signed(tmp_path)
        async with receiver(tls=tls) as server, client(ca_file=ca_file) as sender:
            for _ in range(2):
                result = await post(sender, f"https://127.0.0.1:{server.port}/", https_only=True)
                assert reply(result).status == 200
            assert server.connections == 1

    run(main())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad\r\n\r\n", b""])
def test_port_that_speaks_no_tls_is_a_tls_failure(answer: bytes) -> None:
    async def main() -> None:
        async def handle(reader: Reader, writer: Writer) -> None:
            await reader.read(1)
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server, client() as sender:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            reason = failure(await post(sender, url), ErrorKind.TLS)
            assert reason.startswith("the TLS handshake failed")

    run(main())


def test_unreadable_ca_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    for ca_file in (str(tmp_path / "missing.pem"), str(empty)):
        with pytest.raises(UsageError, match=r"network\.ca_file"):
            client(ca_file=ca_file)
