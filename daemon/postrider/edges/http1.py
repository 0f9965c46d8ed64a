"""HTTP/1.1 over one connection: a request out, its answer in, then the next (RFC 9112).

aiohttp opens the connections; what it does above them costs more than the rest of a delivery, and a webhook
needs none of it. llhttp (by way of httptools) parses, as it does for aiohttp.
"""

import asyncio
from collections.abc import Callable, Mapping

import httptools

_MAX_HEADERS = 128
_MAX_HEAD_BYTES = 32_768


class ExchangeError(Exception):
    """There is no answer."""


class UnusableAnswer(ExchangeError):
    """What came is not HTTP, or too much of it."""


class ConnectionEnded(ExchangeError):
    """The other side closed the connection before its answer was complete."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun
        """Whether some of the answer had come."""


class Answer:
    """What a receiver answered, as far as it was read."""

    __slots__ = ("body", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""


class HttpConnection(asyncio.Protocol):
    """A kept-alive connection. Not reusable once `closed`."""

    __slots__ = (
        "_answer", "_begun", "_bytes_without_body", "_close", "_head_bytes", "_head_done", "_interim",
        "_max_body_bytes", "_parser", "_problem", "_transport", "_until_closed", "_waiter", "closed",
        "connect_ms", "deadline", "idle_since",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], *, max_body_bytes: int
    ) -> None:
        """Take over an open transport; `close` ends it and lets go of it."""
        self._transport = transport
        self._close = close
        self._max_body_bytes = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self.closed = False
        self.deadline = 0.0
        """For whoever watches over the exchange under way, on the clock of its own."""
        self.idle_since = 0.0
        self.connect_ms: float | None = None
        self._prepare()
        transport.set_protocol(self)

    def _prepare(self) -> None:
        self._answer = Answer()
        self._problem = ""
        self._head_bytes = 0
        self._bytes_without_body = 0
        self._begun = self._head_done = self._interim = self._until_closed = False

    async def exchange(self, request: bytes) -> Answer:
        """Send a whole request; return its answer, the body cut at `max_body_bytes`.

        Raises UnusableAnswer, ConnectionEnded, TimeoutError after `expire()`; then, or when cancelled, the
        connection is closed.
        """
        if self.closed:
            raise ConnectionEnded(begun=False)
        self._prepare()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise

    def expire(self) -> None:
        """End the exchange under way for taking too long."""
        self._fail(TimeoutError())

    def abort(self) -> None:
        """Close the connection at once; an exchange under way ends."""
        waiter, self._waiter = self._waiter, None
        if not self.closed:
            self.closed = True
            self._transport.abort()
            self._close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(ConnectionEnded(begun=True))

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.abort()  # nobody asked
            return
        self._begun = True
        self._bytes_without_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._finish(keep=False)
        except httptools.HttpParserError as error:
            self._problem = self._problem or str(error).partition("\n")[0]
        if self._bytes_without_body > _MAX_HEAD_BYTES:
            self._problem = self._problem or "its headers are too long"
        if not self._problem:
            return
        if self._waiter is not None:
            self._fail(UnusableAnswer(self._problem))
        else:
            self.abort()  # something follows the answer

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None:
            if exc is None and self._head_done and self._until_closed:
                self._finish(keep=False)
            else:
                self._fail(ConnectionEnded(begun=self._begun))
        self.abort()

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._waiter is None:
            self._problem = "more came than was asked for"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._waiter is None:
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD_BYTES or len(self._answer.headers) >= _MAX_HEADERS:
            self._problem = "it has too many headers"
        elif not self._head_done:  # not a trailer
            self._answer.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._waiter is None:
            return
        self._answer.status = status = self._parser.get_status_code()
        self._interim = 100 <= status < 200 and status != 101
        self._head_done = not self._interim
        names = {name.lower() for name, _ in self._answer.headers}
        self._until_closed = names.isdisjoint((b"content-length", b"transfer-encoding"))

    def on_body(self, body: bytes) -> None:
        if self._waiter is None:
            return
        self._bytes_without_body = 0
        answer = self._answer
        room = self._max_body_bytes - len(answer.body)
        answer.body += body[:room]
        if len(body) > room:
            self._finish(keep=False)  # cheaper than draining what may be endless

    def on_message_complete(self) -> None:
        if self._waiter is None:
            return
        if self._interim:
            self._answer.headers.clear()
        else:
            self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, *, keep: bool) -> None:
        waiter, self._waiter = self._waiter, None
        # A request that is not out yet would go on under the next one's answer.
        if not keep or self._transport.get_write_buffer_size():
            self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_result(self._answer)

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


def request_bytes(start: bytes, headers: Mapping[str, str], body: bytes) -> bytes:
    """A request from its first lines, its other headers and its body.

    Raises ValueError for a header that HTTP can't carry.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header holds a line break or NUL")
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (start, lines.encode(), len(body), body)
