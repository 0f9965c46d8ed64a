"""The guarded HTTP client of the deliveries: one POST in, one `AttemptResult` out.

Every address is judged right before a socket is opened for it, so no spelling of a URL, DNS answer or
redirect gets around the policy. aiohttp's exceptions end here: callers see an `ErrorKind` and a sentence.
"""

import asyncio
import io
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import abc
from aiohttp.connector import Connection
from yarl import URL

from postrider.domain.errors import UsageError
from postrider.domain.model import AttemptResult, ErrorKind, Failure, Reply
from postrider.edges.addresses import AddressPolicy, AddressVerdict, InsecureUrlError, explain, parse_url

_MAX_HEADER_CHARACTERS = 4096
_READ_BUFFER_BYTES = 16_384  # what a flooding receiver can make us hold is twice this
_PLAIN_BODY_BYTES = 2**20  # aiohttp wants larger bodies as a file
_LOOKUP_THREADS = 64  # a name whose server is silent holds one until getaddrinfo gives up
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


class WebhookClient:
    """Sends webhooks over kept-alive connections. Use as an async context manager."""

    def __init__(
        self, options: NetworkOptions, on_blocked: Callable[[AddressVerdict], None] | None = None
    ) -> None:
        """`on_blocked` hears of each attempt that the policy stopped. Raises `UsageError` for a `ca_file`
        or `proxy` that can't be used."""
        self._options = options
        self._on_blocked = on_blocked
        self._tls = _tls_context(options.ca_file)
        self._proxy = _proxy_url(options.proxy)

    async def __aenter__(self) -> Self:
        self._resolver = _StrictResolver(self._options.policy)
        self._pooled = self._session(force_close=False)
        self._fresh = self._session(force_close=True)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._pooled.close()
        await self._fresh.close()
        await self._resolver.close()

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
        exchange = _Exchange()
        _current_exchange.set(exchange)
        try:
            target = parse_url(url, https_only)
            async with asyncio.timeout(timeout):
                if self._proxy is not None:
                    await self._resolver.resolve(target.raw_host or "", target.port or 0)
                async with await self._send(target, headers, body, exchange) as response:
                    excerpt = await self._read(response)
            return Reply(
                status=response.status,
                headers=_header_lines(response.raw_headers),
                body=excerpt,
                retry_after=response.headers.get("Retry-After"),
                connect_ms=exchange.connect_ms,
                duration_ms=_milliseconds_since(started),
            )
        # RuntimeError: uvloop raises it where the socket was closed under it.
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError, UsageError) as error:
            kind, reason = self._explain(error, timeout)
            return Failure(kind, reason, _milliseconds_since(started), exchange.connect_ms)

    def _session(self, *, force_close: bool) -> aiohttp.ClientSession:
        connector = _Connector(
            limit=0,
            force_close=force_close,
            ssl=self._tls,
            # Behind a proxy the connector only ever looks up and connects to the proxy.
            resolver=None if self._proxy else self._resolver,
            socket_factory=self._open_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            proxy=self._proxy,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            # The total runs around the whole attempt, a resend included; see `post`.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._options.connect_timeout),
            read_bufsize=_READ_BUFFER_BYTES,
        )

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        _current_exchange.get().socket_opened = True
        if self._proxy is None:
            _admit(self._options.policy, str(address[0]))
        return socket.socket(family, kind, protocol)

    async def _send(
        self, target: URL, headers: Mapping[str, str], body: bytes, exchange: "_Exchange"
    ) -> aiohttp.ClientResponse:
        """Send, and once more when a kept-alive connection turns out closed: aiohttp repeats no POST."""
        try:
            return await self._pooled.post(
                target, headers=headers, data=_payload(body), allow_redirects=False
            )
        except aiohttp.ClientConnectionError as error:
            if not exchange.reused or _answer_had_begun(error):
                raise
        return await self._fresh.post(target, headers=headers, data=_payload(body), allow_redirects=False)

    async def _read(self, response: aiohttp.ClientResponse) -> str:
        limit = self._options.max_response_bytes
        excerpt = bytearray()
        while len(excerpt) < limit and not response.content.at_eof():
            excerpt += await response.content.read(limit - len(excerpt))
        if not response.content.at_eof():
            response.close()  # cheaper than draining what may be endless
        return _text(excerpt)

    # One line for each foreign exception reads better than any split of them.
    def _explain(self, error: Exception, timeout: float) -> tuple[ErrorKind, str]:  # noqa: PLR0911, PLR0912
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        match cause:
            case BlockedAddressError():
                if self._on_blocked is not None:
                    self._on_blocked(cause.verdict)
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
            case aiohttp.ClientResponseError():
                return ErrorKind.PROTOCOL, f"the answer is not usable HTTP: {_first_line(cause.message)}"
            case aiohttp.ClientPayloadError():
                return ErrorKind.PROTOCOL, "the connection ended in the middle of the answer"
            case ValueError():
                return ErrorKind.PROTOCOL, "the URL or a header can't be sent over HTTP"
            case _ if isinstance(error, aiohttp.ClientConnectorError):
                return ErrorKind.CONNECT, f"the connection failed: {_system_message(cause)}"
            case _:
                return ErrorKind.PROTOCOL, "the connection ended before an answer"


class BlockedAddressError(OSError):
    """The policy forbids an address. An `OSError`, so that aiohttp treats it as a failed connection."""

    def __init__(self, reason: str, verdict: AddressVerdict) -> None:
        super().__init__(reason)
        self.verdict = verdict


class _Exchange:
    """What the connector learns about one request."""

    __slots__ = ("connect_ms", "reused", "socket_opened")

    def __init__(self) -> None:
        self.socket_opened = False
        self.reused = False
        self.connect_ms: float | None = None


# aiohttp hands nothing of ours down to connector and socket factory; a TraceConfig would, at 11 µs a
# request where this costs less than one.
_current_exchange: ContextVar[_Exchange] = ContextVar("exchange")


class _Connector(aiohttp.TCPConnector):
    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        exchange = _current_exchange.get()
        started = time.monotonic()
        connection = await super().connect(*args, **kwargs)
        exchange.reused = not exchange.socket_opened
        if exchange.socket_opened:
            exchange.connect_ms = _milliseconds_since(started)
        return connection


class _StrictResolver(abc.AbstractResolver):
    """Looks names up with the system's resolver; refuses a name of which any address is forbidden.

    It has threads of its own: the event loop's few (libuv: two) would let one dead name server hold up
    the lookups of all other endpoints.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[abc.ResolveResult]:
        answers = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG),
        )
        addresses = [str(answer[4][0]) for answer in answers]
        for address in addresses:
            _admit(self._policy, address, name=host)
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": answer[0],
                "proto": answer[2],
                "flags": socket.AI_NUMERICHOST,
            }
            for answer, address in zip(answers, addresses, strict=True)
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _admit(policy: AddressPolicy, address: str, name: str = "") -> None:
    verdict = policy.verdict(address)
    if verdict is not AddressVerdict.ALLOWED:
        found = f"{name} resolves to a forbidden address: " if name and name != address else ""
        raise BlockedAddressError(found + explain(address, verdict), verdict)


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise UsageError(
                f"network.ca_file: {ca_file}: {error.strerror or error}", "It should be a readable PEM file."
            ) from error
    return context


def _proxy_url(proxy: str | None) -> URL | None:
    if proxy is None:
        return None
    try:
        url = URL(proxy)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise UsageError("network.proxy is not a usable URL", "Write it like http://proxy.example:3128.")
    return url


def _payload(body: bytes) -> bytes | io.BytesIO:
    return body if len(body) <= _PLAIN_BODY_BYTES else io.BytesIO(body)


def _answer_had_begun(error: aiohttp.ClientConnectionError) -> bool:
    # aiohttp puts the message parsed so far in place of its text.
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


def _header_lines(raw_headers: tuple[tuple[bytes, bytes], ...]) -> str:
    lines = b"\n".join(
        name + (b": (hidden)" if _SECRET_HEADER.search(name) else b": " + value)
        for name, value in raw_headers
    )
    return _text(lines)[:_MAX_HEADER_CHARACTERS]


def _text(data: bytes | bytearray) -> str:
    # PostgreSQL's text can't hold NUL.
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")


def _first_line(message: str) -> str:
    return message.partition("\n")[0].rstrip(":")[:200]


def _system_message(error: Exception) -> str:
    errno = error.errno if isinstance(error, OSError) else None
    # Several addresses that failed for different reasons have no number in common.
    return os.strerror(errno) if errno else "none of its addresses could be reached"


def _milliseconds_since(started: float) -> float:
    return (time.monotonic() - started) * 1000
