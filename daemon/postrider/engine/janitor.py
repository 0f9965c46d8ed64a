"""Keeps house: rescues what dead daemons held, and tells of rows that capture triggers set aside.

It wakes by itself once a second.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from postrider.edges.clock import Clock
from postrider.engine.ledger import Ledger
from postrider.store import capture_rejections
from postrider.store.daemons import Daemons
from postrider.store.database import Database

RESCUE_S = 1.0
REJECTIONS_S = 5.0
MAX_REJECTIONS_TOLD = 100
"""A broken capture sets every row aside; the log need not hold each of them at once."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JanitorCounts:
    rescued_daemons: int
    rejections_told: int


class Janitor:
    def __init__(
        self,
        *,
        database: Database,
        daemons: Daemons,
        ledger: Ledger,
        clock: Clock,
        on_rescued: Callable[[], None],
    ) -> None:
        self._database = database
        self._daemons = daemons
        self._ledger = ledger
        self._clock = clock
        self._on_rescued = on_rescued
        self._rejections_at = 0.0

    async def run(self) -> None:
        never = asyncio.Event()
        while True:
            await self.run_once()
            await self._clock.wait(never, RESCUE_S)

    async def run_once(self) -> JanitorCounts:
        rescued = await self.rescue()
        told = 0
        if self._clock.monotonic() >= self._rejections_at:
            told = await self.tell_rejections()
            self._rejections_at = self._clock.monotonic() + REJECTIONS_S
        return JanitorCounts(rescued, told)

    async def rescue(self) -> int:
        """Free what dead daemons held; return how many there were."""
        rescued = await self._daemons.rescue(self._ledger.owner, self._clock.now())
        for dead in rescued:
            log.warning(
                "daemon.rescued", daemon=dead.daemon_id, events=dead.events, deliveries=dead.deliveries
            )
        if rescued:
            self._on_rescued()
        return len(rescued)

    async def tell_rejections(self) -> int:
        """Log the rows of which no event could be made; return how many were logged."""
        async with self._database.connection() as connection:
            rejections = await capture_rejections.tell(connection, MAX_REJECTIONS_TOLD)
        for each in rejections:
            log.error(
                "capture.rejected",
                capture=each.capture,
                operation=each.operation,
                object_id=each.object_id,
                reason=each.reason,
            )
        return len(rejections)
