"""Keeps house: rescues what dead daemons held, makes partitions ahead and drops those past retention, and
tells of rows that capture triggers set aside.

It wakes by itself once a second; partitions are looked after once an hour.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from postrider.edges.clock import Clock
from postrider.services.work import Work
from postrider.store.captures import Captures
from postrider.store.daemons import Daemons
from postrider.store.partitions import PARTITIONED, Partitions

RESCUE_S = 1.0
PARTITIONS_S = 3600.0
REJECTIONS_S = 5.0
RECOVERED_AT_ONCE = 500
MAX_REJECTIONS_TOLD = 100
"""A broken capture sets every row aside; the log need not hold each of them at once."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds that rows are kept after their event, in whole days; the longer time wins at a partition."""

    events: float
    attempts: float


@dataclass(frozen=True, slots=True)
class JanitorCounts:
    rescued_daemons: int
    partitions_created: int
    partitions_dropped: int


class Janitor:
    def __init__(
        self,
        *,
        daemons: Daemons,
        partitions: Partitions,
        captures: Captures,
        retention: Retention,
        work: Work,
        clock: Clock,
        on_rescued: Callable[[], None],
    ) -> None:
        self.retention = retention
        self._daemons = daemons
        self._partitions = partitions
        self._captures = captures
        self._work = work
        self._clock = clock
        self._on_rescued = on_rescued
        self._partitions_at = 0.0
        self._rejections_at = 0.0

    async def run(self) -> None:
        never = asyncio.Event()
        while True:
            await self.run_once()
            await self._clock.wait(never, RESCUE_S)

    async def run_once(self) -> JanitorCounts:
        rescued = await self.rescue()
        if self._clock.monotonic() >= self._rejections_at:
            await self.tell_rejections()
            more = await self.recover_rejections() == RECOVERED_AT_ONCE
            self._rejections_at = self._clock.monotonic() + (0 if more else REJECTIONS_S)
        if self._clock.monotonic() < self._partitions_at:
            return JanitorCounts(rescued, 0, 0)
        created, dropped = await self.keep_partitions()
        self._partitions_at = self._clock.monotonic() + PARTITIONS_S
        return JanitorCounts(rescued, created, dropped)

    async def rescue(self) -> int:
        """Free what dead daemons held; return how many there were."""
        rescued = await self._daemons.rescue(self._work.owner, self._clock.now())
        for dead in rescued:
            log.warning(
                "daemon.rescued", daemon=dead.daemon_id, events=dead.events, deliveries=dead.deliveries
            )
        if rescued:
            self._on_rescued()
        return len(rescued)

    async def tell_rejections(self) -> int:
        """Log the rows of which no event could be made; return how many were logged."""
        rejections = await self._captures.log_rejections(MAX_REJECTIONS_TOLD)
        for each in rejections:
            log.error(
                "capture.rejected",
                capture=each.capture,
                operation=each.operation,
                object_id=each.object_id,
                reason=each.reason,
            )
        return len(rejections)

    async def recover_rejections(self) -> int:
        """Make events of rows that were set aside; return of how many."""
        batch = await self._captures.recover(limit=RECOVERED_AT_ONCE)
        if batch.rows:
            log.info("capture.recovered", rows=batch.rows, events=batch.events, kept=batch.kept)
        return batch.rows

    async def keep_partitions(self) -> tuple[int, int]:
        """Make partitions ahead and drop old ones; return (created, dropped)."""
        now = self._clock.now()
        await self._captures.forget_rejections(now - timedelta(seconds=self.retention.events))
        created = await self._partitions.create_ahead(now)
        if created:
            log.info("partitions.created", partitions=created)
        dropped: list[str] = []
        for parent in PARTITIONED:
            seconds = self.retention.attempts if parent == "attempt" else self.retention.events
            gone, kept = await self._partitions.drop_before(parent, (now - timedelta(seconds=seconds)).date())
            dropped += gone
            if kept:
                log.warning(
                    "partitions.kept", partitions=kept, reason="they hold deliveries that are not settled"
                )
        if dropped:
            log.info("partitions.dropped", partitions=dropped)
        return len(created), len(dropped)
