"""The guarded HTTP client of the deliveries: one POST in, one `AttemptResult` out.

Foreign exceptions end here: callers see an `ErrorKind` and a sentence.
"""

import asyncio
import errno
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import aiohttp
from yarl import URL

from postrider.domain.errors import HostExhausted, UsageError
from postrider.domain.model import AttemptResult, ErrorKind, Failure, Reply
from postrider.edges.addresses import AddressPolicy, InsecureUrlError, parse_url
from postrider.edges.dialing import BlockedAddressError, Dialer, proxy_url, tls_context
from postrider.edges.http1 import (
    Answer,
    ConnectionEnded,
    ExchangeError,
    HttpConnection,
    Unasked,
    UnsendableHeaders,
    UnusableAnswer,
    request_head,
)
from postrider.edges.idle import IdleConnections, Owner, connection_budget
from postrider.edges.sources import NoSourceAddress, SourceAddresses

_MAX_HEADER_CHARACTERS = 4096
_KEEP_IDLE_S = 15.0
_IDLE_TICK_S = 1.0
_TICK_S = 0.05
"""How precise a timeout is: one look at all requests under way costs less than a timer for each."""
_LET_GO_S = 0.01
"""The event loop closes the descriptor of an aborted connection on one of its next turns."""
_SHORTAGES = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL,
})  # fmt: skip
_SECRET_HEADER = re.compile(rb"cookie|authorization|authentication-info|token|secret|api-?key", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    policy: AddressPolicy
    timeout: float
    """Seconds for a whole attempt, from the name lookup to the last byte of the answer."""
    connect_timeout: float
    """Seconds of it for lookup, connection and TLS handshake."""
    max_response_bytes: int
    """Bytes of an answer's body that are read and kept."""
    proxy: str | None = None
    """`http(s)://[user:password@]host:port`, exempt from `policy`, which still judges each target. The
    proxy looks the target's name up again, so it has to forbid what it must not reach."""
    ca_file: str | None = None
    """PEM certificates trusted besides the system's."""
    source_addresses: tuple[str, ...] = ()
    """Addresses of this host that connections leave from; without any the system chooses."""
    name_servers: tuple[str, ...] = ()
    """Name servers (address:port) instead of the system's."""


class _Target:
    """Where a URL leads, and what every request to it begins with."""

    __slots__ = ("origin", "start", "url")

    def __init__(self, url: URL, start: bytes) -> None:
        self.url = url
        self.start = start
        self.origin = f"{url.scheme}://{url.raw_host}:{url.port}"


class WebhookClient:
    """Sends webhooks over kept-alive connections. Use as an async context manager."""

    def __init__(
        self, options: NetworkOptions, on_blocked: Callable[[BlockedAddressError], None] | None = None
    ) -> None:
        """`on_blocked` hears of each attempt that the policy stopped. Raises `UsageError` for a `ca_file`,
        a `proxy` or `source_addresses` that can't be used."""
        self._options = options
        self._on_blocked = on_blocked
        self._tls = tls_context(options.ca_file)
        self._proxy = proxy_url(options.proxy)
        self._sources = SourceAddresses(options.source_addresses)
        self._dialers: dict[float, Dialer] = {}
        """By the time that a connection may take: a lookup is over in a part of it."""
        self._idle = IdleConnections()
        self._busy: set[HttpConnection] = set()
        self._connecting = 0
        self._budget = connection_budget()
        self._target = lru_cache(maxsize=16_384)(self._find_target)
        self._tick: asyncio.TimerHandle | None = None
        self._ticking = False
        """Whether the next tick is a request's."""
        self._idle_tick_at = 0.0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._dialer = self._dialer_for(self._options.connect_timeout)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._tick is not None:
            self._tick.cancel()
        for connection in [*self._busy]:
            connection.abort()
        self._idle.shrink_to(0)
        for dialer in self._dialers.values():
            await dialer.close()

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        endpoint_id: int,
        https_only: bool,
        timeout: float | None = None,
        connect_timeout: float | None = None,
    ) -> AttemptResult:
        """Send one request with exactly these headers, plus Host and Content-Length.

        It uses no connection that another endpoint has used. `timeout` and `connect_timeout` replace those
        of the options, in seconds. Whatever goes wrong is a `Failure`, but for what is no attempt:
        `CancelledError`, and `HostExhausted` where this host can't open a connection.
        """
        started = time.monotonic()
        timeout = timeout or self._options.timeout
        connect_timeout = connect_timeout or self._options.connect_timeout
        fresh: HttpConnection | None = None
        try:
            target = self._target(url, https_only)
            owner = endpoint_id, target.origin
            head = request_head(target.start, headers, len(body))
            if self._proxy is not None:
                async with asyncio.timeout(timeout):
                    await self._dialer_for(connect_timeout).judge(target.url)
            answer: Answer | None = None
            if (kept := self._idle.take(owner)) is not None:
                try:
                    answer = await self._exchange(kept, owner, head, body, started + timeout)
                except Unasked:
                    pass
                except ConnectionEnded as ended:
                    if ended.begun:
                        raise
            if answer is None:
                dialer = self._dialer_for(connect_timeout)
                fresh = await self._connect(dialer, target, started, timeout)
                answer = await self._exchange(fresh, owner, head, body, started + timeout)
            return Reply(
                status=answer.status,
                headers=_header_lines(answer.headers),
                body=_text(answer.body),
                retry_after=_retry_after(answer),
                connect_ms=fresh.connect_ms if fresh is not None else None,
                duration_ms=_milliseconds_since(started),
            )
        # RuntimeError: uvloop raises it where the socket was closed under it.
        except (ExchangeError, aiohttp.ClientError, OSError, ValueError, RuntimeError, UsageError) as error:
            if (shortage := _shortage(error, url)) is not None:
                raise HostExhausted(
                    f"this host can't open a connection: {os.strerror(shortage)}",
                    "Raise its limit (LimitNOFILE= of the unit, memory, local ports), or lower"
                    " delivery.concurrency; does it still have its network.source_addresses?",
                ) from error
            kind, reason = self._explain(error, timeout, connect_timeout)
            connect_ms = fresh.connect_ms if fresh is not None else None
            return Failure(kind, reason, _milliseconds_since(started), connect_ms)

    def _find_target(self, url: str, https_only: bool) -> _Target:
        parsed = parse_url(url, https_only)
        return _Target(parsed, self._dialer.request_start(parsed))

    def _dialer_for(self, connect_timeout: float) -> Dialer:
        dialer = self._dialers.get(connect_timeout)
        if dialer is None:
            dialer = self._dialers[connect_timeout] = Dialer(
                self._options.policy,
                tls=self._tls,
                proxy=self._proxy,
                connect_timeout=connect_timeout,
                sources=self._sources,
                name_servers=self._options.name_servers,
            )
        return dialer

    async def _connect(
        self, dialer: Dialer, target: _Target, started: float, timeout: float
    ) -> HttpConnection:
        """Open a connection, if need be in place of idle ones: only here does their number grow."""
        self._idle.shrink_to(self._budget - len(self._busy) - self._connecting - 1)
        self._connecting += 1
        try:
            return await self._open(dialer, target, started, timeout)
        except (aiohttp.ClientError, OSError) as error:
            # A port that we let go of stays taken for a minute.
            if _shortage(error, str(target.url)) in (None, errno.EADDRNOTAVAIL):
                raise
            self._idle.shrink_to(0)
            await asyncio.sleep(_LET_GO_S)
            return await self._open(dialer, target, started, timeout)
        finally:
            self._connecting -= 1

    async def _open(self, dialer: Dialer, target: _Target, started: float, timeout: float) -> HttpConnection:
        began = time.monotonic()
        async with asyncio.timeout(started + timeout - began):
            opened = await dialer.connect(target.url)
        transport = opened.transport
        if transport is None or (opened.protocol is not None and opened.protocol.should_close):
            opened.close()
            raise Unasked
        connection = HttpConnection(transport, opened.close, max_body_bytes=self._options.max_response_bytes)
        connection.connect_ms = _milliseconds_since(began)
        return connection

    async def _exchange(
        self, connection: HttpConnection, owner: Owner, head: bytes, body: bytes, deadline: float
    ) -> Answer:
        connection.deadline = deadline
        self._busy.add(connection)
        if not self._ticking:
            self._tick_in(_TICK_S)
            self._ticking = True
        try:
            answer = await connection.exchange(head, body)
        finally:
            self._busy.discard(connection)
        if not connection.closed:
            self._idle.put(owner, connection, time.monotonic())
        return answer

    def _look_at_the_clock(self) -> None:
        """End the requests that take too long, and close the connections that nobody used for long."""
        now = time.monotonic()
        for connection in [each for each in self._busy if each.deadline <= now]:
            connection.expire()
        if now >= self._idle_tick_at:
            self._idle_tick_at = now + _IDLE_TICK_S
            self._idle.close_older_than(now - _KEEP_IDLE_S)
        self._ticking = bool(self._busy)
        if self._ticking:
            self._tick_in(_TICK_S)
        elif len(self._idle):
            self._tick_in(_IDLE_TICK_S)

    def _tick_in(self, seconds: float) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(seconds, self._look_at_the_clock)

    # One line for each foreign exception reads better than any split of them.
    def _explain(  # noqa: PLR0911, PLR0912
        self, error: Exception, timeout: float, connect_timeout: float
    ) -> tuple[ErrorKind, str]:
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        match cause:
            case BlockedAddressError():
                if self._on_blocked is not None:
                    self._on_blocked(cause)
                return ErrorKind.BLOCKED, str(cause)
            case InsecureUrlError():
                return ErrorKind.BLOCKED, cause.message
            case UsageError():
                return ErrorKind.PROTOCOL, cause.message
            case aiohttp.ConnectionTimeoutError():
                return ErrorKind.TIMEOUT, f"no connection within {connect_timeout:g} s"
            case TimeoutError():
                return ErrorKind.TIMEOUT, f"no complete answer within {timeout:g} s"
            case NoSourceAddress():
                return ErrorKind.CONNECT, f"the connection failed: {cause}"
            case socket.gaierror():
                return ErrorKind.DNS, f"the name lookup failed: {cause.strerror}"
            case ssl.SSLCertVerificationError():
                return ErrorKind.TLS, f"the certificate is not trusted: {cause.verify_message}"
            case ssl.SSLError():
                return ErrorKind.TLS, f"the TLS handshake failed: {cause.reason or 'no reason given'}"
            case ConnectionError() if cause is not error and cause.errno is None:
                # The system names every failure to connect; this one is the event loop's own.
                return ErrorKind.TLS, "the TLS handshake failed: the other side closed the connection"
            case aiohttp.ClientHttpProxyError():
                return ErrorKind.CONNECT, f"the proxy refused the connection with status {cause.status}"
            case UnusableAnswer():
                return ErrorKind.PROTOCOL, f"the answer is not usable HTTP: {str(cause)[:200]}"
            case ConnectionEnded(begun=True):
                return ErrorKind.PROTOCOL, "the connection ended in the middle of the answer's head"
            case Unasked():
                return ErrorKind.PROTOCOL, "it sent something, or hung up, before the request was out"
            case UnsendableHeaders():
                return ErrorKind.PROTOCOL, str(cause)
            case ValueError():
                return ErrorKind.PROTOCOL, "the URL or a header can't be sent over HTTP"
            case _ if isinstance(error, aiohttp.ClientConnectorError):
                return ErrorKind.CONNECT, f"the connection failed: {_system_message(cause)}"
            case _:
                return ErrorKind.PROTOCOL, "the connection ended before an answer"


def _shortage(error: Exception, url: str) -> int | None:
    """The system's number for what this host has used up, where that is why a connection failed."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(cause, socket.gaierror):
        number = _lack_of_descriptors()  # a resolver takes that for a name server's failure
    elif number == errno.EADDRNOTAVAIL and "[" in url:
        return None  # perhaps this host has no IPv6 at all, and no port would help
    return number if number in _SHORTAGES else None


def _lack_of_descriptors() -> int | None:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno
    return None


def _header_lines(headers: list[tuple[bytes, bytes]]) -> str:
    lines = b"\n".join([
        name + (b": (hidden)" if _is_secret(name) else b": " + value) for name, value in headers
    ])  # fmt: skip
    return _text(lines)[:_MAX_HEADER_CHARACTERS]


@lru_cache(maxsize=1024)
def _is_secret(name: bytes) -> bool:
    return _SECRET_HEADER.search(name) is not None


def _retry_after(answer: Answer) -> str | None:
    if answer.status < 300:
        return None
    for name, value in answer.headers:
        if name.lower() == b"retry-after":
            return value.decode("latin-1")
    return None


def _text(data: bytes | bytearray) -> str:
    # PostgreSQL's text can't hold NUL.
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")


def _system_message(error: Exception) -> str:
    errno = error.errno if isinstance(error, OSError) else None
    # Several addresses that failed for different reasons have no number in common.
    return os.strerror(errno) if errno else "none of its addresses could be reached"


def _milliseconds_since(started: float) -> float:
    return (time.monotonic() - started) * 1000
