"""Opens connections for the HTTP client: name lookup, address policy; and TCP, TLS and proxy by aiohttp.

Every address is judged right before a socket is opened for it, so no spelling of a URL, DNS answer or
redirect gets around the policy.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

import aiohttp
from aiohttp import abc
from aiohttp.connector import Connection
from yarl import URL

from postrider.domain.errors import UsageError
from postrider.edges.addresses import AddressPolicy, AddressVerdict, explain_to_customer
from postrider.edges.resolving import Resolver
from postrider.edges.sources import SourceAddresses

_LOOKUP_SHARE = 0.8
"""How much of the time to connect a name lookup may take, so that its failure is told as such."""

_UNLIMITED = aiohttp.ClientTimeout(total=None)


class BlockedAddressError(OSError):
    """The policy forbids an address. An `OSError`, so that aiohttp treats it as a failed connection.

    Its text is for the endpoint's owner, and names no address.
    """

    def __init__(self, host: str, address: str, verdict: AddressVerdict) -> None:
        super().__init__(explain_to_customer(verdict))
        self.host = host
        self.address = address
        """What was forbidden; it may be just the port."""
        self.verdict = verdict


class Dialer:
    """Make it in a running event loop."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        tls: ssl.SSLContext,
        proxy: URL | None,
        connect_timeout: float,
        sources: SourceAddresses,
        name_servers: Sequence[str] = (),
    ) -> None:
        """`proxy` is exempt from `policy`, which judges each target. `connect_timeout` is in seconds;
        `name_servers` (address:port) stand in for the system's."""
        self._policy = policy
        self._proxy = proxy
        self._proxy_auth = None
        if proxy is not None and proxy.user is not None:
            self._proxy = proxy.with_user(None)
            self._proxy_auth = aiohttp.BasicAuth(proxy.user, proxy.password or "")
        self._timeout = connect_timeout
        self._sources = sources
        self._names = Resolver(timeout=connect_timeout * _LOOKUP_SHARE, servers=name_servers)
        self._targets = _ConnectorNames(self._names, policy)
        self._connector = aiohttp.TCPConnector(
            limit=0,
            ssl=tls,
            use_dns_cache=False,
            # Behind a proxy the connector only ever looks up and connects to the proxy.
            resolver=_ConnectorNames(self._names, None) if proxy else self._targets,
            socket_factory=self._open_socket,
        )

    async def connect(self, target: URL) -> Connection:
        """Open a new connection to the host of `target`; its owner has to close it.

        Raises BlockedAddressError, other OSErrors and aiohttp.ClientError.
        """
        _admit_port(self._policy, target)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await self._connect(target)
                except aiohttp.ClientConnectorDNSError:
                    raise
                except aiohttp.ClientConnectorError:
                    # The host may have moved since its name was looked up.
                    host = (self._proxy or target).raw_host or ""
                    if not await self._names.is_outdated(host, started):
                        raise
                    return await self._connect(target)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error

    async def _connect(self, target: URL) -> Connection:
        request = aiohttp.ClientRequest(
            "POST",
            target,
            loop=asyncio.get_running_loop(),
            proxy=self._proxy,
            proxy_auth=self._proxy_auth,
        )
        return await self._connector.connect(request, [], _UNLIMITED)

    async def judge(self, target: URL) -> None:
        """Raise for a target that the proxy must not be asked for."""
        if self._proxy is not None:
            _admit_port(self._policy, target)
            await self._targets.resolve(target.raw_host or "", target.port or 0)

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
        self._names.close()

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if self._proxy is None:
            _admit(self._policy, str(address[0]), str(address[0]))
        return self._sources.open(family, kind, protocol)


class _ConnectorNames(abc.AbstractResolver):
    """Answers aiohttp's connector; with a policy it refuses a name of which any address is forbidden."""

    def __init__(self, names: Resolver, policy: AddressPolicy | None) -> None:
        self._names = names
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[abc.ResolveResult]:
        addresses = await self._names.look_up(host)
        if self._policy is not None:
            for address in addresses:
                _admit(self._policy, host, address)
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": _family_of(address),
                "proto": socket.IPPROTO_TCP,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in addresses
        ]

    async def close(self) -> None:
        """The dialer closes the resolver."""


def _family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if isinstance(ip_address(address), IPv6Address) else socket.AF_INET


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


def _admit(policy: AddressPolicy, host: str, address: str) -> None:
    verdict = policy.verdict(address)
    if verdict is not AddressVerdict.ALLOWED:
        raise BlockedAddressError(host, address, verdict)


def _admit_port(policy: AddressPolicy, target: URL) -> None:
    port = target.port or 0
    verdict = policy.port_verdict(port)
    if verdict is not AddressVerdict.ALLOWED:
        raise BlockedAddressError(target.raw_host or "", str(port), verdict)
