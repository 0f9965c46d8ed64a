import asyncio
import gzip
import struct
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET

import pytest

from postrider.domain.model import ErrorKind
from tests.support.loopback import Writer, client, failure, post, receiver, reply, run, silence


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


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not usable HTTP"),
        (b"\x00\xff\xfe" * 100, "not usable HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 50_000 + b"\r\n\r\n", "not usable HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n", "not usable HTTP"),
        (b"HTTP/0.9 hello", "not usable HTTP"),
        (b"<html>200 OK</html>", "not usable HTTP"),
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


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n"])
def test_connection_closed_before_the_head_is_complete_is_a_protocol_failure(sent: bytes) -> None:
    async def main() -> None:
        async def hang_up(request: bytes, writer: Writer) -> None:
            writer.write(sent)
            writer.close()

        async with receiver(hang_up) as server, client() as sender:
            assert "connection ended" in failure(await post(sender, server.url), ErrorKind.PROTOCOL)

    run(main())


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("status", [b"200 OK", b"500 Oops"])
@pytest.mark.parametrize("end", ["close", "reset", "stay"])
@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 10\r\n\r\nabc",
        b"\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"9\r\nabc",
        CHUNKED + b"3\r\nabc\r\nzz\r\n",
        CHUNKED + b"3\r\nabcdef\r\n",
    ],
)
def test_complete_head_is_an_answer_however_its_body_ends(status: bytes, rest: bytes, end: str) -> None:
    async def main() -> None:
        async def answer(request: bytes, writer: Writer) -> None:
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + rest)
            await writer.drain()
            if end == "stay":
                return
            if end == "reset":
                while b"abc" not in [bytes(each._answer.body) for each in sender._busy]:
                    await asyncio.sleep(0.001)  # a reset discards what was not read yet
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

        async with receiver(answer) as server, client(timeout=0.5) as sender:
            for number in (1, 2):
                result = reply(await post(sender, server.url))
                assert (result.status, result.body) == (int(status[:3]), "abc")
                assert server.connections == number

    run(main())


@pytest.mark.parametrize(
    "extent",
    [
        b"Content-Length: abc",
        b"Content-Length: -3",
        b"Content-Length: 99999999999999999999999",
        b"Content-Length: 2\r\nContent-Length: 3",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked",
    ],
)
def test_answer_of_which_only_the_extent_is_nonsense_counts_with_its_status(extent: bytes) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 202 Accepted\r\n" + extent + b"\r\n\r\nok"
        async with receiver(answer) as server, client() as sender:
            for number in (1, 2):
                assert reply(await post(sender, server.url)).status == 202
                assert server.connections == number

    run(main())


@pytest.mark.parametrize("endless", [b"a" * 4096, b"X: a\r\n" * 500])
def test_endless_trailer_ends_the_connection_and_leaves_the_answer(endless: bytes) -> None:
    async def main() -> None:
        async def answer(request: bytes, writer: Writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\nX: ")
            while not writer.is_closing():
                writer.write(endless)
                await writer.drain()

        async with receiver(answer) as server, client() as sender:
            assert reply(await post(sender, server.url)).body == "ok"
            await asyncio.wait_for(server.hung_up.wait(), 5)

    run(main())


def test_body_that_drips_ends_at_the_total_timeout_and_leaves_the_answer() -> None:
    async def main() -> None:
        async with receiver(_body_drip) as server, client(timeout=0.3) as sender:
            result = reply(await post(sender, server.url))
            assert result.status == 200
            assert set(result.body) == {"x"}
            assert 290 <= result.duration_ms < 10_000
            await asyncio.wait_for(server.hung_up.wait(), 5)

    run(main())


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


@pytest.mark.parametrize("behaviour", [silence, _header_drip, _interim_drip])
def test_slow_answer_ends_at_the_total_timeout(behaviour: Callable[[bytes, Writer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with receiver(behaviour) as server, client(timeout=0.3) as sender:
            result = await post(sender, server.url)
            assert "within 0.3 s" in failure(result, ErrorKind.TIMEOUT)
            assert 290 <= result.duration_ms < 10_000
            assert result.connect_ms is not None
            await asyncio.wait_for(server.hung_up.wait(), 5)

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


def test_redirect_is_an_answer_and_its_target_gets_no_connection() -> None:
    async def main() -> None:
        async with receiver() as target, client() as sender:
            answer = b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % target.url.encode()
            async with receiver(answer) as server:
                assert reply(await post(sender, server.url)).status == 302
            assert target.connections == 0

    run(main())


def test_header_that_would_split_the_request_fails_its_own_attempt() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            result = await sender.post(
                server.url, {"x-a": "hunter2\r\nx-b: 1"}, b"{}", endpoint_id=1, https_only=False
            )
            assert "hunter2" not in failure(result, ErrorKind.PROTOCOL)
            assert server.requests == []

    run(main())


def test_headers_larger_than_receivers_take_fail_their_own_attempt() -> None:
    async def main() -> None:
        async with receiver() as server, client() as sender:
            headers = {f"x-{number}": "hunter2" * 100 for number in range(30)}
            result = await sender.post(server.url, headers, b"{}", endpoint_id=1, https_only=False)
            reason = failure(result, ErrorKind.PROTOCOL)
            assert "headers take 21," in reason
            assert "hunter2" not in reason
            assert server.connections == 0

    run(main())
