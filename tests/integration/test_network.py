import asyncio
import socket
from ipaddress import ip_address
from itertools import cycle
from pathlib import Path

import pytest

from postrider.domain.errors import HostExhausted, UsageError
from postrider.domain.model import ErrorKind, Failure
from postrider.edges.addresses import AddressPolicy, check_url, explain
from postrider.edges.dialing import BlockedAddressError
from tests.support.loopback import (
    LOOPBACK,
    NOTHING_ALLOWED,
    OK,
    Reader,
    Writer,
    client,
    failure,
    post,
    receiver,
    reply,
    run,
    self_signed,
    silence,
)


def test_handshake_that_never_ends_stops_at_the_connect_timeout() -> None:
    async def main() -> None:
        async with receiver(silence) as server, client(connect_timeout=0.3) as sender:
            result = await post(sender, f"https://127.0.0.1:{server.port}/")
            assert failure(result, ErrorKind.TIMEOUT) == "no connection within 0.3 s"

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


def test_connections_leave_from_the_source_addresses_by_turns() -> None:
    async def main() -> None:
        peers: list[str] = []

        async def note(request: bytes, writer: Writer) -> None:
            peers.append(writer.get_extra_info("peername")[0])
            writer.write(OK)

        sources = ("127.0.0.2", "127.0.0.3")
        async with receiver(note) as server, client(source_addresses=sources) as sender:
            for endpoint_id in range(4):
                reply(await post(sender, server.url, endpoint_id=endpoint_id))
            assert sorted(peers) == ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]
            reason = failure(await post(sender, f"http://[::1]:{server.port}/"), ErrorKind.CONNECT)
            assert reason == "the connection failed: nothing is sent from here to IPv6 addresses"

    run(main())


def test_source_address_that_the_host_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"source_addresses: nothing can be sent from 192\.0\.2\.1: "):
        client(source_addresses=("127.0.0.1", "192.0.2.1"))


def test_a_source_address_that_the_host_loses_is_no_attempt() -> None:
    async def main() -> None:
        async with receiver() as server, client(source_addresses=("127.0.0.2",)) as sender:
            sender._sources._turns[socket.AF_INET] = cycle([("192.0.2.1", 0)])
            with pytest.raises(HostExhausted, match="can't open a connection: "):
                await post(sender, server.url)
            assert server.connections == 0

    run(main())


def test_a_request_may_have_a_connect_timeout_of_its_own() -> None:
    async def main() -> None:
        async with receiver(silence) as server, client(connect_timeout=30) as sender:
            result = await sender.post(
                f"https://127.0.0.1:{server.port}/",
                {},
                b"{}",
                endpoint_id=1,
                https_only=False,
                connect_timeout=0.3,
            )
            assert failure(result, ErrorKind.TIMEOUT) == "no connection within 0.3 s"

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
    "http://[]@/",
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
