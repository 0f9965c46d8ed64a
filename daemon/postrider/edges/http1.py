"""HTTP/1.1 over one connection: a request out, its answer in, then the next (RFC 9112).

aiohttp opens the connections; what it does above them costs more than the rest of a delivery, and a webhook
needs none of it. llhttp (by way of httptools) parses, as it does for aiohttp.

A receiver is a stranger: what it can make this process read, parse or keep is bounded for each exchange, and
a complete head is its answer, however its body is broken.
"""

import asyncio
import re
import select
from collections.abc import Callable, Mapping

import httptools

MAX_REQUEST_HEADER_BYTES = 16_384
"""What receivers commonly take at most: 8 KiB (Apache, nginx) to 16 KiB (Node.js)."""
_MAX_HEADERS = 128
_MAX_OVERHEAD_BYTES = 32_768
"""Of an answer, all that is not body: heads, interim answers, chunk sizes and extensions, trailers."""
_MAX_STEPS = 1024
"""Reads and calls of the parser that an answer may take, and as many more as its body may have KiB: each
costs microseconds, whether it brings 1 byte or 256 KiB."""
_ONE_WRITE_BYTES = 65_536
"""A larger body is not copied to stand behind its head; TLS, which copies what it encrypts, gets so much of
it at a time."""
_EXTENT = re.compile("content-length|transfer-encoding", re.IGNORECASE)


class ExchangeError(Exception):
    """There is no answer."""


class UnusableAnswer(ExchangeError):
    """What came is not HTTP, or too much of it."""


class Unasked(ExchangeError):
    """Something came, or the connection ended, before the request was out: no answer to it."""


class ConnectionEnded(ExchangeError):
    """The other side closed the connection before the head of its answer was complete."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun
        """Whether some of the answer had come."""


class UnsendableHeaders(ValueError):
    """The message says what is wrong with them, without their values."""


class Answer:
    """What a receiver answered, as far as it was read."""

    __slots__ = ("body", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()


class _StopParsing(Exception):
    """Raised out of a callback of the parser, which otherwise goes on to the end of what was read."""


class HttpConnection(asyncio.Protocol):
    """A kept-alive connection. Not reusable once `closed`."""

    __slots__ = (
        "_answer", "_close", "_early", "_head_bytes", "_head_done", "_headers", "_interim",
        "_max_body_bytes", "_max_steps", "_parser", "_paused", "_problem", "_readable", "_received", "_steps",
        "_tls", "_transport", "_unsent", "_used", "_waiter", "closed", "connect_ms", "deadline", "idle_since",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], *, max_body_bytes: int
    ) -> None:
        """Take over an open transport; `close` ends it and lets go of it."""
        self._transport = transport
        self._close = close
        self._max_body_bytes = max_body_bytes
        self._max_steps = _MAX_STEPS + max_body_bytes // 1024
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._used = self._paused = False
        self.closed = False
        self.deadline = 0.0
        """For whoever watches over the exchange under way, on the clock of its own."""
        self.idle_since = 0.0
        self.connect_ms: float | None = None
        self._tls = transport.get_extra_info("sslcontext") is not None
        readable = select.poll()
        if (sock := transport.get_extra_info("socket")) is not None:
            readable.register(sock.fileno(), select.POLLIN)
        self._readable = readable.poll
        # uvloop then writes at once, not at the end of the loop's turn: nothing comes between the look at
        # what is readable and the request. (With 0, TLS would pause although nothing waits.)
        transport.set_write_buffer_limits(high=1)
        self._prepare()
        transport.set_protocol(self)

    def _prepare(self) -> None:
        self._answer = Answer()
        self._problem = ""
        self._unsent = memoryview(b"")
        self._received = self._steps = self._headers = self._head_bytes = 0
        self._head_done = self._interim = self._early = False

    async def exchange(self, head: bytes, body: bytes) -> Answer:
        """Send a whole request; return its answer, the body cut at `max_body_bytes`.

        Raises Unasked, UnusableAnswer, ConnectionEnded, TimeoutError after `expire()`; then, or when
        cancelled, the connection is closed.
        """
        if self.closed or self._transport.is_closing():
            self.abort()
            raise ConnectionEnded(begun=False)
        # A fresh TLS connection has session tickets to read, which are no answer.
        if (self._used or not self._tls) and self._readable(0):
            self.abort()
            raise Unasked
        self._prepare()
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        if len(body) <= _ONE_WRITE_BYTES:
            self._transport.write(head + body)
        elif self._tls:
            self._unsent = memoryview(body)
            self._transport.write(head)
            self._send_on()
        else:
            self._transport.writelines((head, body))
        try:
            return await waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._used = True

    def _send_on(self) -> None:
        while self._unsent and not self._paused:
            piece, self._unsent = self._unsent[:_ONE_WRITE_BYTES], self._unsent[_ONE_WRITE_BYTES:]
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_on()

    def _is_out(self) -> bool:
        """Whether all of the request went to the kernel."""
        return not self._unsent and self._transport.get_write_buffer_size() == 0

    def expire(self) -> None:
        """End the exchange under way for taking too long."""
        self._end(TimeoutError())

    def abort(self) -> None:
        """Close the connection at once; an exchange under way ends."""
        self._end(ConnectionEnded(begun=True))

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.abort()  # nobody asked
            return
        if self._received == 0 and not self._is_out():
            if self._used:  # perhaps a second answer to the request before
                self._end(Unasked())
                return
            self._early = True
        self._received += len(data)
        self._steps += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._finish(keep=False)
        except httptools.HttpParserError as error:
            self._break_off(self._problem or str(error).partition("\n")[0])
        else:
            if self._received - len(self._answer.body) > _MAX_OVERHEAD_BYTES:
                self._break_off("its headers are too long")
            elif self._steps > self._max_steps:
                self._break_off("it comes in too many pieces")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionEnded(begun=self._received > 0))

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._waiter is None:
            raise _StopParsing  # more came than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_OVERHEAD_BYTES or self._headers > _MAX_HEADERS:
            self._stop("it has too many headers")
        if not self._head_done:  # not a trailer
            self._answer.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._answer.status = status = self._parser.get_status_code()
        self._interim = 100 <= status < 200 and status != 101
        if self._interim:
            self._take_step()
            return
        self._head_done = True
        self._early = self._early and not self._is_out()
        self._unsent = memoryview(b"")  # it has made up its mind without the rest

    def on_body(self, body: bytes) -> None:
        self._take_step()
        kept = self._answer.body
        room = self._max_body_bytes - len(kept)
        if len(body) > room:
            kept += body[:room]
            self._stop("")  # cheaper than draining what may be endless
        kept += body

    def on_message_complete(self) -> None:
        if self._interim:
            self._answer.headers.clear()
        else:
            self._finish(keep=self._parser.should_keep_alive() and not self._early)

    def _take_step(self) -> None:
        self._steps += 1
        if self._steps > self._max_steps:
            self._stop("it comes in too many pieces")

    def _stop(self, problem: str) -> None:
        self._problem = problem
        raise _StopParsing

    def _break_off(self, problem: str) -> None:
        """Read no more of this connection."""
        if not self._head_done and _EXTENT.search(problem):
            # It says what its answer is; only where it ends can't be made out.
            self._answer.status = self._parser.get_status_code()
            self._head_done = True
        self._end(UnusableAnswer(problem))

    def _end(self, error: Exception) -> None:
        """Close the connection: a complete head is an answer all the same, else there is none."""
        if self._waiter is not None and self._head_done:
            self._finish(keep=False)
            return
        waiter, self._waiter = self._waiter, None
        self._shut()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _finish(self, *, keep: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if not keep:
            self._shut()
        if waiter is not None and not waiter.done():
            waiter.set_result(self._answer)

    def _shut(self) -> None:
        if not self.closed:
            self.closed = True
            del self._parser  # it has methods of ours: a circle that only the garbage collector would end
            self._unsent = memoryview(b"")
            self._transport.abort()
            self._close()


def request_head(start: bytes, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """The head of a request from its first lines, its other headers and the length of its body.

    Raises UnsendableHeaders.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise UnsendableHeaders("a header holds a line break or NUL")
    encoded = lines.encode()
    if len(encoded) > MAX_REQUEST_HEADER_BYTES:
        raise UnsendableHeaders(
            f"the request's headers take {len(encoded):,} bytes, and {MAX_REQUEST_HEADER_BYTES:,} are the"
            " most: remove some of the endpoint's own"
        )
    return b"%b%bContent-Length: %d\r\n\r\n" % (start, encoded, body_bytes)
