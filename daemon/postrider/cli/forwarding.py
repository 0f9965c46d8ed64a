"""What `postrider listen` receives, handed on to an application that is being developed."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from postrider.domain.errors import UsageError

TIMEOUT_S = 60.0
"""Longer than any delivery waits: whoever stops in a debugger sees the daemon's time-out, not this one."""
_OF_ONE_CONNECTION = frozenset({
    "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application said; `problem` is why it said nothing."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    problem: str | None = None


Forward = Callable[[web.Request, bytes], Awaitable[Answer]]


def check_forward_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"--forward-to {url!r} is not a URL", "Write it whole, as in http://localhost:3000/hooks."
        )


@asynccontextmanager
async def forwarding(url: str) -> AsyncIterator[Forward]:
    """Hand requests on to `url` as they came, signature and all."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), auto_decompress=False
    ) as session:

        async def forward(request: web.Request, body: bytes) -> Answer:
            headers = [
                (name, value)
                for name, value in request.headers.items()
                if name.lower() not in _OF_ONE_CONNECTION
            ]
            try:
                async with session.request(
                    request.method,
                    url,
                    data=body,
                    headers=headers,
                    skip_auto_headers=["user-agent", "accept-encoding", "content-type"],
                    allow_redirects=False,
                ) as reply:
                    return Answer(reply.status, await reply.read(), reply.headers.get("content-type"))
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                return Answer(502, problem=f"not forwarded: {error or type(error).__name__}")

        yield forward
