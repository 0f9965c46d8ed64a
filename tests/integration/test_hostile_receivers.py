"""What a receiver may cost: bytes read, calls of the parser, memory; and its neighbours next to nothing."""

import asyncio
import contextlib
import tracemalloc
from pathlib import Path

import pytest

from postrider.domain.model import Failure, Reply
from postrider.edges.http1 import HttpConnection
from tests.support.loopback import OK, Reader, Writer, client, post, receiver, reply, run, self_signed

MEBIBYTE = 1_048_576
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
"""A complete head: what follows can't unmake the answer."""


class Counting(HttpConnection):
    """A connection that counts what its parser is given, and what that calls."""

    bytes_in = 0
    calls = 0

    def data_received(self, data: bytes) -> None:
        Counting.bytes_in += len(data)
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        Counting.calls += 1
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        Counting.calls += 1
        super().on_body(body)

    def on_headers_complete(self) -> None:
        Counting.calls += 1
        super().on_headers_complete()


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    Counting.bytes_in = Counting.calls = 0
    monkeypatch.setattr("postrider.edges.network.HttpConnection", Counting)


ENDLESS = {
    "chunk extension": (CHUNKED + b"1;", b"x" * 4096),
    "chunk extensions": (CHUNKED, (b"1;" + b"x" * 2000 + b"\r\ny\r\n") * 20),
    "chunks of one byte": (CHUNKED, b"1\r\nx\r\n" * 1000),
    "trailers": (CHUNKED + b"0\r\n", b"X: a\r\n" * 500),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 500),
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 4096),
    "folded header": (b"HTTP/1.1 200 OK\r\nX: a\r\n", b" a\r\n" * 500),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 200),
    "interim answers with headers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 200),
    "line ends": (b"", b"\r\n" * 2000),
    "reason": (b"HTTP/1.1 200 ", b"O" * 4096),
    "answers": (OK, OK * 500),
    "upgrade": (b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", b"x" * 4096),
    "garbage after the answer": (OK, b"x" * 4096),
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_endless_answer_costs_a_bounded_number_of_bytes_and_calls(endless: str) -> None:
    async def main() -> None:
        start, more = ENDLESS[endless]

        async def flood(request: bytes, writer: Writer) -> None:
            writer.write(start)
            while not writer.is_closing():
                writer.write(more)
                await writer.drain()

        async with receiver(flood) as server, client(max_response_bytes=MEBIBYTE) as sender:
            result = await post(sender, server.url)
            assert isinstance(result, Reply) == start.endswith((b"\r\n\r\n", b"1;", b"0\r\n", b"ok"))
            await asyncio.wait_for(server.hung_up.wait(), 5)
            assert Counting.bytes_in < MEBIBYTE  # a read brings at most 256 KiB
            assert Counting.calls < 3000

    run(main())


def test_answer_in_single_bytes_costs_a_bounded_number_of_reads() -> None:
    async def main() -> None:
        async def drip(request: bytes, writer: Writer) -> None:
            for byte in b"HTTP/1.1 200 OK\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0)  # lets the client read this byte alone

        async with receiver(drip) as server, client(max_response_bytes=MEBIBYTE) as sender:
            result = reply(await post(sender, server.url))
            assert result.status == 200
            assert set(result.body) == {"x"}
            assert Counting.calls < 3000

    run(main())


def test_healthy_endpoint_is_delivered_to_beside_floods() -> None:
    async def main() -> None:
        async def misbehave(request: bytes, writer: Writer) -> None:
            start, more = floods[len(hostile.requests) % len(floods)]
            writer.write(start)
            while not writer.is_closing():
                writer.write(more)
                await writer.drain()

        floods = [*ENDLESS.values()]
        async with (
            receiver(misbehave) as hostile,
            receiver() as healthy,
            client(max_response_bytes=MEBIBYTE, timeout=30) as sender,
        ):
            attacks = asyncio.gather(*(
                post(sender, hostile.url, endpoint_id=number) for number in range(2, 58)
            ))  # fmt: skip
            for _ in range(200):
                result = reply(await post(sender, healthy.url))
                assert (result.status, result.body) == (200, "ok")
            assert healthy.connections == 1
            assert all(isinstance(result, Reply | Failure) for result in await attacks)

    run(main())


@pytest.mark.parametrize("encrypted", [False, True])
def test_receivers_that_never_read_share_the_memory_of_a_large_body(encrypted: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async def never_read(reader: Reader, writer: Writer) -> None:
            # What TLS and its stream take unasked, hundreds of kB, counts too: it is this process's.
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
            writer.transport.abort()

        tls, ca_file = self_signed(tmp_path)
        over = asyncio.Event()
        body = b"x" * 8_000_000
        server = await asyncio.start_server(never_read, "127.0.0.1", 0, ssl=tls if encrypted else None)
        async with server, client(ca_file=ca_file, timeout=1) as sender:
            scheme = "https" if encrypted else "http"
            url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            tracemalloc.start()
            try:
                results = await asyncio.gather(*(
                    post(sender, url, body, endpoint_id=number) for number in range(20)
                ))  # fmt: skip
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert all(isinstance(result, Failure) for result in results)
            assert peak < 20 * len(body) / 4
            over.set()

    run(main())
