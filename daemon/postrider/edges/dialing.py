"""Opens connections for the HTTP client: name lookup, address policy, TCP, TLS and proxy, all by aiohttp.

Every address is judged right before a socket is opened for it, so no spelling of a URL, DNS answer or
redirect gets around the policy.
"""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from aiohttp import abc
from aiohttp.connector import Connection
from yarl import URL

from postrider.domain.errors import UsageError
from postrider.edges.addresses import AddressPolicy, AddressVerdict, explain

_LOOKUP_THREADS = 64  # a name whose server is silent holds one until getaddrinfo gives up


class BlockedAddressError(OSError):
    """The policy forbids an address. An `OSError`, so that aiohttp treats it as a failed connection."""

    def __init__(self, reason: str, verdict: AddressVerdict) -> None:
        super().__init__(reason)
        self.verdict = verdict


class Dialer:
    """Make it in a running event loop."""

    def __init__(
        self, policy: AddressPolicy, *, tls: ssl.SSLContext, proxy: URL | None, connect_timeout: float
    ) -> None:
        """`proxy` is exempt from `policy`, which judges each target. `connect_timeout` is in seconds."""
        self._policy = policy
        self._proxy = proxy
        self._proxy_auth = None
        if proxy is not None and proxy.user is not None:
            self._proxy = proxy.with_user(None)
            self._proxy_auth = aiohttp.BasicAuth(proxy.user, proxy.password or "")
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout)
        self._resolver = _StrictResolver(policy)
        self._connector = aiohttp.TCPConnector(
            limit=0,
            ssl=tls,
            # Behind a proxy the connector only ever looks up and connects to the proxy.
            resolver=None if proxy else self._resolver,
            socket_factory=self._open_socket,
        )

    async def connect(self, target: URL) -> Connection:
        """Open a new connection to the host of `target`; its owner has to close it.

        Raises BlockedAddressError, other OSErrors and aiohttp.ClientError.
        """
        request = aiohttp.ClientRequest(
            "POST",
            target,
            loop=asyncio.get_running_loop(),
            proxy=self._proxy,
            proxy_auth=self._proxy_auth,
        )
        try:
            return await self._connector.connect(request, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error

    async def judge(self, target: URL) -> None:
        """Raise for a target that the proxy must not be asked for."""
        if self._proxy is not None:
            await self._resolver.resolve(target.raw_host or "", target.port or 0)

    def request_start(self, target: URL) -> bytes:
        """The first lines of a request: what it asks for, of which host, and the proxy's permit."""
        path = target.raw_path_qs
        permit = ""
        if self._proxy is not None and target.scheme == "http":
            path = str(target)
            permit = f"Proxy-Authorization: {self._proxy_auth.encode()}\r\n" if self._proxy_auth else ""
        return f"POST {path} HTTP/1.1\r\nHost: {target.host_port_subcomponent}\r\n{permit}".encode("ascii")

    async def close(self) -> None:
        await self._connector.close()
        await self._resolver.close()

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if self._proxy is None:
            _admit(self._policy, str(address[0]))
        return socket.socket(family, kind, protocol)


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


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Trusts the system's certificates and those of `ca_file`. Raises UsageError if it can't be used."""
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


def proxy_url(proxy: str | None) -> URL | None:
    """Raises UsageError where it is not one."""
    if proxy is None:
        return None
    try:
        url = URL(proxy)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise UsageError("network.proxy is not a usable URL", "Write it like http://proxy.example:3128.")
    return url


def _admit(policy: AddressPolicy, address: str, name: str = "") -> None:
    verdict = policy.verdict(address)
    if verdict is not AddressVerdict.ALLOWED:
        found = f"{name} resolves to a forbidden address: " if name and name != address else ""
        raise BlockedAddressError(found + explain(address, verdict), verdict)
