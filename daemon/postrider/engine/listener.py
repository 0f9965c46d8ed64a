"""From PostgreSQL's notifications to the services that wait for them.

Holds one session for LISTEN and for the lock that tells others this daemon lives. Every few seconds it
leaves a heartbeat there, which checks the connection, because a half-open socket is silent, and measures the
database's clock; after a loss it connects anew, listens again, and lets everyone look at the database once.
Behind a transaction pooler there is no session for a lock or LISTEN: then the services poll, and the
heartbeat alone tells that the daemon lives.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from postrider.edges.clock import SharedClock
from postrider.edges.metrics import Metrics
from postrider.engine.identity import Identity
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.engine.signals import Signal
from postrider.store import daemons
from postrider.store.database import Connection, Database, DatabaseError, DatabaseUnavailable
from postrider.store.session import Session

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ListenerTuning:
    heartbeat_s: float = 5.0
    reconnect_s: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    """Waits between tries to connect; the last one repeats."""


@dataclass(frozen=True, slots=True)
class ListenerCounts:
    heartbeats: int
    reconnects: int


class Listener:
    def __init__(
        self,
        *,
        database: Database,
        identity: Identity,
        ledger: Ledger,
        lanes: Lanes,
        channels: Mapping[str, Signal],
        reconnected: Sequence[Signal],
        clock: SharedClock,
        metrics: Metrics,
        tuning: ListenerTuning | None = None,
    ) -> None:
        """`channels` maps a notification channel to what it wakes; `reconnected` are set after a loss of the
        connection, and with it perhaps of an answer."""
        self._database = database
        self._identity = identity
        self._ledger = ledger
        self._lanes = lanes
        self._channels = channels
        self._reconnected = reconnected
        self._clock = clock
        self._metrics = metrics
        self._tuning = tuning or ListenerTuning()
        self._session: Session | None = None
        self._ended = asyncio.Event()
        self._lost = False
        """A heartbeat failed, and nothing else stands for the session yet."""
        self._tries = 0
        """To connect anew, without success."""

    def __repr__(self) -> str:
        state = "polling" if self._identity.pooled else "up" if self.up else "down"
        return f"<Listener {state} daemon={self._ledger.owner}>"

    @property
    def up(self) -> bool:
        """Whether notifications arrive; true without a session too, where polling replaces them."""
        return self._identity.pooled or (self._session is not None and self._session.up)

    async def start(self) -> None:
        """Connect for the first time. Raises DatabaseError."""
        await self._connect()
        if self._identity.pooled:
            log.warning(
                "listener.polling",
                reason="a transaction pooler can't LISTEN",
                hint="point database.dsn at PostgreSQL itself for the lowest latency",
            )

    async def run(self) -> None:
        while True:
            if not self._lost:
                await self._clock.wait(self._ended, self._tuning.heartbeat_s)
            await self.run_once()
            if self._lost:
                waits = self._tuning.reconnect_s
                await self._clock.sleep(waits[min(self._tries, len(waits)) - 1])

    async def run_once(self) -> ListenerCounts:
        """Leave a heartbeat; where that fails, or did before, try once to connect anew."""
        if not self._lost:
            if await self._alive():
                return ListenerCounts(1, 0)
            self._lose()
        try:
            await self._connect()
        except DatabaseUnavailable as error:
            self._database.mark_lost(error)
            self._tries += 1
            return ListenerCounts(0, 0)
        self._metrics.reconnects.inc()
        log.info("listener.reconnected", tries=self._tries + 1)
        self._tries = 0
        for signal in self._reconnected:
            signal.set()
        return ListenerCounts(0, 1)

    async def stop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _connect(self) -> None:
        if self._identity.pooled:
            async with self._database.transaction() as borrowed:
                await self._identify(borrowed)
            await self._beat()
        else:
            session = await Session.begin(self._database, self._ended.set)
            try:
                with session.connection() as connection:
                    await self._identify(connection)
                await session.listen(self._channels, self._on_notified)
                await self._beat(session)
            except BaseException:
                session.cut()
                raise
            self._session = session
            self._ended.clear()
        self._lost = False
        self._metrics.listener_up.set(1)

    async def _identify(self, connection: Connection) -> None:
        """Take up this daemon's id in the session, or a new one if others took it for dead."""
        owner, identity = self._ledger.owner, self._identity
        if owner and not identity.pooled and await identity.resume(connection, owner, self._clock):
            return
        if owner:
            self._ledger.lose_everything()
            self._lanes.clear()
            log.warning("daemon.replaced", daemon=owner, reason="others took it for dead")
        self._ledger.begin_as(await identity.register(connection))

    async def _alive(self) -> bool:
        """Leave a heartbeat; False if the connection or the identity is lost."""
        if not self.up:
            return False
        try:
            return await self._beat(self._session)
        except DatabaseUnavailable as error:
            if self._identity.pooled:
                return True  # the pool finds its way back by itself
            if isinstance(error.__cause__, TimeoutError):
                await self._database.renew()
            return False
        except DatabaseError:
            return False

    async def _beat(self, session: Session | None = None) -> bool:
        asked_at = self._clock.monotonic()
        if session is None:
            async with self._database.connection() as borrowed:
                theirs = await daemons.beat(borrowed, self._ledger.owner)
        else:
            with session.connection() as connection:
                theirs = await daemons.beat_in_session(connection, self._ledger.owner, self._channels)
        if theirs is None:
            return False
        self._clock.follow(theirs, self._clock.monotonic() - asked_at)
        return True

    def _lose(self) -> None:
        self._lost = True
        self._metrics.listener_up.set(0)
        log.warning("listener.lost")
        session, self._session = self._session, None
        if session is not None:
            session.cut()

    def _on_notified(self, channel: str) -> None:
        self._channels[channel].set()
