"""However a connection ends, and whatever still comes on it, an exchange ends once and nothing is raised into
the event loop.
"""

import asyncio
import random
from typing import Any, cast

import pytest
import uvloop

from postrider.edges.http1 import Answer, ExchangeError, HttpConnection

PIECES = (
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"Content-Length: 5\r\n\r\nhello",
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"Content-Length: x\r\n\r\n",
    b"Connection: close\r\nContent-Length: 0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, x\r\n\r\n",
    b"\r\n\r\n",
    b"x" * 40_000,
    b"\0\xff",
)
ENDS = ("abort", "expire", "lost", "cancel", "nothing")


class Transport:
    """Hands on what is written to nobody; as TLS does, it may bring data after it was aborted."""

    def __init__(self) -> None:
        self.closing = False

    def get_extra_info(self, _name: str) -> None:
        return None

    def set_write_buffer_limits(self, *, high: int) -> None:
        """It never pauses."""

    def set_protocol(self, _protocol: object) -> None:
        """The test calls it."""

    def is_closing(self) -> bool:
        return self.closing

    def write(self, _data: bytes) -> None:
        """It is out at once."""

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.closing = True


def connection() -> tuple[HttpConnection, list[str]]:
    closed: list[str] = []
    transport = cast(Any, Transport())
    return HttpConnection(transport, lambda: closed.append("closed"), max_body_bytes=64), closed


async def story(seed: int) -> None:
    chance = random.Random(seed)
    subject, closed = connection()
    for _ in range(3):
        exchange = asyncio.create_task(subject.exchange(b"POST / HTTP/1.1\r\n\r\n", b""))
        await asyncio.sleep(0)
        stream = b"".join(chance.choices(PIECES, k=chance.randrange(1, 6)))
        cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.randrange(4)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        end, at = chance.choice(ENDS), chance.randrange(len(pieces) + 1)
        for place, piece in enumerate([*pieces, b"late"]):
            if place == at:
                end_it(subject, exchange, end)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            subject.data_received(piece)
        subject.connection_lost(None)
        done, _ = await asyncio.wait({exchange}, timeout=5)
        assert done
        if not exchange.cancelled() and (error := exchange.exception()) is not None:
            assert isinstance(error, ExchangeError | TimeoutError)
        elif not exchange.cancelled():
            assert isinstance(exchange.result(), Answer)
        assert subject.closed
        assert closed == ["closed"]
        subject.data_received(b"later still")
        subject.abort()


def end_it(subject: HttpConnection, exchange: "asyncio.Task[Answer]", end: str) -> None:
    match end:
        case "abort":
            subject.abort()
        case "expire":
            subject.expire()
        case "lost":
            subject.connection_lost(ConnectionResetError())
        case "cancel":
            exchange.cancel()


@pytest.mark.parametrize("seed", range(0, 5000, 500))
def test_an_exchange_ends_once_however_its_connection_does(seed: int) -> None:
    async def all_of_them() -> None:
        for each in range(seed, seed + 500):
            try:
                await story(each)
            except Exception as error:
                error.add_note(f"seed {each}")
                raise

    asyncio.run(all_of_them())


def test_closing_within_an_exchange_raises_nothing_into_the_loop() -> None:
    """Over real sockets: a server that answers in pieces and goes on after the client hung up."""
    told: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chance = random.Random(id(writer))
        try:
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(6):
                writer.write(chance.choice(PIECES))
                await writer.drain()
                await asyncio.sleep(0)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()

    async def one(port: int, number: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        subject = HttpConnection(transport, transport.close, max_body_bytes=64)
        exchange = asyncio.create_task(subject.exchange(b"POST / HTTP/1.1\r\n\r\n", b""))
        await asyncio.sleep(number % 5 / 1000)
        end_it(subject, exchange, ENDS[number % len(ENDS)])
        done, _ = await asyncio.wait({exchange}, timeout=10)
        assert done
        if not exchange.cancelled():
            exchange.exception()

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for begin in range(0, 300, 50):
            await asyncio.gather(*(one(port, number) for number in range(begin, begin + 50)))
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())
    assert told == []
