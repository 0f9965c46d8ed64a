"""Bounds what connections to the admin server hold: how many there are, and how long each may wait to ask.

aiohttp waits for the end of a request's head without limit, and accepts whoever comes.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from postrider.edges.clock import Clock

LIMIT = 64
PATIENCE_S = 10.0
"""How long a connection may be without a complete request, its first or its next."""
_TICK_S = 1.0


class Connections:
    """Makes the protocols of an asyncio server, each around one of aiohttp's; who answers says so by `busy`.

    Where there are too many, the one that has waited longest without asking makes room, so that those who
    never ask can't keep out those who do.
    """

    def __init__(self, make_handler: Callable[[], asyncio.Protocol], clock: Clock) -> None:
        self._make_handler = make_handler
        self._clock = clock
        self._open: set[asyncio.Transport] = set()
        self._waiting: dict[asyncio.Transport, float] = {}
        """Since when each waits; the longest stands first."""
        self._watch: asyncio.Task[None] | None = None
        """While any is open."""

    def __repr__(self) -> str:
        return f"<Connections {len(self._open)} open, {len(self._waiting)} waiting>"

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self._make_handler(), self)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for transport in self._open:
            transport.abort()

    @contextmanager
    def busy(self, transport: asyncio.Transport | None) -> Iterator[None]:
        """While a complete request is answered, its connection does not wait."""
        if transport is not None:
            self._waiting.pop(transport, None)
        try:
            yield
        finally:
            if transport is not None and transport in self._open:
                self._waiting[transport] = self._clock.monotonic()

    def opened(self, transport: asyncio.Transport) -> None:
        if len(self._open) >= LIMIT:
            self._drop(next(iter(self._waiting), transport))
        if transport.is_closing():
            return
        self._open.add(transport)
        self._waiting[transport] = self._clock.monotonic()
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._keep_watching())

    def closed(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
        self._waiting.pop(transport, None)

    def _drop(self, transport: asyncio.Transport) -> None:
        transport.abort()
        self.closed(transport)

    async def _keep_watching(self) -> None:
        while self._open:
            await self._clock.sleep(_TICK_S)
            overdue = self._clock.monotonic() - PATIENCE_S
            for transport in [each for each, since in self._waiting.items() if since <= overdue]:
                self._drop(transport)
        self._watch = None


class _Connection(asyncio.Protocol):
    """Passes everything on to a handler of aiohttp, and tells when it begins and ends."""

    def __init__(self, handler: asyncio.Protocol, connections: Connections) -> None:
        self._handler = handler
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._handler.connection_made(transport)
        self._connections.opened(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.closed(self._transport)
        self._handler.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        try:
            self._handler.data_received(data)
        except ValueError:  # some releases of aiohttp let out what a target that is no URL raises
            self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()
