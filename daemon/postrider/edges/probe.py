"""Looks at an endpoint's address as a delivery would, without sending one: name, policy, TLS."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

from postrider.domain.errors import UsageError
from postrider.edges.addresses import AddressPolicy, AddressVerdict, explain, parse_url

EXPIRES_SOON_DAYS = 14


@dataclass(frozen=True, slots=True)
class Probe:
    level: str
    """ok, warn or fail."""
    message: str


async def probe(  # noqa: PLR0911 (one return for each way to fail)
    url: str, policy: AddressPolicy, *, https_only: bool, tls: ssl.SSLContext, timeout: float
) -> Probe:
    """Look the host up, judge its addresses, and shake hands where the URL is https."""
    try:
        target = parse_url(url, https_only)
    except UsageError as error:
        return Probe("fail", error.message)
    host, port = target.raw_host or "", target.port or 443
    try:
        async with asyncio.timeout(timeout):
            loop = asyncio.get_running_loop()
            answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for *_, address in answers:
                verdict = policy.verdict(str(address[0]))
                if verdict is not AddressVerdict.ALLOWED:
                    return Probe("fail", explain(str(address[0]), verdict))
            context = tls if target.scheme == "https" else None
            _, writer = await asyncio.open_connection(
                str(answers[0][4][0]), port, ssl=context, server_hostname=host if context else None
            )
            certificate = writer.get_extra_info("peercert") or {}
            writer.close()
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
    if not certificate:
        return Probe("ok", "reachable, without TLS")
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (expires - datetime.now(UTC)).days
    level = "warn" if days < EXPIRES_SOON_DAYS else "ok"
    return Probe(level, f"reachable; its certificate is valid for {days} more days")
