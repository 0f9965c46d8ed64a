"""From PostgreSQL's notifications to the services that wait for them.

Holds one connection for LISTEN and for the lock that tells others this daemon lives. Every few seconds it
leaves a heartbeat there, which checks the connection, because a half-open socket is silent, and measures the
database's clock; after a loss it connects anew, listens again, and lets everyone look at the database once.
Behind a transaction pooler there is no session for a lock or LISTEN: then the services poll, and the
heartbeat alone tells that the daemon lives.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import asyncpg
import structlog

from postrider.edges.clock import SharedClock
from postrider.edges.metrics import Metrics
from postrider.engine.ledger import Ledger
from postrider.store.daemons import Daemons
from postrider.store.database import (
    Connection,
    Database,
    DatabaseError,
    DatabaseUnavailable,
    translated_errors,
)

HEARTBEAT_S = 5.0
RECONNECT_S = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Waits between tries to connect; the last one repeats."""

log = structlog.get_logger()


class Listener:
    def __init__(
        self,
        *,
        database: Database,
        daemons: Daemons,
        ledger: Ledger,
        channels: Mapping[str, Callable[[], None]],
        version: str,
        schema: int,
        pooled: bool,
        clock: SharedClock,
        metrics: Metrics,
        on_reconnected: Callable[[], None],
        on_identity_lost: Callable[[], None],
    ) -> None:
        """`channels` maps a notification channel to what it wakes. `version` and `schema` are those of the
        program."""
        self._database = database
        self._daemons = daemons
        self._ledger = ledger
        self._channels = channels
        self._version = version
        self._schema = schema
        self._pooled = pooled
        self._clock = clock
        self._metrics = metrics
        self._on_reconnected = on_reconnected
        self._on_identity_lost = on_identity_lost
        self._connection: Connection | None = None
        self._broken = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Listener {'polling' if self._pooled else 'up' if self.up else 'down'}>"

    @property
    def up(self) -> bool:
        """Whether notifications arrive; true without a session too, where polling replaces them."""
        return self._pooled or (self._connection is not None and not self._connection.is_closed())

    async def start(self) -> None:
        """Connect for the first time. Raises DatabaseError."""
        await self._connect()
        if self._pooled:
            log.warning(
                "listener.polling",
                reason="a transaction pooler can't LISTEN",
                hint="point database.dsn at PostgreSQL itself for the lowest latency",
            )

    async def run(self) -> None:
        while True:
            if self.up:
                await self._clock.wait(self._broken, HEARTBEAT_S)
                if await self._alive():
                    continue
                self._lost()
            await self._reconnect()

    async def stop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.remove_termination_listener(self._on_terminated)
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=2)

    async def _connect(self) -> None:
        if self._pooled:
            async with self._database.transaction() as borrowed:
                await self._identify(borrowed)
            await self._beat(None)
        else:
            connection = await self._database.dedicated()
            try:
                with translated_errors():
                    await self._identify(connection)
                    connection.add_termination_listener(self._on_terminated)
                    for channel in self._channels:
                        await connection.add_listener(channel, self._on_notified)
                await self._beat(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
            self._broken.clear()
        self._metrics.listener_up.set(1)

    async def _identify(self, connection: Connection) -> None:
        """Take up this daemon's id in the session, or a new one if others took it for dead."""
        if (
            self._ledger.owner
            and not self._pooled
            and await self._daemons.resume(connection, self._ledger.owner)
        ):
            return
        if self._ledger.owner:
            self._ledger.lose_everything()
            self._on_identity_lost()
            log.warning("daemon.replaced", daemon=self._ledger.owner, reason="others took it for dead")
        self._ledger.begin_as(
            await self._daemons.register(connection, self._version, self._schema, pooled=self._pooled)
        )

    async def _alive(self) -> bool:
        """Leave a heartbeat; False if the connection or the identity is lost."""
        if not self.up:
            return False
        try:
            return await self._beat(self._connection)
        except DatabaseUnavailable as error:
            if self._pooled:
                return True  # the pool finds its way back by itself
            if isinstance(error.__cause__, TimeoutError):
                await self._database.renew()
            return False
        except DatabaseError:
            return False

    async def _beat(self, session: Connection | None) -> bool:
        asked_at = self._clock.monotonic()
        if session is None:
            theirs = await self._daemons.beat(self._ledger.owner)
        else:
            with translated_errors():
                theirs = await self._daemons.beat_in_session(session, self._ledger.owner, self._channels)
        if theirs is None:
            return False
        self._clock.follow(theirs, self._clock.monotonic() - asked_at)
        return True

    async def _reconnect(self) -> None:
        tries = 0
        while True:
            try:
                await self._connect()
            except DatabaseUnavailable as error:
                self._database.mark_lost(error)
                await asyncio.sleep(RECONNECT_S[min(tries, len(RECONNECT_S) - 1)])
                tries += 1
            else:
                self._metrics.reconnects.inc()
                log.info("listener.reconnected", tries=tries + 1)
                self._on_reconnected()
                return

    def _lost(self) -> None:
        self._metrics.listener_up.set(0)
        log.warning("listener.lost")
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None

    def _on_terminated(self, *_: object) -> None:
        self._broken.set()

    def _on_notified(self, _connection: object, _pid: int, channel: str, _payload: object) -> None:
        self._channels[channel]()
