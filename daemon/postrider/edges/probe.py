"""Looks at an endpoint's address as a delivery would, without sending one: name, policy, TLS."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from postrider.domain.errors import UsageError
from postrider.edges.addresses import AddressPolicy, AddressVerdict, check_url, explain, parse_url
from postrider.edges.resolving import Resolver
from postrider.edges.sources import SourceAddresses

EXPIRES_SOON_DAYS = 14


@dataclass(frozen=True, slots=True)
class Probe:
    level: str
    """ok, warn or fail."""
    message: str
    source: str | None = None
    """The address that the connection left from."""


async def probe(  # noqa: PLR0911 (one return for each way to fail)
    url: str,
    policy: AddressPolicy,
    *,
    https_only: bool,
    tls: ssl.SSLContext,
    sources: SourceAddresses,
    timeout: float,
) -> Probe:
    """Look the host up, judge its addresses and port, and shake hands where the URL is https."""
    try:
        check_url(url, https_only, policy)
        target = parse_url(url, https_only)
    except UsageError as error:
        return Probe("fail", f"{error.message}. {error.hint}")
    host, port = target.raw_host or "", target.port or 443
    resolver = Resolver(timeout=timeout)
    try:
        async with asyncio.timeout(timeout * 2):
            addresses = await resolver.look_up(host)
            for address in addresses:
                verdict = policy.verdict(address)
                if verdict is not AddressVerdict.ALLOWED:
                    return Probe("fail", explain(address, verdict))
            context = tls if target.scheme == "https" else None
            source, certificate = await _shake_hands(addresses, port, context, host, sources)
    except TimeoutError:
        return Probe("fail", f"no connection within {timeout:g} s")
    except socket.gaierror as error:
        return Probe("fail", f"the name lookup failed: {error.strerror}")
    except ssl.SSLError as error:
        return Probe(
            "fail", f"the TLS handshake failed: {getattr(error, 'verify_message', None) or error.reason}"
        )
    except OSError as error:
        return Probe("fail", f"no connection: {error.strerror or error}")
    finally:
        resolver.close()
    if not certificate:
        return Probe("ok", "reachable, without TLS", source)
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (expires - datetime.now(UTC)).days
    level = "warn" if days < EXPIRES_SOON_DAYS else "ok"
    return Probe(level, f"reachable; its certificate is valid for {days} more days", source)


async def _shake_hands(
    addresses: Sequence[str], port: int, context: ssl.SSLContext | None, host: str, sources: SourceAddresses
) -> tuple[str, dict[str, object]]:
    """Connect to the first address that answers; return the address that this left from, and the certificate,
    which is empty without TLS."""
    for address in addresses:
        try:
            writer = await _connect(address, port, context, host, sources)
        except OSError:
            if address == addresses[-1]:
                raise
            continue
        source = str(writer.get_extra_info("sockname")[0])
        certificate = writer.get_extra_info("peercert") or {}
        writer.close()
        return source, dict(certificate)
    raise AssertionError("a name has an address, or its lookup fails")


async def _connect(
    address: str, port: int, context: ssl.SSLContext | None, host: str, sources: SourceAddresses
) -> asyncio.StreamWriter:
    opened = sources.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
    opened.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(opened, (address, port))
        _, writer = await asyncio.open_connection(
            sock=opened, ssl=context, server_hostname=host if context else None
        )
    except BaseException:
        opened.close()
        raise
    return writer
