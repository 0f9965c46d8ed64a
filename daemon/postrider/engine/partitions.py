"""Looks after the daily partitions: makes them ahead, drops those past retention.

It wakes by itself once an hour; sooner, in growing steps, where a lock was not to be had.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog

from postrider.domain.model import endpoint_public_id
from postrider.edges.clock import Clock
from postrider.store import capture_deleted, capture_rejections
from postrider.store.database import Database, DatabaseError, DatabaseUnavailable
from postrider.store.partitions import PARTITIONED, Busy, Partitions

KEEP_S = 3600.0
AGAIN_S = 1.0
"""After some were made, and more are to be."""
BACK_OFF_S = (60.0, 300.0, 900.0, 3600.0)
"""Waits after a failure; the last one repeats. There are partitions for days."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds that rows are kept after their event, in whole days; the longer time wins at a partition."""

    events: float
    attempts: float


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    created: int
    dropped: int
    complete: bool
    """False where more can be made at once."""


class PartitionKeeper:
    def __init__(
        self, *, database: Database, partitions: Partitions, retention: Retention, clock: Clock
    ) -> None:
        self.retention = retention
        self._partitions = partitions
        self._database = database
        self._clock = clock

    async def run(self) -> None:
        never = asyncio.Event()
        failures = 0
        while True:
            try:
                counts = await self.run_once()
            except DatabaseUnavailable:
                raise
            except (Busy, DatabaseError) as error:
                wait = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
                failures += 1
                log.warning("partitions.postponed", reason=str(error), again_in_s=wait)
            else:
                failures = 0
                wait = KEEP_S if counts.complete else AGAIN_S
            await self._clock.wait(never, wait)

    async def run_once(self) -> PartitionCounts:
        """Make partitions ahead, and drop old ones once all are made. Raises Busy, DatabaseError."""
        created = await self._partitions.create_ahead()
        if created.names:
            log.info("partitions.created", partitions=created.names)
        if not created.complete:
            return PartitionCounts(len(created.names), 0, False)
        now = self._clock.now()
        async with self._database.connection() as connection:
            await capture_rejections.forget(connection, now - timedelta(seconds=self.retention.events))
            await capture_deleted.forget(connection)
        dropped = 0
        for parent in PARTITIONED:
            seconds = self.retention.attempts if parent == "attempt" else self.retention.events
            result = await self._partitions.drop_before(parent, timedelta(seconds=seconds))
            if result.ended:
                log.warning(
                    "deliveries.ended",
                    deliveries=result.ended,
                    reason="their endpoints are disabled, and the retention of their events ended",
                )
            if result.kept:
                log.warning(
                    "partitions.kept",
                    partitions=result.kept,
                    endpoints=[endpoint_public_id(endpoint_id) for endpoint_id in result.holders],
                    reason="they hold deliveries that are not settled",
                )
            if result.names:
                log.info("partitions.dropped", partitions=result.names)
            dropped += len(result.names)
        return PartitionCounts(len(created.names), dropped, True)
