"""The guarded HTTP client of the deliveries: one POST in, one `AttemptResult` out.

Foreign exceptions end here: callers see an `ErrorKind` and a sentence.
"""

import asyncio
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

from postrider.domain.errors import UsageError
from postrider.domain.model import AttemptResult, ErrorKind, Failure, Reply
from postrider.edges.addresses import AddressPolicy, InsecureUrlError, parse_url
from postrider.edges.dialing import BlockedAddressError, Dialer, proxy_url, tls_context
from postrider.edges.http1 import (
    Answer,
    ConnectionEnded,
    ExchangeError,
    HttpConnection,
    UnusableAnswer,
    request_bytes,
)  # fmt: skip

_MAX_HEADER_CHARACTERS = 4096
_KEEP_IDLE_S = 15.0
_IDLE_TICK_S = 1.0
_TICK_S = 0.05
"""How precise a timeout is: one look at all requests under way costs less than a timer for each."""
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
    name_servers: tuple[str, ...] = ()
    """Name servers (address:port) instead of the system's."""


class _Target:
    """Where a URL leads: what every request to it begins with, and the idle connections to its host."""

    __slots__ = ("idle", "start", "url")

    def __init__(self, url: URL, start: bytes, idle: list[HttpConnection]) -> None:
        self.url = url
        self.start = start
        self.idle = idle


class WebhookClient:
    """Sends webhooks over kept-alive connections. Use as an async context manager."""

    def __init__(
        self, options: NetworkOptions, on_blocked: Callable[[BlockedAddressError], None] | None = None
    ) -> None:
        """`on_blocked` hears of each attempt that the policy stopped. Raises `UsageError` for a `ca_file`
        or `proxy` that can't be used."""
        self._options = options
        self._on_blocked = on_blocked
        self._tls = tls_context(options.ca_file)
        self._proxy = proxy_url(options.proxy)
        self._idle: dict[tuple[str, str | None, int | None], list[HttpConnection]] = {}
        self._busy: set[HttpConnection] = set()
        self._target = lru_cache(maxsize=16_384)(self._find_target)
        self._tick: asyncio.TimerHandle | None = None
        self._ticking = False
        """Whether the next tick is a request's."""
        self._idle_tick_at = 0.0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._dialer = Dialer(
            self._options.policy,
            tls=self._tls,
            proxy=self._proxy,
            connect_timeout=self._options.connect_timeout,
            name_servers=self._options.name_servers,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._tick is not None:
            self._tick.cancel()
        for connection in [*self._busy, *(each for idle in self._idle.values() for each in idle)]:
            connection.abort()
        await self._dialer.close()

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        https_only: bool,
        timeout: float | None = None,
    ) -> AttemptResult:
        """Send one request with exactly these headers, plus Host and Content-Length.

        `timeout` replaces that of the options, in seconds.
        Raises nothing but `CancelledError`: whatever goes wrong is a `Failure`.
        """
        started = time.monotonic()
        timeout = timeout or self._options.timeout
        fresh: HttpConnection | None = None
        try:
            target = self._target(url, https_only)
            request = request_bytes(target.start, headers, body)
            if self._proxy is not None:
                async with asyncio.timeout(timeout):
                    await self._dialer.judge(target.url)
            answer: Answer | None = None
            if (kept := _pop_open(target.idle)) is not None:
                try:
                    answer = await self._exchange(kept, target, request, started + timeout)
                except ConnectionEnded as ended:
                    if ended.begun:
                        raise
            if answer is None:
                fresh = await self._connect(target, started, timeout)
                answer = await self._exchange(fresh, target, request, started + timeout)
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
            kind, reason = self._explain(error, timeout)
            connect_ms = fresh.connect_ms if fresh is not None else None
            return Failure(kind, reason, _milliseconds_since(started), connect_ms)

    def _find_target(self, url: str, https_only: bool) -> _Target:
        parsed = parse_url(url, https_only)
        origin = parsed.scheme, parsed.raw_host, parsed.port
        return _Target(parsed, self._dialer.request_start(parsed), self._idle.setdefault(origin, []))

    async def _connect(self, target: _Target, started: float, timeout: float) -> HttpConnection:
        began = time.monotonic()
        async with asyncio.timeout(started + timeout - began):
            opened = await self._dialer.connect(target.url)
        transport = opened.transport
        if transport is None or (opened.protocol is not None and opened.protocol.should_close):
            opened.close()  # it was closed, or spoke before it was asked
            raise ConnectionEnded(begun=False)
        connection = HttpConnection(transport, opened.close, max_body_bytes=self._options.max_response_bytes)
        connection.connect_ms = _milliseconds_since(began)
        return connection

    async def _exchange(
        self, connection: HttpConnection, target: _Target, request: bytes, deadline: float
    ) -> Answer:
        connection.deadline = deadline
        self._busy.add(connection)
        if not self._ticking:
            self._tick_in(_TICK_S)
            self._ticking = True
        try:
            answer = await connection.exchange(request)
        finally:
            self._busy.discard(connection)
        if not connection.closed:
            connection.idle_since = time.monotonic()
            target.idle.append(connection)
        return answer

    def _look_at_the_clock(self) -> None:
        """End the requests that take too long, and close the connections that nobody used for long."""
        now = time.monotonic()
        for connection in [each for each in self._busy if each.deadline <= now]:
            connection.expire()
        if now >= self._idle_tick_at:
            self._idle_tick_at = now + _IDLE_TICK_S
            for idle in self._idle.values():
                # The connection used last is taken first, so the oldest stand in front.
                while idle and (idle[0].closed or idle[0].idle_since < now - _KEEP_IDLE_S):
                    idle.pop(0).abort()
        self._ticking = bool(self._busy)
        if self._ticking:
            self._tick_in(_TICK_S)
        elif any(self._idle.values()):
            self._tick_in(_IDLE_TICK_S)

    def _tick_in(self, seconds: float) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(seconds, self._look_at_the_clock)

    # One line for each foreign exception reads better than any split of them.
    def _explain(self, error: Exception, timeout: float) -> tuple[ErrorKind, str]:  # noqa: PLR0911, PLR0912
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
                return ErrorKind.TIMEOUT, f"no connection within {self._options.connect_timeout:g} s"
            case TimeoutError():
                return ErrorKind.TIMEOUT, f"no complete answer within {timeout:g} s"
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
                return ErrorKind.PROTOCOL, "the connection ended in the middle of the answer"
            case ValueError():
                return ErrorKind.PROTOCOL, "the URL or a header can't be sent over HTTP"
            case _ if isinstance(error, aiohttp.ClientConnectorError):
                return ErrorKind.CONNECT, f"the connection failed: {_system_message(cause)}"
            case _:
                return ErrorKind.PROTOCOL, "the connection ended before an answer"


def _pop_open(idle: list[HttpConnection]) -> HttpConnection | None:
    while idle:
        connection = idle.pop()
        if not connection.closed:
            return connection
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


def _text(data: bytes) -> str:
    # PostgreSQL's text can't hold NUL.
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")


def _system_message(error: Exception) -> str:
    errno = error.errno if isinstance(error, OSError) else None
    # Several addresses that failed for different reasons have no number in common.
    return os.strerror(errno) if errno else "none of its addresses could be reached"


def _milliseconds_since(started: float) -> float:
    return (time.monotonic() - started) * 1000
