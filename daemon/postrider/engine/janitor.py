"""Keeps house: rescues what dead daemons held, and tells of rows that capture triggers set aside.

It wakes by itself once a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from postrider.edges.clock import Clock
from postrider.engine.ledger import Ledger
from postrider.engine.rescue import rescue
from postrider.engine.signals import Signal
from postrider.store import capture_rejections
from postrider.store.database import Database

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JanitorTuning:
    interval_s: float = 1.0
    rejections_s: float = 5.0
    most_rejections: int = 100
    """A broken capture sets every row aside; the log need not hold each of them at once."""


@dataclass(frozen=True, slots=True)
class JanitorCounts:
    rescued_daemons: int
    rejections_told: int


class Janitor:
    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        freed: Sequence[Signal],
        clock: Clock,
        tuning: JanitorTuning | None = None,
    ) -> None:
        """`freed` are set when claims and deliveries of a dead daemon are there to be taken."""
        self._database = database
        self._ledger = ledger
        self._freed = freed
        self._clock = clock
        self._tuning = tuning or JanitorTuning()
        self._rejections_at = 0.0
        self._rescued = 0

    def __repr__(self) -> str:
        return f"<Janitor rescued={self._rescued}>"

    async def run(self) -> None:
        while True:
            await self.run_once()
            await self._clock.sleep(self._tuning.interval_s)

    async def run_once(self) -> JanitorCounts:
        rescued = await self.rescue()
        told = 0
        if self._clock.monotonic() >= self._rejections_at:
            told = await self.tell_rejections()
            self._rejections_at = self._clock.monotonic() + self._tuning.rejections_s
        return JanitorCounts(rescued, told)

    async def rescue(self) -> int:
        """Free what dead daemons held; return how many there were."""
        rescued = await rescue(self._database, self._ledger.owner, self._clock.now())
        for dead in rescued:
            log.warning(
                "daemon.rescued", daemon=dead.daemon_id, events=dead.events, deliveries=dead.deliveries
            )
        if rescued:
            self._rescued += len(rescued)
            for signal in self._freed:
                signal.set()
        return len(rescued)

    async def tell_rejections(self) -> int:
        """Log the rows of which no event could be made; return how many were logged."""
        async with self._database.connection() as connection:
            rejections = await capture_rejections.tell(connection, self._tuning.most_rejections)
        for each in rejections:
            log.error(
                "capture.rejected",
                capture=each.capture,
                operation=each.operation,
                object_id=each.object_id,
                reason=each.reason,
            )
        return len(rejections)
